"""The files under a folder or prefix, as a stream: ten million names are never in memory together.

The order is that of the paths' bytes, as object stores list them, so a folder and its copy in a
bucket give the same list.
"""

import heapq
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import IO, NamedTuple

import pyarrow.fs

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder, is_remote, refuse_secrets, resolve

# Names of one local folder that are sorted in memory; a larger folder is sorted in pieces on disk.
_NAMES_IN_MEMORY = 200_000


class File(NamedTuple):
    """A file that was found.

    Attributes:
        path: as it is, nothing encoded; in an object store with its scheme (`s3://bucket/a.png`).
        size: in bytes; of a link that leads nowhere, 0.
    """

    path: str
    size: int


def files(images: str, *, runs: list[str] | None = None) -> Iterator[File]:
    """The files below `images`, or itself where it is one. Names that begin with a dot are left
    out, and so is what is in such folders, and in output folders of runs below `images`: what is in
    those was made of images.

    Args:
        images: a folder, prefix or file.
        runs: gets the output folders that are left out, as they are met.

    Raises:
        ConfigurationError: there is no such folder, prefix or file.
        StorageError: the list could not be had.
    """
    refuse_secrets(images)
    runs = [] if runs is None else runs
    if images.startswith(s3.SCHEME):
        found = _in_s3(images, runs)
    else:
        filesystem, root = resolve(images)
        found = (
            _by_pyarrow(filesystem, root, images[: images.index("://") + 3], runs)
            if is_remote(images)
            else _local(root, runs)
        )
    empty = True
    for file in found:
        empty = False
        yield file
    if empty and not _is_local_folder(images):
        raise ConfigurationError(
            f"images={images!r} does not exist; give a folder or prefix of images, Parquet files"
            " or tars"
        )


def is_run(exists: Callable[[str], bool]) -> bool:
    """Whether a folder is the output of a run: it has a list of images, or a configuration and
    commits. `exists` looks for a name in it.
    """
    return exists("manifest/index.json") or (exists("config.json") and exists("commits"))


def _is_local_folder(images: str) -> bool:
    return not is_remote(images) and os.path.isdir(resolve(images)[1])


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _in_s3(images: str, runs: list[str]) -> Iterator[File]:
    bucket, key = s3.place_of(images)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    try:
        found, inside = False, _InsideRuns(bucket, prefix, runs)
        for name, size in s3.keys(bucket, prefix):
            found = True
            if inside.has(name):
                continue
            # A key that ends in a slash is the folder that some tools make.
            if not name.endswith("/") and not _is_hidden(name[len(prefix) :]):
                yield File(f"{s3.SCHEME}{bucket}/{name}", size)
        if not found and key:
            yield File(f"{s3.SCHEME}{bucket}/{key}", s3.size(bucket, key))
    except FileNotFoundError:
        return


class _InsideRuns:
    """Tells keys of S3, as they come in their order, that are in the output of a run. What makes a
    folder one may come behind other keys of it, so it is asked for once, at the first name that an
    output begins with.
    """

    _FIRST_NAMES = frozenset(
        {
            "annotations",
            "attempts",
            "calls",
            "checkpoints",
            "commits",
            "config.json",
            "evaluation",
            "inputs",
            "manifest",
        }
    )

    def __init__(self, bucket: str, prefix: str, runs: list[str]) -> None:
        self._bucket, self._prefix, self._runs = bucket, prefix, runs
        self._run: str | None = None
        self._asked: dict[str, bool] = {}

    def has(self, key: str) -> bool:
        if self._run is not None and key.startswith(self._run):
            return True
        self._run = next((folder for folder in self._folders(key) if self._is_run(folder)), None)
        if self._run is not None:
            self._runs.append(f"{s3.SCHEME}{self._bucket}/{self._run.rstrip('/')}")
        return self._run is not None

    def _folders(self, key: str) -> Iterator[str]:
        """The folders below the prefix in which a key lies under a name that an output begins
        with.
        """
        parts = key[len(self._prefix) :].split("/")
        return (
            self._prefix + "/".join(parts[:depth]) + "/"
            for depth in range(1, len(parts))
            if parts[depth] in self._FIRST_NAMES
        )

    def _is_run(self, folder: str) -> bool:
        if folder not in self._asked:
            # Folders that are left behind do not come again.
            self._asked = {
                asked: found for asked, found in self._asked.items() if folder.startswith(asked)
            }
            self._asked[folder] = is_run(
                lambda name: next(s3.keys(self._bucket, folder + name), None) is not None
            )
        return self._asked[folder]


