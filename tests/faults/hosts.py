"""Hosts of the tests' own: network namespaces of this machine, joined by a bridge, each with a Ray
node; one can be cut off by its cable.

They share the machine's disk and kernel, so that a host that is cut off continues working, unheard,
as a real one does.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).parent / "ray")
# GCS gives a host up after three seconds without an answer, and connections to it after the time
# that the images in cluster/ set: without that, whoever waits for an answer of a lost host waits
# until the kernel gives up, two minutes and more.
HEALTH = {
    "RAY_grpc_client_keepalive_time_ms": "20000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True, kw_only=True)
class Host:
    """One namespace and the node in it."""

    name: str
    cable: str
    address: str

    def inside(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def connect(self, connected: bool) -> None:
        _ip("link", "set", self.cable, "up" if connected else "down")

    def processes(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def runs(self, title: str) -> bool:
        """Whether a process whose title has `title` in it runs here."""
        for pid in self.processes():
            try:
                if title.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
            except (FileNotFoundError, ProcessLookupError):
                continue
        return False

    def kill_all(self) -> None:
        for _ in range(50):
            pids = self.processes()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        raise AssertionError(f"{self.name}: processes stay")


@dataclass(kw_only=True)
class Network:
    """Hosts `head`, and as many workers as were asked for."""

    folder: Path
    environment: dict[str, str]
    hosts: list[Host] = field(default_factory=list)
    bridge: str = f"mpabr{os.getpid() % 10**6}"

    def up(self, count: int) -> None:
        """Skips the test where the system allows no namespaces."""
        if os.geteuid() or not shutil.which("ip"):
            pytest.skip("hosts in network namespaces need root and iproute2")
        tried = subprocess.run(
            ["ip", "link", "add", self.bridge, "type", "bridge"],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            pytest.skip(f"this system allows no network namespaces: {tried.stderr.strip()}")
        _ip("link", "set", self.bridge, "up")
        for number in range(count):
            host = Host(
                name=f"{self.bridge}-{number}",
                cable=f"{self.bridge}v{number}",
                address=f"10.213.77.{number + 1}",
            )
            _ip("netns", "add", host.name)
            self.hosts.append(host)
            _ip(
                "link",
                "add",
                host.cable,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.name,
            )
            _ip("link", "set", host.cable, "master", self.bridge, "up")
            for words in (
                ["addr", "add", f"{host.address}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(host.inside(["ip", *words]), check=True)

    def down(self) -> None:
        for host in self.hosts:
            host.kill_all()
            # The kernel keeps a namespace for a while after its last process, and the cable with
            # it.
            subprocess.run(["ip", "link", "del", host.cable], check=False, capture_output=True)
            _ip("netns", "del", host.name)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:6379"

    def start(self, host: Host, *, cpus: int, own_disk: Path | None = None) -> None:
        """A Ray node on `host`, the head on the first; back when it is there. Under `own_disk` it
        has an empty disk of its own.
        """
        head = host is self.hosts[0]
        command = [
            RAY,
            "start",
            "--block",
            f"--node-ip-address={host.address}",
            f"--num-cpus={cpus}",
            "--object-store-memory=200000000",
        ]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += (
            ["--head", "--port=6379", f"--temp-dir={self.folder}", "--include-dashboard=false"]
            if head
            else [f"--address={self.address}"]
        )
        if own_disk:
            command = [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"mount -t tmpfs none '{own_disk}' && exec \"$@\"",
                "sh",
                *command,
            ]
        log = self.folder / f"{host.name}.log"
        with log.open("wb") as stream:
            node = subprocess.Popen(
                host.inside(command),
                env=os.environ | HEALTH | self.environment,
                stdout=stream,
                stderr=stream,
            )
        for _ in range(600):
            if "Ray runtime started" in log.read_text():
                return
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)
        raise AssertionError(log.read_text())


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
