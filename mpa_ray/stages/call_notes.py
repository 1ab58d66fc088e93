"""What the actors of one call on an output tell one another, in memory: which parts they have begun
(`mpa_ray.stages.crash_blame`), and why a stage was ended (`mpa_ray.stages.early_stop`).

Both count within one call alone, so nothing of it is written: with Ray, a named actor that needs no
CPU holds it on the driver's node and ends with the driver; without Ray, this process does.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Concatenate, ParamSpec, TypeVar

from mpa_ray.observability.logs import run_id
from mpa_ray.stages.crash_blame import Attempt
from mpa_ray.storage.folder import Folder

P = ParamSpec("P")
R = TypeVar("R")


class CallNotes:
    """The notes of one call.

    `dataset` names a dataset of the call for which models are asked: of two that ask one model side
    by side, each has notes of its own.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A new call begins."""
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._reason: str | None = None

    def request_stop(self, reason: str) -> None:
        """Note why the stage ends."""
        self._reason = reason

    def stop_reason(self) -> str | None:
        """Why the stage was ended; None while it runs."""
        return self._reason

    def begin(self, dataset: str, part: int) -> Attempt:
        """Note that an actor begins `part`, and return what is known of those before it."""
        before = self._attempts.get((dataset, part))
        found = before.begun_again() if before else Attempt()
        self._attempts[dataset, part] = found
        return found

    def ask_alone(self, dataset: str, part: int, place: int | None) -> None:
        """Note that the row at `place` is asked next, with no other beside it; or, with None, that
        it was answered. An actor that ends from then on ends through no row of this part: it has
        others to ask about.
        """
        before = self._attempts.get((dataset, part), Attempt())
        self._attempts[dataset, part] = replace(before, asking=place)

    def end(self, dataset: str, part: int) -> None:
        """The part's rows are answered."""
        self._attempts.pop((dataset, part), None)


def note(
    output: Folder,
    method: Callable[Concatenate[CallNotes, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call a method of the notes of this call on `output`, wherever they are: `note(output,
    CallNotes.request_stop, "the budget is spent")`.
    """
    import ray

    if not ray.is_initialized():
        return method(_in_this_process(output.uri), *args, **kwargs)
    here = ray.get_runtime_context()
    actor = _actor(output.uri, here.get_node_id(), here.get_job_id())
    return ray.get(getattr(actor, method.__name__).remote(*args, **kwargs))


@cache
def _in_this_process(uri: str) -> CallNotes:
    return CallNotes()


@cache
def _actor(uri: str, node: str, job: str) -> Any:
    """The actor of a job of Ray. The driver asks first, and makes it: it ends with the driver.

    Every local Ray numbers its jobs from 1, and one process may start several: the id of its node
    tells them apart.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(CallNotes)
        .options(
            name=f"mpa_ray-{run_id(uri)}",
            get_if_exists=True,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            # Of a node that is lost with it the notes are lost, and nothing else.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote()
    )
