"""The files under a folder or prefix, as a stream: ten million names are never in memory together.

The order is that of the paths' bytes, as object stores list them, so a folder and its copy in a bucket give the same list.
"""

import heapq
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

import pyarrow.fs

from mpa_ray import s3
from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import is_remote, refuse_secrets, resolve

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


def files(images: str) -> Iterator[File]:
    """The files below `images`, or itself where it is one. Names that begin with a dot are left out, and so is what is in such folders.

    Raises:
        ConfigurationError: there is no such folder, prefix or file.
        StorageError: the list could not be had.
    """
    refuse_secrets(images)
    if images.startswith(s3.SCHEME):
        found = _in_s3(images)
    else:
        filesystem, root = resolve(images)
        found = _by_pyarrow(filesystem, root, images[: images.index("://") + 3]) if is_remote(images) else _local(root)
    empty = True
    for file in found:
        empty = False
        yield file
    if empty and not _is_local_folder(images):
        raise ConfigurationError(f"images={images!r} does not exist; give a folder or prefix of images, Parquet files or tars")


def _is_local_folder(images: str) -> bool:
    return not is_remote(images) and os.path.isdir(resolve(images)[1])


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _in_s3(images: str) -> Iterator[File]:
    bucket, key = s3.place_of(images)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    try:
        found = False
        for name, size in s3.keys(bucket, prefix):
            found = True
            # A key that ends in a slash is the folder that some tools make.
            if not name.endswith("/") and not _is_hidden(name[len(prefix) :]):
                yield File(f"{s3.SCHEME}{bucket}/{name}", size)
        if not found and key:
            yield File(f"{s3.SCHEME}{bucket}/{key}", s3.size(bucket, key))
    except FileNotFoundError:
        return


def _by_pyarrow(filesystem: pyarrow.fs.FileSystem, root: str, scheme: str) -> Iterator[File]:
    """Folder by folder, each folder's entries in memory: pyarrow lists no pages. See docs/inputs.md for gs:// with tens of millions."""
    info = filesystem.get_file_info(root)
    if info.is_file:
        yield File(scheme + root, info.size)
        return
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    is_folder = pyarrow.fs.FileType.Directory
    for entry in sorted(entries, key=lambda item: item.path + "/" * (item.type == is_folder)):
        if entry.base_name.startswith("."):
            continue
        if entry.type == is_folder:
            yield from _by_pyarrow(filesystem, entry.path, scheme)
        else:
            yield File(scheme + entry.path, entry.size)


def _local(root: str) -> Iterator[File]:
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
    """What is in a folder; folders end in a slash, which also puts them where object stores have them. Links to folders are left out."""
    runs: list[Iterator[bytes]] = []
    names: list[bytes] = []
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or (entry.is_symlink() and entry.is_dir()):
                    continue
                names.append(entry.name + b"/" * entry.is_dir())
                if len(names) == _NAMES_IN_MEMORY:
                    runs.append(_written(sorted(names), pieces.enter_context(tempfile.TemporaryFile())))  # noqa: SIM115 - `pieces` closes it
                    names = []
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be listed: {error.strerror}; mend it or move it away") from error
    return heapq.merge(*runs, sorted(names)) if runs else iter(sorted(names))


def _written(names: list[bytes], file: IO[bytes]) -> Iterator[bytes]:
    """The names again, from disk."""
    # A name cannot hold a slash except our own at its end, nor a zero byte; it may hold a line break.
    file.write(b"\0".join(names).replace(b"\n", b"//").replace(b"\0", b"\n"))
    file.seek(0)
    return (line.rstrip(b"\n").replace(b"//", b"\n") for line in file)
