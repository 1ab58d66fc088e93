"""Where a training's curve goes while it is trained: TensorBoard's files in the output and, where
asked for, W&B and MLflow, each by its own library and set up by its own environment variables. The
first training worker alone tracks.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.logs import LOG
from mpa_ray.storage.folder import Folder

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_PROJECT = "mpa_ray"
# What MLflow takes in one request.
_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What a training is tracked with.

    Attributes:
        names: of "tensorboard", "wandb" and "mlflow".
        folder: where TensorBoard's files go; None: nowhere.
        run: the name of the training wherever it is tracked, the same when it resumes after a
            failure.
    """

    names: tuple[str, ...] = ()
    folder: Folder | None = None
    run: str = ""


class Tracker(Protocol):
    """One of the places."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values after optimizer step `step`, counted from 1."""

    def keep(self) -> None:
        """Bring what was logged to its place; called some twenty times in a training."""

    def close(self) -> None:
        """The training is done."""


def check(names: Iterable[str]) -> None:
    """Refuse what is not installed, before anything is paid for.

    Raises:
        ConfigurationError: with the fix.
    """
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigurationError(
                f"pl.tracking={name}: {_PACKAGES[name]} is not installed; pip install"
                f" 'mpa_ray[{name}]', or remove it"
            )


def trackers(tracking: Tracking, *, settings: Mapping[str, Any], done: int) -> list[Tracker]:
    """The trackers of a training that resumes after `done` steps. `settings` are shown beside the
    curve.
    """
    found: list[Tracker] = []
    for name in tracking.names:
        if name == "tensorboard" and tracking.folder is not None:
            found.append(TensorBoard(tracking.folder, done=done))
        elif name == "wandb":
            found.append(Wandb(tracking.run, settings))
        elif name == "mlflow":
            found.append(Mlflow(tracking.run, settings))
    return found


class TensorBoard:
    """Event files: written on local disk, where they can be appended to, and copied into the
    output.
    """

    def __init__(self, folder: Folder, *, done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder = folder
        self._local = tempfile.TemporaryDirectory(prefix="mpa-tensorboard-")
        # Not `SummaryWriter`: it writes from a queue, and its `flush` does not wait for what is in
        # there.
        self._writer = EventsWriter(os.path.join(self._local.name, "events"))
        # Steps after the checkpoint that training resumes from are done again, and their points in
        # older files do not count.
        self._writer.write_event(
            Event(
                wall_time=time.time(),
                step=done + 1,
                session_log=SessionLog(status=SessionLog.START),
            )
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._writer.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            )

    def keep(self) -> None:
        self._writer.flush()
        self._folder.upload(self._local.name)

    def close(self) -> None:
        self._writer.close()
        self._folder.upload(self._local.name)
        self._local.cleanup()


class Wandb:
    """Weights & Biases, set up by WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE and its like."""

    def __init__(self, run: str, settings: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = wandb.init(
            project=project, id=run, name=run, resume="allow", config=dict(settings)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def keep(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, set up by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. A server that fails does
    not end the training.
    """

    def __init__(self, run: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self._client.create_experiment(experiment)
        earlier = self._client.search_runs(
            [place], filter_string=f"tags.`mpa_ray.run` = '{run}'", max_results=1
        )
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(
                place, run_name=run, tags={"mpa_ray.run": run}
            ).info.run_id
            self._client.log_batch(
                self._id, params=[Param(name, str(value)) for name, value in settings.items()]
            )
        self._waiting: list[Any] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if len(self._waiting) > _BATCH - len(values):
            self.keep()

    def keep(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self._id, metrics=self._waiting)
        except MlflowException as error:
            LOG.warning("MLflow did not take %d values: %s", len(self._waiting), error)
        self._waiting = []

    def close(self) -> None:
        from mlflow.exceptions import MlflowException

        self.keep()
        try:
            self._client.set_terminated(self._id)
        except MlflowException as error:
            LOG.warning("MLflow was not told of the end: %s", error)