def _by_pyarrow(
    filesystem: pyarrow.fs.FileSystem,
    root: str,
    scheme: str,
    runs: list[str],
    *,
    below: bool = False,
) -> Iterator[File]:
    """Folder by folder, each folder's entries in memory: pyarrow lists no pages. See docs/inputs.md
    for gs:// with tens of millions.
    """
    info = filesystem.get_file_info(root)
    if info.is_file:
        yield File(scheme + root, info.size)
        return
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    if (
        below
        and _may_be_run(entry.base_name for entry in entries)
        and is_run(Folder(filesystem, root, scheme + root).exists)
    ):
        runs.append(scheme + root)
        return
    is_folder = pyarrow.fs.FileType.Directory
    for entry in sorted(entries, key=lambda item: item.path + "/" * (item.type == is_folder)):
        if entry.base_name.startswith("."):
            continue
        if entry.type == is_folder:
            yield from _by_pyarrow(filesystem, entry.path, scheme, runs, below=True)
        else:
            yield File(scheme + entry.path, entry.size)


def _is_in(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))


def _may_be_run(names: Iterable[str]) -> bool:
    return bool({"manifest", "config.json"} & set(names))


def _local(root: str, runs: list[str]) -> Iterator[File]:
    if not os.path.isdir(root):
        if os.path.exists(root):
            yield File(root, os.path.getsize(root))
        return
    with ExitStack() as pieces:
        folders = [(root, _sorted_names(root, pieces))]
        while folders:
            folder, names = folders[-1]
            name = next(names, None)
            if name is None:
                folders.pop()
                continue
            path = os.path.join(folder, os.fsdecode(name))
            if name.endswith(b"/"):
                if is_run(partial(_is_in, path)):
                    runs.append(path.rstrip("/"))
                else:
                    folders.append((path, _sorted_names(path, pieces)))
            else:
                yield File(path, _size(path))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        # A link that leads nowhere; who reads it will find out.
        return 0


def _sorted_names(folder: str, pieces: ExitStack) -> Iterator[bytes]:
    """What is in a folder; folders end in a slash, which also puts them where object stores have
    them. Links to folders are left out.
    """
    runs: list[Iterator[bytes]] = []
    names: list[bytes] = []
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in entries:
                is_folder = _is_folder(entry)
                if entry.name.startswith(b".") or (entry.is_symlink() and is_folder):
                    continue
                names.append(entry.name + b"/" * is_folder)
                if len(names) == _NAMES_IN_MEMORY:
                    piece = pieces.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - `pieces` closes it
                    runs.append(_written(sorted(names), piece))
                    names = []
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: cannot be listed: {error.strerror}; fix it or move it away"
        ) from error
    return heapq.merge(*runs, sorted(names)) if runs else iter(sorted(names))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself; who reads it will find out.
        return False


def _written(names: list[bytes], file: IO[bytes]) -> Iterator[bytes]:
    """The names again, from disk."""
    # A name cannot hold a slash except our own at its end, nor a zero byte; it may hold a line
    # break.
    file.write(b"\0".join(names).replace(b"\n", b"//").replace(b"\0", b"\n"))
    file.seek(0)
    return (line.rstrip(b"\n").replace(b"//", b"\n") for line in file)
