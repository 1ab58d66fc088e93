"""The long form: many random SIGKILLs of drivers, of nodes and of engines, and after each run the
same check. `make chaos` runs it.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounting import assert_accounted_for, column
from job import ROOT, Job
from mpa_ray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DRIVER_KILLS = 50
NODE_KILLS = 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head that stays, and two worker nodes; each node is a raylet with processes of its own,
    which have the environment of now.
    """
    from ray.cluster_utils import Cluster

    environment = {
        "INSTANT_SECONDS": "0.3",
        "INSTANT_DEATHS": "0.005",
        "INSTANT_FOLDER": str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )

    # Few CPUs: each one is a worker process that every new driver starts again, and those compete
    # for the machine's real ones.
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 * 2**20}
    )
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    yield found
    found.shutdown()


def job(tmp_path: Path, cluster: Any, number: int) -> Job:
    # Few in flight: the work takes long enough to be interrupted.
    flags = ("--lvlm.images_in_flight", "8", "--svlm.images_in_flight", "8")
    environment = {"RAY_ADDRESS": cluster.address}
    return Job(
        output=str(tmp_path / f"run-{number}"),
        log=tmp_path / "log",
        environment=environment,
        images=640,
        flags=flags,
    )


def check(run: Job) -> None:
    output = Folder.at(run.output)
    assert_accounted_for(output)
    assert len(column(output.child("annotations"), "image_id")) == run.images, (
        "no image was at fault"
    )
    assert output.exists("model/model.safetensors") and output.exists("run.json")


def test_drivers_are_killed_at_random_moments(cluster: Any, tmp_path: Path) -> None:
    moments = random.Random(0)
    kills, run = 0, 0
    while kills < DRIVER_KILLS:
        current = job(tmp_path, cluster, run)
        while kills < DRIVER_KILLS and current.kill_after(moments.uniform(2, 40)):
            kills += 1
        print(f"run {run}: {kills} drivers killed so far", flush=True)
        current.finish()
        check(current)
        run += 1
    print(f"{kills} SIGKILLs of drivers in {run} runs: every image is there once")


def test_nodes_are_killed_at_random_moments(cluster: Any, tmp_path: Path) -> None:
    moments = random.Random(1)
    kills = run = calls = 0
    while kills < NODE_KILLS:
        current = job(tmp_path, cluster, run)
        process = current.start()
        calls += 1
        due = time.monotonic() + moments.uniform(3, 10)
        while process.poll() is None or process.returncode != 0:
            if process.poll() is not None:
                # A node's death may end a call, where Ray gives up; the same command resumes.
                process = current.start()
                calls += 1
            if kills < NODE_KILLS and time.monotonic() > due:
                victim = moments.choice(
                    sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
                )
                cluster.remove_node(victim, allow_graceful=False)
                cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
                kills += 1
                due = time.monotonic() + moments.uniform(3, 10)
            assert calls < 40, current.log.read_text()[-4000:]
            time.sleep(0.1)
        check(current)
        run += 1
    print(f"{kills} SIGKILLs of nodes in {run} runs of {calls} calls: every image is there once")


def test_a_killed_driver_takes_its_own_ray_and_what_that_started_with_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(
        prefix="mpa-", dir="/tmp", ignore_cleanup_errors=True
    ) as ray_folder:
        current = Job(
            output=str(tmp_path / "out"),
            log=tmp_path / "log",
            environment={"RAY_TMPDIR": ray_folder},
        )
        assert current.kill_after(15)
        left: list[Path] = []
        for _ in range(300):
            left = [
                line for line in Path("/proc").glob("[0-9]*/cmdline") if _mentions(line, ray_folder)
            ]
            if not left:
                return
            time.sleep(0.1)
        raise AssertionError(left)


def _mentions(cmdline: Path, text: str) -> bool:
    try:
        return int(cmdline.parent.name) != os.getpid() and text.encode() in cmdline.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
