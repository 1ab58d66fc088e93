"""A node that is taken away while the S-VLM is trained: training goes on with the workers that are left, and learns every row once."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.storage import Folder

ROWS, EPOCHS, BATCH = 24, 20, 4


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and two nodes with room for a worker each."""
    from ray.cluster_utils import Cluster

    # Ray looks for 60 s whether a group can start, also on a node that is just gone.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield found
    found.shutdown()


def _started(command: list[str], cluster: Any, place: Path) -> "subprocess.Popen[bytes]":
    """Training that has made two checkpoints."""
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=log)
    for _ in range(3600):
        if len(list((place / "work").glob("mpa/checkpoint_*"))) >= 2:
            break
        assert process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_goes_on_with_one_worker_when_a_node_is_lost(cluster: Any, parity_folder: Path) -> None:
    place = parity_folder.parent
    command = [sys.executable, str(Path(__file__).with_name("level_once.py")), str(place), "2", "1e-3", "1"]
    # Once, beside other work, Ray Train was seen to begin with one worker of two; why is not known. There is nothing to lose then.
    for _ in range(3):
        process = _started(command, cluster, place)
        if json.loads((place / "work/mpa/progress.json").read_text())["workers"] == [[1, 2]]:
            break
        process.kill()
        process.wait()
        shutil.rmtree(place / "work")
    cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0], allow_graceful=False)
    assert process.wait(400) == 0, (place / "log").read_text()[-3000:]

    log = Folder.at(place / "model").read_json("training_log.json")
    steps = ROWS * EPOCHS // BATCH
    assert [row[0] for row in log["rows"]] == list(range(1, steps + 1)), "every step once, of the batch that was asked for"
    assert log["samples"] == ROWS * EPOCHS
    first, *_, last = log["workers"]
    assert first == [1, 2] and last[1] == 1, log["workers"]
    # Checkpoints are made every 5 steps, and it went on from one.
    assert 1 < last[0] <= steps and (last[0] - 1) % 5 == 0, log["workers"]
