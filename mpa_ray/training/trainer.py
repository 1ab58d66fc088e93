"""Ray Train's trainer as the Parity Leveler wants it."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow.fs

from mpa_ray.errors import ConfigurationError, RunError, StorageError, meant_for_people

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

_LONGEST = 300
_ABORTED_IN_S = 20.0


@cache
def trainer_type() -> type["TorchTrainer"]:
    """Ray Train's trainer, but Ctrl-C stays the caller's, an error that the next attempt would meet
    again is not tried again, and every failure is one line. Ray Train would take SIGINT for itself
    for as long as the process lives.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    class Trainer(TorchTrainer):
        _controller: Any = None

        def fit(self) -> "Result":
            """Train. Raise ConfigurationError or RunError where that failed, and
            KeyboardInterrupt, the workers ended.
            """
            try:
                return super().fit()
            except KeyboardInterrupt:
                if self._controller is not None:
                    # It ends its workers, gives back what they had, and then itself: the error that
                    # there is no answer is the answer.
                    with suppress(RayActorError, GetTimeoutError):
                        ray.get(self._controller.abort.remote(), timeout=_ABORTED_IN_S)
                raise
            except (TrainingFailedError, RayActorError) as error:
                raise failure(error, str(self.run_config.name)) from error

        def _initialize_and_run_controller(self, **arguments: Any) -> "Result":
            policy = policy_type()(self.run_config.failure_config)
            policy.storage_is_local = isinstance(
                self.run_config.storage_filesystem, pyarrow.fs.LocalFileSystem
            )
            arguments["failure_policy"] = policy
            # mypy sees the trainer of Ray Train 1, which Ray replaces as it is imported.
            return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]

        def _register_sigint_handler(self, controller: Any) -> None:
            self._controller = controller

    return Trainer


@cache
def policy_type() -> type[Any]:
    """A worker that is lost is replaced; what the run itself refuses, or a disk that is full, would
    only be met again.
    """
    from ray.train.v2._internal.execution.failure_handling import (
        DefaultFailurePolicy,
        FailureDecision,
    )

    class OnceForOurs(DefaultFailurePolicy):
        storage_is_local = True

        def make_decision(self, training_failed_error: "TrainingFailedError") -> FailureDecision:
            for cause in _causes(training_failed_error):
                # A service may be back by then, a disk is not.
                if meant_for_people(cause) and (
                    self.storage_is_local or not isinstance(cause, StorageError)
                ):
                    return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    return OnceForOurs


def _causes(error: Exception) -> Iterator[Exception]:
    """What workers or the controller raised, and last the error that tells of it."""
    yield from getattr(error, "worker_failures", {}).values()
    yield getattr(error, "controller_failure", error)
    yield error


def failure(error: Exception, name: str) -> ConfigurationError | RunError:
    """What is to be said of a failed training of that name, in one line."""
    causes = list(_causes(error))
    for cause in causes:
        if ours := meant_for_people(cause):
            return ours
    text = " ".join(str(causes[0]).split())
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return RunError(
        f"{name}: training failed: {type(causes[0]).__name__}: {shown}. Ray's logs have the"
        " traceback (docs/watching.md); the same command resumes from the newest checkpoint"
    )
