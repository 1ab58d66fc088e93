"""Models in object stores, copied once to each node that needs them.

A copy is made in a folder of another name, checked, and then renamed, so a copy that is there is
whole; a lock makes a second process wait for the first one's. What is copied is known by the list
of the prefix (names, sizes, ETags): a prefix that has changed is copied again. Where the store
cannot be reached, the newest copy serves. Hub names need none of this: `huggingface_hub` does the
same for them.

    $MPA_RAY_CACHE, else $XDG_CACHE_HOME/mpa_ray, else ~/.cache/mpa_ray
        3f0c....lock                      held while the prefix is copied
        3f0c..../
            newest.json                   which copy that is, and of what
            <its list's hash>/            one copy: config.json, *.safetensors, ...
"""

import hashlib
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow.fs
from filelock import FileLock
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.observability.clean_text import visible_line
from mpa_ray.observability.progress import say
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder, patiently

_NEWEST = "newest.json"
_INDEX = "model.safetensors.index.json"
_PIECE = 16 * 2**20
_FILES_AT_ONCE = 8
# The same weights in other formats, which many checkpoints carry beside their safetensors.
_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".h5", ".msgpack", ".onnx", ".gguf")
# Of these, what may hold Python pickles: to load one is to run its code.
_PICKLED = (".bin", ".pth", ".pt")
# What S3 and Google's store call a file without a place of its own.
_PLACEHOLDER = "/"

Listing = Mapping[str, tuple[int, str]]


class _Index(BaseModel):
    weight_map: dict[str, str]


def copy_of(uri: str) -> Path:
    """The folder of this node's copy of a prefix, copied now where there is none yet.

    Raises:
        ConfigurationError: there is no whole model under the prefix.
        StorageError: the store failed and there is no copy, or this node's disk has no room.
    """
    place = _cache() / hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        listing = list_model(uri)
    except StorageError as error:
        copy = _newest(place)
        if copy is None:
            raise
        say(f"{uri} cannot be reached; the copy on this node is taken ({error})")
        return copy
    copy = place / _digest(listing)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not _is_whole(copy, listing):
            _make(copy, uri, listing)
        Folder.at(place).write_json(_NEWEST, {"uri": uri, "copy": copy.name, "files": listing})
    return copy


def has_copy(uri: str) -> bool:
    """Whether this node has a whole copy, of now or of before."""
    return _newest(_cache() / hashlib.sha256(uri.encode()).hexdigest()[:16]) is not None


def list_model(uri: str) -> dict[str, tuple[int, str]]:
    """The files of a model under a prefix: their names, relative to it, sizes in bytes, and what
    tells a changed one.

    Raises:
        ConfigurationError: no model is there, or one of pickled weights alone.
        StorageError: the store failed.
    """
    found = {
        name: entry
        for name, entry in _listed(uri).items()
        if name and not name.endswith(_PLACEHOLDER)
    }
    if "config.json" not in found:
        raise ConfigurationError(
            f"{uri} holds no config.json; give a prefix with a model in the Hugging Face layout"
        )
    for name in found:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise ConfigurationError(
                f"{uri}: the name {name!r} leads out of its folder; remove that object"
            )
    _refuse_pickled(uri, (name for name in found if "/" not in name))
    if any(name.endswith(".safetensors") for name in found):
        found = {name: entry for name, entry in found.items() if not name.endswith(_OTHER_WEIGHTS)}
    return dict(sorted(found.items()))


def check_whole(folder: Path) -> None:
    """Check that a model's weights are safetensors, all there, and as long as their headers say;
    read nothing of the weights.

    Raises:
        ConfigurationError: they are pickled, or one file is missing, cut off or damaged.
    """
    _refuse_pickled(str(folder), (path.name for path in folder.iterdir()))
    there = {path.name for path in folder.glob("*.safetensors")}
    for name in sorted(there | _named_by(folder / _INDEX)):
        file = folder / name
        if not file.is_file():
            raise ConfigurationError(
                f"{folder}: {_INDEX} names {name}, which is not there; copy the model again"
            )
        tensor_shapes(file)


