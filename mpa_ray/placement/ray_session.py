"""The Ray this process works with: the cluster a job was submitted to, or one of its own on this
machine.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpa_ray.errors import meant_for_people
from mpa_ray.observability import logs
from mpa_ray.observability.side_by_side import ends_when_interrupted

# Restarts of an engine actor that dies while it loads, in a row: a node that comes up broken must
# not end the run, a broken model must.
_ACTOR_INIT_DEATHS = 3
# What these say at the level of a warning is how Ray is set up, which is as we want it: token
# authentication, no progress bars of its own, and that a stage waits for a core while another has
# it.
_WITHOUT_WARNINGS = (
    "ray._private.authentication",
    "ray.data._internal.progress",
    "ray.data._internal.execution.resource_manager",
)

_ON_ONE_MACHINE = {
    # Ray ends a worker process that had nothing to do for a second where there are more of them
    # than cores; with two cores those that read and those that commit would be ended and started
    # all the time, which takes seconds of a core each.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Ray Data's other one, which is its default, leaves a node's cores unused down to the next
    # whole number: of two cores, one of which engines have a part of, too few were left to commit,
    # and finished parts waited until all was read. There is nothing to scale here.
    "RAY_DATA_CLUSTER_AUTOSCALER": "V2",
}


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to RAY_ADDRESS, or to Ray where this process already has; else start Ray here and
    end it afterwards.
    """
    import ray
    from ray.exceptions import RayError

    ours = not ray.is_initialized()
    for name in _WITHOUT_WARNINGS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if ours:
        local = "RAY_ADDRESS" not in os.environ
        if local:
            for name, value in _ON_ONE_MACHINE.items():
                os.environ.setdefault(name, value)
        # Workers' own logs stay in Ray's log folder: the run says itself what a person wants to
        # see.
        options: dict[str, Any] = {"include_dashboard": False} if local else {}
        if logs.wants_json():
            options["logging_config"] = ray.LoggingConfig(
                encoding="JSON", additional_log_standard_attrs=["name"]
            )
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
        logging.getLogger("ray").setLevel(logging.WARNING)
    _configure_data()
    try:
        yield
    except RayError as error:
        ours_inside = meant_for_people(error)
        if ours_inside is None:
            raise
        raise ours_inside from error
    finally:
        if ours:
            ray.shutdown()


def _configure_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    if ends_when_interrupted() not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(ends_when_interrupted())
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A part stays one block from its reading to its commit; splitting blocks by size would break
    # that.
    context.target_max_block_size = None
    context.max_consecutive_actor_init_deaths = _ACTOR_INIT_DEATHS
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
