"""`ray job submit` against a head of its own, as a user would: the working folder travels, logs and the final table come back."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting import assert_accounted_for
from mpa_ray.storage import Folder

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with a dashboard: its address for jobs, and the environment both sides need."""
    with tempfile.TemporaryDirectory(prefix="mpa-head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("RAY_ADDRESS", None)
        environment.pop("PYTHONPATH", None)
        # The agent starts jobs. Its port has a fixed default, and without that port it serves nobody: another Ray may be holding it.
        port, dashboard, agent = free_port(), free_port(), free_port()
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += [
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={folder}",
            "--object-store-memory=400000000",
        ]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        log = Path(folder) / "head.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
            try:
                _wait_for(dashboard, process, log)
                yield f"http://127.0.0.1:{dashboard}", environment
            finally:
                # Its processes end with it. Asked to end, it takes up to a minute.
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.25)
    raise AssertionError(f"the head did not come up:\n{log.read_text()}")


def test_a_submitted_job_runs_the_demo_and_shows_its_table(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    job = [
        "python",
        "jobs/mpa_textvqa.py",
        "--preset",
        "demo",
        "--output",
        str(tmp_path / "out"),
        "--demo.images",
        "160",
        "--demo.questions",
        "64",
    ]
    job += ["--ablations", "[]", "--pl.holdout", "0"]
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *job]
    for _ in range(20):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
        # The dashboard answers before the agent that starts jobs has come up.
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "annotate and identify: 160 of 160 images" in done.stdout
    assert "verdict: parity" in done.stdout
    assert "zero_shot" in done.stdout
    assert_accounted_for(Folder.at(tmp_path / "out"))