def _refuse_pickled(place: str, names: Iterable[str]) -> None:
    names = sorted(names)
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise ConfigurationError(
            f"{place}: {pickled[0]} holds weights as Python pickles, which can run code and are not"
            " loaded; where you trust them, load the model with transformers in a place of its own"
            " and save it as safetensors"
        )


def _named_by(index: Path) -> set[str]:
    if not index.is_file():
        return set()
    try:
        return set(_Index.model_validate_json(index.read_bytes()).weight_map.values())
    except ValidationError:
        raise ConfigurationError(f"{index} is no index of weights; copy the model again") from None


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by their names, of its header.

    Raises:
        ConfigurationError: it is no such file, or not as long as its header says.
    """
    try:
        # Opened here too: safe_open says of a file that may not be read that it is not there.
        with file.open("rb"), safe_open(file, framework="np") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.offset_keys()}
    except SafetensorError as error:
        # Its words may hold a piece of the file, of any length.
        said = visible_line(str(error)[:200])
        raise ConfigurationError(
            f"{file} is cut off or damaged: {file.stat().st_size:,} bytes, {said};"
            " copy the model again"
        ) from None


def _cache() -> Path:
    own = os.environ.get("MPA_RAY_CACHE")
    return (
        Path(own).expanduser()
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpa_ray"
    )


def _listed(uri: str) -> dict[str, tuple[int, str]]:
    prefix = uri.rstrip("/") + "/"
    if uri.startswith(s3.SCHEME):
        bucket, key = s3.place_of(prefix)
        try:
            return {
                name.removeprefix(key): (size, etag) for name, size, etag in s3.objects(bucket, key)
            }
        except FileNotFoundError:
            return {}
    folder = Folder.at(uri)
    selector = pyarrow.fs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    infos = patiently(lambda: folder.filesystem.get_file_info(selector), uri)
    return {
        posixpath.relpath(info.path, folder.path): (info.size, str(info.mtime_ns))
        for info in infos
        if info.is_file
    }


def _digest(listing: Listing) -> str:
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _newest(place: Path) -> Path | None:
    """The copy that was made or used last, where it is whole."""
    if not (place / _NEWEST).is_file():
        return None
    newest = json.loads((place / _NEWEST).read_text())
    copy = place / newest["copy"]
    return copy if _is_whole(copy, newest["files"]) else None


def _is_whole(copy: Path, listing: Listing) -> bool:
    return all(
        (copy / name).is_file() and (copy / name).stat().st_size == size
        for name, (size, _) in listing.items()
    )


def _make(copy: Path, uri: str, listing: Listing) -> None:
    for left in copy.parent.glob(".*.part"):
        shutil.rmtree(left)
    total = sum(size for size, _ in listing.values())
    free = shutil.disk_usage(copy.parent).free
    if total > free:
        raise StorageError(
            f"{copy.parent}: {free / 2**30:.1f} GiB are free and {uri} takes {total / 2**30:.1f};"
            " make room, or set MPA_RAY_CACHE to a"
            " folder on a larger disk"
        )
    say(f"copying {uri} to this node: {len(listing)} files, {total / 2**30:.2f} GiB")
    unfinished = copy.parent / f".{uuid.uuid4().hex}.part"
    try:
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            for _ in pool.map(
                partial(_fetch, Folder.at(uri), unfinished),
                listing,
                [size for size, _ in listing.values()],
            ):
                pass
        check_whole(unfinished)
        if copy.exists():
            # Not whole: somebody has changed it.
            shutil.rmtree(copy)
        os.rename(unfinished, copy)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fetch(source: Folder, target: Path, name: str, size: int) -> None:
    patiently(partial(_fetch_once, source, target / name, name, size), f"{source.uri}/{name}")


def _fetch_once(source: Folder, target: Path, name: str, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.filesystem.open_input_stream(posixpath.join(source.path, name)) as stream,
        target.open("wb") as file,
    ):
        while piece := stream.read(_PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if target.stat().st_size != size:
        raise OSError(f"{target.stat().st_size:,} of {size:,} bytes came")
