"""What a training that fails says, and when it is not tried again."""

import errno

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from mpa_ray.errors import ConfigurationError, RunError, StorageError
from mpa_ray.training.trainer import failure, policy_type

LOST = ConnectionError("Connection closed by peer")
FULL = OSError(errno.ENOSPC, "No space left on device")


def failed(*workers: Exception) -> WorkerGroupError:
    return WorkerGroupError("Traceback\n  ...", dict(enumerate(workers)))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            failed(LOST, RunError("p/1.parquet: its image cannot be read")),
            RunError,
            "p/1.parquet: its image cannot be read",
        ),
        (
            failed(ConfigurationError("svlm.model='x': no such model")),
            ConfigurationError,
            "svlm.model='x': no such model",
        ),
        (
            failed(FULL),
            RunError,
            "[Errno 28] No space left on device. Fix the storage and give the same command again",
        ),
        (
            ControllerError(FULL),
            RunError,
            "[Errno 28] No space left on device. Fix the storage and give the same command again",
        ),
        (
            WorkerGroupError(
                "a\nTraceback:\nmpa_ray.errors.StorageError: s3://b: denied\nb", {0: LOST}
            ),
            RunError,
            "s3://b: denied",
        ),
    ],
)
def test_what_the_run_itself_says_is_taken_out_of_the_traceback(
    error: TrainingFailedError, kind: type, message: str
) -> None:
    said = failure(error, "mpa")
    assert isinstance(said, kind) and str(said) == message


def test_any_other_failure_is_one_line_too() -> None:
    line = str(
        failure(
            failed(ValueError(f"CUDA out of memory.\n  Tried to allocate {'9' * 900} GiB")), "mpa"
        )
    )
    assert line.startswith(
        "mpa: training failed: ValueError: CUDA out of memory. Tried to allocate 999"
    )
    assert (
        "\n" not in line
        and len(line) < 500
        and line.endswith("the same command resumes from the newest checkpoint")
    )


@pytest.mark.parametrize(
    ("error", "local", "again"),
    [
        (failed(LOST), True, True),
        (failed(LOST, RunError("its image cannot be read")), False, False),
        (failed(ConfigurationError("x")), False, False),
        (failed(FULL), True, False),
        (failed(StorageError("/disk/model: No space left on device")), True, False),
        (failed(StorageError("s3://bucket/model: slow down")), False, True),
    ],
)
def test_what_another_attempt_would_meet_again_is_not_tried_again(
    error: TrainingFailedError, local: bool, again: bool
) -> None:
    policy = policy_type()(FailureConfig(max_failures=-1))
    policy.storage_is_local = local
    assert policy.make_decision(error) == (
        FailureDecision.RETRY if again else FailureDecision.RAISE
    )
