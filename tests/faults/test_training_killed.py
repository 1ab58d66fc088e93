"""Training whose driver is killed resumes from its newest checkpoint when the same call is made
again, with other workers too.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_ray.storage.folder import Folder


def call(place: Path, workers: int, learning_rate: float) -> "subprocess.Popen[bytes]":
    script = Path(__file__).with_name("level_once.py")
    environment = os.environ | {"RAY_TMPDIR": "/tmp", "RAY_AUTH_MODE": "disabled"}
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(script), str(place), str(workers), str(learning_rate)],
            env=environment,
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
def test_a_second_call_resumes_from_the_checkpoint_with_other_workers(parity_folder: Path) -> None:
    place = parity_folder.parent
    first = call(place, 1, 1e-5)
    for _ in range(1200):
        if len(list((place / "work").glob("mpa/checkpoint_*"))) >= 2:
            break
        assert first.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (place / "model" / "training_log.json").exists(), "it was not finished"

    # The newest may not have been seen by the controller, which looks every second or two, before
    # it was killed.
    seen = min(
        (place / "work" / "mpa").glob("checkpoint_*/progress.json"),
        key=lambda path: path.stat().st_mtime,
    )
    kept = json.loads(seen.read_text())
    # Of another learning rate: from the second step on, a training that began again would differ.
    assert call(place, 2, 1e-2).wait(300) == 0, (place / "log").read_text()[-3000:]
    log = Folder.at(place / "model").read_json("training_log.json")
    assert len(log["rows"]) == 120 and log["samples"] == 480, "every step once"
    assert log["timed_samples"] == 480 and log["seconds"] > kept["timed"]["seconds"] > 0, (
        "what the first call took counts"
    )
    assert len(kept["curve"]) >= 5 and log["rows"][: len(kept["curve"])] == kept["curve"]
