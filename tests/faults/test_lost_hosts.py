"""Hosts that are cut off the network in the middle of PA and of PL: the run continues with the
others, and loses nothing.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from accounting import assert_accounted_for, column
from hosts import HEALTH, Host, Network
from job import ROOT, Job
from mpa_ray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True, kw_only=True)
class JobOnHost(Job):
    """A job whose driver runs on a host."""

    host: Host

    def command(self) -> list[str]:
        return self.host.inside(super().command())


@pytest.fixture
def network() -> Iterator[Network]:
    """A head and two workers."""
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(
        prefix="mpa-hosts-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        found = Network(
            folder=Path(folder),
            environment={"PYTHONPATH": path, "INSTANT_SECONDS": "0.5", "OMP_NUM_THREADS": "1"},
        )
        try:
            found.up(3)
            for host, cpus in zip(found.hosts, (0, 3, 3), strict=True):
                found.start(host, cpus=cpus)
            yield found
        finally:
            found.down()


def _wait(
    job: Job, process: "subprocess.Popen[bytes]", condition: Callable[[], bool], seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, job.log.read_text()[-4000:]
        assert time.monotonic() < deadline, job.log.read_text()[-4000:]
        time.sleep(0.1)


def _one_with(hosts: list[Host], title: str) -> Host | None:
    return next((host for host in hosts if host.runs(title)), None)


def test_a_run_outlives_a_host_lost_in_pa_and_one_lost_in_pl(
    network: Network, tmp_path: Path
) -> None:
    head, *workers = network.hosts
    run = JobOnHost(
        output=str(tmp_path / "out"),
        log=tmp_path / "log",
        environment=HEALTH | {"RAY_ADDRESS": network.address},
        images=640,
        flags=("--lvlm.images_in_flight", "16", "--svlm.images_in_flight", "16"),
        host=head,
    )
    process = run.start()
    commits, progress = (
        Path(run.output, "commits"),
        Path(run.output, "checkpoints", "mpa", "progress.json"),
    )

    _wait(run, process, lambda: len(list(commits.glob("*.json"))) >= 4, 180)
    lost = _one_with(workers, "Annotator")
    assert lost is not None
    lost.connect(False)
    before = len(list(commits.glob("*.json")))
    assert before < 40, "PA was not over"
    _wait(run, process, lambda: len(list(commits.glob("*.json"))) == 40, 300)
    # A new machine under its name, as an autoscaler would bring one.
    lost.kill_all()
    lost.connect(True)
    network.start(lost, cpus=3)

    _wait(run, process, progress.exists, 300)
    _wait(run, process, lambda: _one_with(workers, "RayTrainWorker") is not None, 60)
    training = _one_with(workers, "RayTrainWorker")
    assert training is not None and not Path(run.output, "model", "config.json").exists()
    training.connect(False)
    assert process.wait(600) == 0, run.log.read_text()[-6000:]

    output = Folder.at(run.output)
    assert_accounted_for(output)
    assert len(column(output.child("annotations"), "image_id")) == run.images, (
        "no image was at fault"
    )
    assert output.exists("model/model.safetensors") and output.exists("run.json")
