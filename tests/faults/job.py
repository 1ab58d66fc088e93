"""A whole job in a process of its own, with engines that answer at once, to be killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _hear_ctrl_c() -> None:
    """A shell's background job ignores SIGINT, and so does all that it starts: the tests would,
    too.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of `images` rendered images in parts of 16, from PA to the evaluation; PL trains the
    embedded S-VLM for real.

    Attributes:
        output: the run's folder.
        log: where its lines go, call after call.
        environment: beside ours: RAY_ADDRESS, INSTANT_SECONDS, ...
        source: where the images are, when they are not rendered into the output.
    """

    output: str
    log: Path
    environment: dict[str, str]
    images: int = 240
    flags: tuple[str, ...] = ()
    source: str | None = None

    def command(self) -> list[str]:
        rendered = {"--demo.images": self.images, "--demo.questions": 16}
        flags = (
            rendered if self.source is None else {"--demo.images": 0, "--images": self.source}
        ) | {
            "--preset": "demo",
            "--output": self.output,
            "--lvlm.engine": "instant:lvlm",
            "--svlm.engine": "instant:svlm",
            "--images_per_part": 16,
            "--ablations": "[]",
            "--pl.workers": 1,
            "--pl.checkpoint_every": 5,
            "--pl.max_failures": -1,
            "--evaluate.lvlm": "false",
        }
        return [
            sys.executable,
            "jobs/mpa_textvqa.py",
            *(str(part) for pair in flags.items() for part in pair),
            *self.flags,
        ]

    def start(self) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(
            [str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        )
        environment = {
            "RAY_AUTH_MODE": "disabled",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env=os.environ | environment | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_hear_ctrl_c,
            )

    def finish(self, *, calls: int = 5, timeout: float = 300) -> int:
        """Calls it until it ends well. Gives back how many calls that took."""
        for call in range(1, calls + 1):
            process = self.start()
            if process.wait(timeout) == 0:
                return call
        raise AssertionError(f"not finished in {calls} calls:\n{self.log.read_text()[-4000:]}")

    def kill_after(self, seconds: float) -> bool:
        """Calls it and ends the driver by SIGKILL; False where it ended before by itself."""
        process = self.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                assert process.returncode == 0, self.log.read_text()[-4000:]
                return False
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
