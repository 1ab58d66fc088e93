"""Nodes that come just before the S-VLM is trained, and that are taken away meanwhile: training
begins with all the workers there is room for, continues with those that are left, and learns every
row once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.storage.folder import Folder

ROWS, EPOCHS, BATCH = 24, 20, 4


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and a node with room for one worker."""
    from ray.cluster_utils import Cluster

    # Ray looks for 60 s whether a group can start, also on a node that is just gone.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20}
    )
    _add_node(found)
    yield found
    found.shutdown()


def _add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


@contextmanager
def _training(cluster: Any, place: Path, *, nodes: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """Training with two workers, or one where there are no more; once it sees the cluster, it waits
    for so many nodes.
    """
    command = [
        sys.executable,
        str(Path(__file__).with_name("level_once.py")),
        str(place),
        "2",
        "1e-3",
        "1",
        str(nodes),
    ]
    with (
        (place / "log").open("ab") as log,
        subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _wait_until(there: Callable[[], bool], process: "subprocess.Popen[bytes]", place: Path) -> None:
    for _ in range(3600):
        if there():
            return
        assert process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.1)
    raise AssertionError((place / "log").read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_begins_on_a_node_that_has_just_come(cluster: Any, parity_folder: Path) -> None:
    place = parity_folder.parent
    with _training(cluster, place, nodes=3) as process:
        _wait_until((place / "waiting").exists, process, place)
        _add_node(cluster)
        assert process.wait(400) == 0, (place / "log").read_text()[-3000:]
    assert Folder.at(place / "model").read_json("training_log.json")["workers"] == [[1, 2]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_continues_with_one_worker_when_a_node_is_lost(
    cluster: Any, parity_folder: Path
) -> None:
    place = parity_folder.parent
    _add_node(cluster)
    with _training(cluster, place) as process:
        progress = Folder.at(place / "work/mpa")
        # A checkpoint counts when Ray's controller has seen it, which may be after the next one is
        # written: six are, by then.
        _wait_until(
            lambda: (
                progress.exists("progress.json")
                and progress.read_json("progress.json")["samples"] >= 30 * BATCH
            ),
            process,
            place,
        )
        assert progress.read_json("progress.json")["workers"] == [[1, 2]]
        cluster.remove_node(
            sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0], allow_graceful=False
        )
        assert process.wait(400) == 0, (place / "log").read_text()[-3000:]

    log = Folder.at(place / "model").read_json("training_log.json")
    steps = ROWS * EPOCHS // BATCH
    assert [row[0] for row in log["rows"]] == list(range(1, steps + 1)), (
        "every step once, of the batch that was asked for"
    )
    assert log["samples"] == ROWS * EPOCHS
    first, *_, last = log["workers"]
    assert first == [1, 2] and last[1] == 1, log["workers"]
    # Checkpoints are made every 5 steps, and it resumed from one.
    assert 1 < last[0] <= steps and (last[0] - 1) % 5 == 0, log["workers"]
