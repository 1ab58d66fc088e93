"""A whole run that loses its driver and its actors, the short form; test_chaos.py has the long
one.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accounting import assert_accounted_for, column
from job import Job
from mpa_ray.storage.folder import Folder


@pytest.fixture
def job(tmp_path: Path) -> Job:
    environment = {"INSTANT_FOLDER": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    return Job(output=str(tmp_path / "out"), log=tmp_path / "log", environment=environment)


def _wait_for_parts(job: Job, count: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(2400):
        if len(list(Path(job.output, "commits").glob("*.json"))) >= count:
            return
        assert process.poll() is None, job.log.read_text()
        time.sleep(0.05)
    raise AssertionError(job.log.read_text())


def test_a_run_whose_driver_and_actors_are_killed_loses_nothing(job: Job) -> None:
    deadly = job.environment | {"INSTANT_DEATHS": "0.02", "INSTANT_SECONDS": "0.1"}
    mortal = Job(output=job.output, log=job.log, environment=deadly, images=128)
    process = mortal.start()
    _wait_for_parts(job, 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in Path(job.output, "commits").iterdir()}
    assert mortal.finish(calls=1) == 1
    output = Folder.at(job.output)
    assert_accounted_for(output)
    assert len(column(output.child("annotations"), "image_id")) == mortal.images, (
        "every death was of the actor, and no row's fault"
    )
    assert all(
        Path(job.output, "commits", name).stat().st_mtime_ns == when for name, when in done.items()
    ), "what was done was not redone"


def _wait_for_line(job: Job, text: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(6000):
        if text in job.log.read_text():
            return
        assert process.poll() is None, job.log.read_text()
        time.sleep(0.05)
    raise AssertionError(job.log.read_text())


@contextmanager
def _started(job: Job) -> Iterator["subprocess.Popen[bytes]"]:
    """Calls the job, and ends it with the test where it has not ended by itself."""
    process = job.start()
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ((), ["train mpa: collecting rows"]),
        ((), ["evaluate mpa: asking"]),
        (("--evaluate.models_at_once", 1), ["evaluate zero_shot: asking"]),
        (("--ablations", "consistent"), ["train mpa: 1", "train consistent: collecting rows"]),
        (
            (
                "--rounds",
                2,
                "--pl.holdout",
                0.4,
                "--lvlm.engine",
                "learning_engine:lvlm",
                "--svlm.engine",
                "learning_engine:svlm",
            ),
            ["round 2 of at most 2", "rounds/1/model"],
        ),
    ],
)
def test_ctrl_c_is_the_runs_at_any_time(
    job: Job, flags: tuple[object, ...], lines: list[str]
) -> None:
    """Training, evaluations, further comparisons and rounds: whatever was done before in the same
    call.
    """
    slow = job.environment | {"INSTANT_SECONDS": "0.3", "LEARNING_SECONDS": "0.3"}
    settings = ("--svlm.images_in_flight", 2, "--demo.questions", 96, *flags)
    run = Job(
        output=job.output, log=job.log, environment=slow, images=64, flags=tuple(map(str, settings))
    )
    with _started(run) as process:
        for line in lines:
            _wait_for_line(run, line, process)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
    said = run.log.read_text()
    assert said.rstrip().endswith(
        "stopped; what is finished is kept, and the same command resumes the run"
    )
    assert "Traceback" not in said
    assert not Path(job.output, "run.json").exists()


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_says_how_to_resume(job: Job) -> None:
    slow = Job(
        output=job.output, log=job.log, environment=job.environment | {"INSTANT_SECONDS": "1"}
    )
    process = slow.start()
    _wait_for_parts(job, 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert (
        job.log.read_text()
        .rstrip()
        .endswith("stopped; what is finished is kept, and the same command resumes the run")
    )
    assert not Path(job.output, "run.json").exists()
