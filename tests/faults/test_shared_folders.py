"""Hosts with disks of their own: a run whose folders they do not see is refused before anything is
loaded.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_lost_hosts import JobOnHost

from hosts import HEALTH, Network
from job import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def network() -> Iterator[Network]:
    """A head and a worker."""
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(
        prefix="mpa-hosts-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        found = Network(
            folder=Path(folder), environment={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        )
        try:
            found.up(2)
            yield found
        finally:
            found.down()


@pytest.mark.parametrize("hidden", ["output", "images"])
def test_a_folder_that_a_host_does_not_see_is_refused(
    network: Network, tmp_path: Path, hidden: str
) -> None:
    head, worker = network.hosts
    for name in ("output", "images"):
        (tmp_path / name).mkdir()
    network.start(head, cpus=2)
    network.start(worker, cpus=2, own_disk=tmp_path / hidden)
    run = JobOnHost(
        output=str(tmp_path / "output/run"),
        log=tmp_path / "log",
        environment=HEALTH | {"RAY_ADDRESS": network.address},
        source=str(tmp_path / "images"),
        flags=("--demo.images", "0"),
        host=head,
    )
    (tmp_path / "images/a.png").write_bytes((ROOT / "docs/images/parity_samples.png").read_bytes())
    process = run.start()
    assert process.wait(200) == 2, run.log.read_text()
    name = "output" if hidden == "output" else "images"
    assert f"error: {name}='{tmp_path}/" in run.log.read_text()
    assert f"the host {worker.address} of this cluster does not see what" in run.log.read_text()
    assert "loading" not in run.log.read_text() and not (tmp_path / "output/run/commits").exists()
    assert [path.name for path in (tmp_path / "output/run").iterdir() if "seen" in path.name] == []
