"""A disk that fills up during a run: said, nothing half is taken for whole, and the same command
resumes when there is room.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting import assert_accounted_for
from job import Job
from mpa_ray.storage.folder import Folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MiB: the rendered images fit on it, the parity set beside them does not."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_model_is_written_ends_the_training_once(
    disk: Path, tmp_path: Path
) -> None:
    """`pl.max_failures` has no bound here: a training that was begun again would be begun for
    ever.
    """
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    run = Job(
        output=str(disk / "out"),
        log=tmp_path / "log",
        environment={"RAY_TMPDIR": "/tmp"},
        images=160,
    )
    process = run.start()
    try:
        while not list(Path(run.output).glob("checkpoints/mpa/progress.json")):
            assert process.poll() is None, run.log.read_text()
            time.sleep(0.05)
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(2**16))
        assert process.wait(300) == 3
    finally:
        process.terminate()
        process.wait(60)
    last = run.log.read_text().rstrip().rpartition("\n")[2]
    assert (
        last.startswith("error: ")
        and "No space left on device" in last
        and "Traceback" not in run.log.read_text()
    )
    parts = {path.name: path.stat().st_mtime_ns for path in Path(run.output, "commits").iterdir()}
    (disk / "other").unlink()
    run.finish(calls=1)
    assert {
        path.name: path.stat().st_mtime_ns for path in Path(run.output, "commits").iterdir()
    } == parts
    assert_accounted_for(Folder.at(run.output))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_costs_nothing(disk: Path, tmp_path: Path) -> None:
    run = Job(
        output=str(disk / "out"),
        log=tmp_path / "log",
        environment={"RAY_TMPDIR": "/tmp"},
        images=160,
    )
    assert run.start().wait(300) == 3
    last = run.log.read_text().rstrip().rpartition("\n")[2]
    assert (
        last.startswith("error: ")
        and "No space left on device" in last
        and "Fix the storage and give the same command again" in last
    )
    assert not list(disk.rglob("*.json")) or all(
        path.stat().st_size for path in disk.rglob("*.json")
    ), "no file is empty"
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    run.finish(calls=1)
    assert_accounted_for(Folder.at(run.output))
