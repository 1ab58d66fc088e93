"""Reading files by range, wherever they lie, so that a failing disk or service is never taken for a
bad file.

What is not there raises FileNotFoundError. Any other failure is tried again, a little later each
time, and then raises StorageError: the rows that are in the file are not at fault and must not be
quarantined for it.
"""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.fs

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import s3
from mpa_ray.storage.folder import is_remote, patiently, resolve

# The name leads nowhere, whatever state the disk is in.
_NOT_THERE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
)


class Ranges(io.RawIOBase):
    """A file to seek and read in, from a function that reads a range. pyarrow and tarfile take it
    as they take any file.

    Args:
        read_range: gives the bytes from a place on, at most so many, fewer only at the end.
        size: of the file, in bytes.
        ahead: at least so many bytes are read at a time, and kept for the next request.
        largest: a request for more bytes at once is refused with `error`; a header must not make us
            read gigabytes.
        error: what is raised then.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: int,
        *,
        ahead: int = 0,
        largest: int | None = None,
        error: type[Exception] = ValueError,
    ) -> None:
        super().__init__()
        self.bytes = size
        self._read_range, self._ahead, self._largest, self._error = (
            read_range,
            ahead,
            largest,
            error,
        )
        self._place = 0
        self._kept, self._kept_from = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.bytes}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.bytes - self._place)
        wanted = left if size is None or size < 0 else min(size, left)
        if self._largest is not None and wanted > self._largest:
            raise self._error(
                f"{wanted} bytes are asked for at byte {self._place}, more than there can be in"
                f" one piece ({self._largest})"
            )
        data = self.at(self._place, wanted)
        self._place += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def at(self, start: int, length: int) -> bytes:
        """The bytes of a range; fewer where the file ends before."""
        if not length:
            return b""
        if not self._ahead:
            return self._read_range(start, length)
        skip = start - self._kept_from
        if skip < 0 or skip + length > len(self._kept):
            self._kept, self._kept_from, skip = (
                self._read_range(start, max(length, self._ahead)),
                start,
                0,
            )
        return self._kept[skip : skip + length]


def whole(path: str, *, limit: int) -> tuple[int, bytes | None]:
    """A file's size and its bytes; None in their place where they are more than `limit`. `path` is
    a local path, or a URI, percent-encoded.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it could not be read.
    """
    if path.startswith(s3.SCHEME):
        return s3.read(*s3.place_of(path), limit=limit)
    with opened(path) as file:
        return file.bytes, None if file.bytes > limit else file.read()


@contextmanager
def opened(path: str, **bounds: Any) -> Iterator[Ranges]:
    """A file to seek and read in; `bounds` are explained at `Ranges`. Raises as `whole` does, also
    while it is read.
    """
    if path.startswith(s3.SCHEME):
        bucket, key = s3.place_of(path)
        yield Ranges(
            lambda start, length: s3.read(bucket, key, start=start, length=length)[1] or b"",
            s3.size(bucket, key),
            **bounds,
        )
    elif is_remote(path):
        yield from _opened_by_pyarrow(path, bounds)
    else:
        descriptor, size = patiently(lambda: _open_local(path), path, not_there=_NOT_THERE)
        try:
            yield Ranges(
                lambda start, length: patiently(lambda: _pread(descriptor, start, length), path),
                size,
                **bounds,
            )
        finally:
            os.close(descriptor)


def _open_local(path: str) -> tuple[int, int]:
    if "\0" in path or ("://" in path and not path.startswith("/")):
        raise FileNotFoundError(
            f"{path!r} is no name of a file here; local paths, s3:// and gs:// are read"
        )
    # Looked at before it is opened: a named pipe without a writer would keep us waiting for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError(f"{path} is no file")
    descriptor = os.open(path, os.O_RDONLY)
    return descriptor, os.fstat(descriptor).st_size


def _pread(descriptor: int, start: int, length: int) -> bytes:
    """One call may give less than it was asked for, and gives at most 2 GiB."""
    pieces = []
    while length and (piece := os.pread(descriptor, length, start)):
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _opened_by_pyarrow(path: str, bounds: dict[str, Any]) -> Iterator[Ranges]:
    try:
        filesystem, place = resolve(path)
    except ConfigurationError as error:
        raise FileNotFoundError(str(error)) from error
    info = patiently(lambda: filesystem.get_file_info(place), path)
    if info.type != pyarrow.fs.FileType.File:
        raise FileNotFoundError(f"{path} is not there")
    with patiently(lambda: filesystem.open_input_file(place), path) as stream:
        yield Ranges(
            lambda start, length: patiently(lambda: stream.read_at(length, start), path),
            info.size,
            **bounds,
        )
