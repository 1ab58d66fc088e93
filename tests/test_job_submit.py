"""A head and a job by the commands of cluster/README.md, as a user gives them: the working folder
travels and little else does, logs and the final table come back, and the state of the run is told
from outside.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting import assert_accounted_for
from cluster_readme import ROOT, commands
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder
from s3 import free_port

BIN = Path(sys.executable).parent
# What lies about in a checkout that is worked in: a gigabyte together.
LYING_ABOUT = {
    ".venv/lib/libcuda.so": 400,
    ".git/objects/pack/pack-1.pack": 100,
    "runs/1/parity/part-00000000.parquet": 200,
    "photos/a.jpg": 100,
    "shards/shard-00000000.tar": 150,
    "checkpoints/step-100/model.safetensors": 50,
}


def readme(start: str, **replacements: str) -> list[str]:
    """The one command of the README that begins with `start` on a machine of one's own, other
    values in place of some.
    """
    line = next(line for line in commands() if line.startswith(start))
    for old, new in replacements.items():
        assert old in line
        line = line.replace(old, new)
    program, *words = shlex.split(line)
    return [str(BIN / program), *words]


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str], Path]]:
    """A head as the README starts it, on free ports: its address for jobs, the environment both
    sides need, and its own folder.
    """
    with tempfile.TemporaryDirectory(
        prefix="mpa-head-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        name, value = next(shlex.split(line)[1] for line in commands("export")).split("=")
        environment = os.environ | {
            name: value,
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        environment.pop("RAY_ADDRESS", None)
        environment.pop("PYTHONPATH", None)
        # The agent starts jobs. Its port has a fixed default, and without that port it serves
        # nobody: another Ray may be holding it.
        dashboard = free_port()
        command = readme(
            "ray start --head",
            **{"6379": str(free_port()), "8265": str(dashboard), "8080": str(free_port())},
        )
        command += [
            "--block",
            "--num-cpus=4",
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={folder}",
            "--object-store-memory=400000000",
        ]
        command += [
            f"--dashboard-agent-listen-port={free_port()}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        log = Path(folder) / "head.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )
            try:
                _wait_for(dashboard, process, log)
                yield f"http://127.0.0.1:{dashboard}", environment, Path(folder)
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This repository's files, somebody's own beside them, and a gigabyte of data (which takes no
    disk).
    """
    folder = tmp_path / "checkout"
    ours = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, ours.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in ("my_engine.py", "my.yaml"):
        (folder / name).touch()
    for name, megabytes in LYING_ABOUT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as stream:
            stream.truncate(megabytes * 2**20)
    return folder


def test_a_submitted_job_uploads_little_runs_the_demo_and_shows_its_table(
    head: tuple[str, dict[str, str], Path], checkout: Path, tmp_path: Path
) -> None:
    address, environment, ray_folder = head
    output = str(tmp_path / "out")
    command = readme(
        "ray job submit", **{"http://127.0.0.1:8265": address, "/tmp/runs/demo": output}
    )
    # vLLM takes longer to start than all the rest, and test_pipeline.py runs it.
    command += ["--lvlm.engine", "transformers", "--svlm.engine", "transformers"]
    command += [
        "--demo.images",
        "160",
        "--demo.questions",
        "64",
        "--ablations",
        "[]",
        "--pl.holdout",
        "0",
    ]
    for _ in range(20):
        done = subprocess.run(
            command,
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        # The dashboard answers before the agent that starts jobs has come up.
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = (ray_folder / "session_latest" / "runtime_resources" / "working_dir_files").glob(
        "_ray_pkg_*/"
    )
    travelled = {
        str(path.relative_to(package)): path.stat().st_size
        for path in package.rglob("*")
        if path.is_file()
    }
    assert {"my_engine.py", "my.yaml", "mpa_ray/demo/svlm/model.safetensors"} <= travelled.keys()
    assert not LYING_ABOUT.keys() & travelled.keys()
    assert sum(travelled.values()) < 5 * 2**20
    assert "annotate and identify: 160 of 160 images" in done.stdout
    assert "verdict: parity" in done.stdout
    assert Folder.at(output).read_json("run.json")["verdicts"][Verdict.PARITY] > 0
    assert "zero_shot" in done.stdout
    assert_accounted_for(Folder.at(output))
    told = subprocess.run(
        readme("python jobs/status.py", **{"/tmp/runs/demo": output}),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(
        f"run: {output}  (finished)\nimages: 160 of 160 in 2 of 2 parts\n"
    )
