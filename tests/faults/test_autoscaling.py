"""A cluster of a head alone grows by itself while a run works on it, and shrinks again: Ray's own
autoscaler, with nodes that are processes of this machine (its fake_multinode provider) in place of
a cloud's.

`ray.cluster_utils.AutoscalingCluster` would do the same and ends every Ray of the machine first, so
its configuration is written here. The autoscaler is version 1: version 2 is what KubeRay and `ray
up` run, and its part for this provider is not in Ray's wheel.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting import assert_accounted_for, column
from job import ROOT, Job
from mpa_ray.storage.folder import Folder
from s3 import free_port

pytestmark = pytest.mark.slow

WORKERS = 2
COMMANDS = (
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
)
CONFIG = {
    # What every configuration of an autoscaler has, and this provider does without.
    **{f"{name}_commands": [] for name in COMMANDS},
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "cluster_name": "grows",
    "max_workers": WORKERS,
    "upscaling_speed": 10,
    "idle_timeout_minutes": 0.1,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": 200 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": WORKERS,
        },
    },
}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A head without a CPU to give, and an autoscaler beside it."""
    port = free_port()
    # All nodes have this machine's address, so ids tell them apart; nobody logs in to set them up;
    # several may be started at once.
    switches = {
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    }
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"} | switches
    (tmp_path / "autoscaler.json").write_text(json.dumps(CONFIG | {"provider": provider}))
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "INSTANT_SECONDS": "0.3",
        "PYTHONPATH": path,
    }
    with tempfile.TemporaryDirectory(
        prefix="mpa-grows-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            "--num-cpus=0",
            "--node-ip-address=127.0.0.1",
        ]
        command += [
            f"--autoscaling-config={tmp_path / 'autoscaler.json'}",
            f"--port={port}",
            f"--temp-dir={folder}",
        ]
        command += [
            "--include-dashboard=false",
            "--object-store-memory=200000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        with (tmp_path / "head.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log
            )
        try:
            _wait_until(f"127.0.0.1:{port}", 1, 60)
            yield f"127.0.0.1:{port}"
        finally:
            # Its processes end with it. Asked to end, it takes half a minute.
            process.kill()
            process.wait()


def alive(address: str) -> int:
    """The nodes of a cluster that are there, the head among them."""
    from ray._raylet import GcsClient
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    return sum(
        node.state == GcsNodeInfo.ALIVE
        for node in GcsClient(address=address).get_all_node_info().values()
    )


def _wait_until(address: str, nodes: int, seconds: float) -> None:
    from ray.exceptions import RaySystemError, RpcError

    deadline = time.monotonic() + seconds
    while True:
        try:
            if alive(address) == nodes:
                return
        except (RaySystemError, RpcError):
            pass
        assert time.monotonic() < deadline, f"never {nodes} nodes"
        time.sleep(0.5)


def test_nodes_come_with_the_work_and_go_after_it(address: str, tmp_path: Path) -> None:
    # The L-VLM's engine fills a node, so that the rest needs another.
    flags = ("--lvlm.cpus_per_replica", "2")
    run = Job(
        output=str(tmp_path / "out"),
        log=tmp_path / "log",
        environment={"RAY_ADDRESS": address},
        images=640,
        flags=flags,
    )
    process = run.start()
    most = 0
    try:
        while process.poll() is None:
            most = max(most, alive(address))
            time.sleep(0.5)
    finally:
        process.kill()
    assert process.returncode == 0, run.log.read_text()[-4000:]
    # Ray's autoscaler was seen to start one node more than it may while the first ones come, and to
    # end it a second later.
    assert most >= 1 + WORKERS
    _wait_until(address, 1, 120)
    output = Folder.at(run.output)
    assert_accounted_for(output)
    assert len(column(output.child("annotations"), "image_id")) == run.images
    assert output.exists("model/model.safetensors") and output.exists("run.json")
