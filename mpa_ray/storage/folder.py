"""Where things are kept: one folder, local or in an object store, with whole-or-nothing writes.

A reader never sees half a file: locally a file is written under a temporary name and moved; object
stores show an object when it is closed.
"""

import errno
import json
import os
import posixpath
import random
import re
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.schema import absolute
from mpa_ray.storage import s3

REMOTE_SCHEMES = ("s3://", "gs://")
_PIECE = 16 * 2**20
_ATTEMPTS = 5
# pyarrow asks a busy S3 for some 6 s each time: with the waits between, a minute of 503 is sat out.
_REMOTE_ATTEMPTS = 7
# Requests that wait for the storage at a time.
_READERS = 32

# What `_temporary` names; a writer that is still at it has touched its file within this time.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_UNFINISHED_AFTER_S = 24 * 3600.0

S = TypeVar("S")
T = TypeVar("T")


def is_remote(uri: str) -> bool:
    """Whether `uri` points into an object store."""
    return uri.startswith(REMOTE_SCHEMES)


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of `uri` and the path in it.

    Raises:
        ConfigurationError: the scheme is none of local, s3:// and gs://, it is no URI, or there are
            keys or options in it.
    """
    refuse_secrets(uri)
    if is_remote(uri):
        if "?" in uri:
            place = uri.partition("?")[0]
            raise ConfigurationError(
                f"{place}?...: options in a URI are not taken (a ? in a name is written %3F); an"
                " endpoint goes into AWS_ENDPOINT_URL"
            )
        try:
            # Spaces and the like are encoded for Arrow; what is encoded already stays so.
            return pyarrow.fs.FileSystem.from_uri(quote(uri, safe="%/:@!$&'()*+,;=~?#"))
        except pa.ArrowInvalid as error:
            raise ConfigurationError(f"{uri!r}: {error}") from error
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise ConfigurationError(
            f"{uri!r}: the scheme {scheme}:// is not supported; use a local path, s3:// or gs://"
        )
    return pyarrow.fs.LocalFileSystem(), absolute(uri)


def refuse_secrets(uri: str) -> None:
    """URIs are stored and printed, so they hold no keys.

    Raises:
        ConfigurationError: a user or password is in it; the message does not repeat them.
    """
    scheme, separator, rest = uri.partition("://")
    _, at, host = rest.partition("/")[0].rpartition("@")
    if separator and at and scheme != "file":
        raise ConfigurationError(
            f"{scheme}://...@{host}: there is a user or password in the URI, which would be stored"
            " and printed; remove it, and put"
            " credentials into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
            " GOOGLE_APPLICATION_CREDENTIALS)"
        )


class Entry(NamedTuple):
    """A file of a folder.

    Attributes:
        name: in the folder.
        size: in bytes.
        etag: S3's, which changes with the content; empty where the storage tells none.
    """

    name: str
    size: int
    etag: str


def _is_taken(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


@dataclass(frozen=True)
class Folder:
    """A folder or prefix, and the few things we do in it. Picklable, so that workers get it as it
    is.
    """

    filesystem: pyarrow.fs.FileSystem
    path: str
    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> "Folder":
        """The folder at a local path, s3:// or gs:// URI; nothing is created."""
        filesystem, path = resolve(str(uri))
        return cls(
            filesystem,
            path.rstrip("/"),
            str(uri).rstrip("/") if is_remote(str(uri)) else path.rstrip("/"),
        )

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def _patiently(self, work: Callable[[], T], name: str = "") -> T:
        # A local disk that fails once is full, broken or read-only; a service may only be busy.
        return patiently(
            work,
            posixpath.join(self.uri, name).rstrip("/"),
            attempts=1 if self.is_local else _REMOTE_ATTEMPTS,
        )

    def child(self, name: str) -> "Folder":
        return Folder(
            self.filesystem, posixpath.join(self.path, name), posixpath.join(self.uri, name)
        )

    def exists(self, name: str = "") -> bool:
        path = posixpath.join(self.path, name).rstrip("/")
        return (
            self._patiently(lambda: self.filesystem.get_file_info(path), name).type
            != pyarrow.fs.FileType.NotFound
        )

    def names(self, suffix: str = "") -> list[str]:
        """The names of the files directly in the folder that end in `suffix`, sorted; none where
        the folder is not there.

        Raises:
            ConfigurationError: there is a file in the folder's place.
        """
        return sorted(info.base_name for info in self._files(suffix))

    def entries(self, suffix: str = "") -> list[Entry]:
        """What the storage tells of the files that `names` names, in the same order. Raises what
        `names` does.
        """
        if not self.uri.startswith(s3.SCHEME):
            return sorted(Entry(info.base_name, info.size, "") for info in self._files(suffix))
        bucket, _, prefix = f"{self.path}/".partition("/")
        try:
            found = [
                Entry(key[len(prefix) :], size, etag)
                for key, size, etag in s3.objects(bucket, prefix)
            ]
        except FileNotFoundError:
            return []
        return sorted(
            entry for entry in found if "/" not in entry.name and _is_taken(entry.name, suffix)
        )

    def _files(self, suffix: str) -> list[pyarrow.fs.FileInfo]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        if self.is_local and os.path.isfile(self.path):
            raise ConfigurationError(f"{self.uri} is a file; give a folder")
        infos = self._patiently(lambda: self.filesystem.get_file_info(selector))
        return [info for info in infos if info.is_file and _is_taken(info.base_name, suffix)]

    def folders(self) -> list[str]:
        """The names of the folders directly in this one, sorted; none where it is not there."""
        infos = self._patiently(
            lambda: self.filesystem.get_file_info(
                pyarrow.fs.FileSelector(self.path, allow_not_found=True)
            )
        )
        return sorted(
            info.base_name for info in infos if info.type == pyarrow.fs.FileType.Directory
        )

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a whole file or nothing; replace an older one.

        Raises:
            StorageError: the disk or the service failed, and again when asked again.
        """
        self._patiently(lambda: self._write(name, data), name)

    def _write(self, name: str, data: bytes | pa.Buffer) -> None:
        if self.is_local:
            with self.writing(name) as stream:
                stream.write(data)
        else:
            with self.filesystem.open_output_stream(posixpath.join(self.path, name)) as stream:
                stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write in pieces: whole when the context ends well, and nothing where it does
        not. For an object store it waits on local disk.
        """
        target = posixpath.join(self.path, name)
        if not self.is_local:
            with tempfile.TemporaryFile() as waiting:
                yield waiting
                self._patiently(lambda: self._upload(waiting, target), name)
            return
        with _temporary(target) as temporary:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)

    def _upload(self, waiting: IO[bytes], target: str) -> None:
        waiting.seek(0)
        with self.filesystem.open_output_stream(target) as stream:
            while piece := waiting.read(_PIECE):
                stream.write(piece)

    def read_bytes(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none of the name.
            StorageError: the disk or the service failed, and again when asked again.
        """
        return self._patiently(lambda: self._read(name), name)

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(posixpath.join(self.path, name)) as stream:
            return stream.read()

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, _as_json(value))

    def create_json(self, name: str, value: Any) -> bool:
        """Write a file where there is none, and say whether it did.

        Locally and in S3 one of several writers succeeds. pyarrow has no such request for Google's
        store: there two writers within a moment may both succeed.

        Raises:
            StorageError: the disk or the service failed, and again when asked again.
        """
        data = _as_json(value)
        if self.uri.startswith(s3.SCHEME):
            bucket, _, key = posixpath.join(self.path, name).partition("/")
            return s3.create(bucket, key, data)
        return self._patiently(lambda: self._create(name, data), name)

    def _create(self, name: str, data: bytes) -> bool:
        if not self.is_local:
            if self.exists(name):
                return False
            self._write(name, data)
            return True
        target = posixpath.join(self.path, name)
        with _temporary(target) as temporary:
            temporary.write_bytes(data)
            try:
                # Unlike a rename, a link does not replace what is there.
                os.link(temporary, target)
            except FileExistsError:
                return False
        return True

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_table(self, name: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
        """Write a Parquet file, whole or not at all."""
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
        self.write_bytes(name, sink.getvalue())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file, or some of its columns. Raises as `read_bytes` does."""
        return self.read_parquet(name, lambda file: file.read(columns=columns))

    def read_parquet(self, name: str, read: Callable[[pyarrow.parquet.ParquetFile], T]) -> T:
        """What `read` takes from an opened Parquet file: its footer, a row group. `read` may be
        called several times.

        Raises as `read_bytes` does.
        """
        return self._patiently(lambda: self._read_parquet(name, read), name)

    def _read_parquet(self, name: str, read: Callable[[pyarrow.parquet.ParquetFile], T]) -> T:
        # ParquetFile and not read_table: the latter would take `key=value` in a folder's name for a
        # partition column.
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as stream:
            return read(pyarrow.parquet.ParquetFile(stream))

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The Parquet files of the folder, one table each, in the order of their names; many are
        read at a time.
        """
        return in_parallel(partial(self.read_table, columns=columns), self.names(".parquet"))

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is as good as deleted."""
        if self.exists(name):
            self._patiently(
                lambda: self.filesystem.delete_file(posixpath.join(self.path, name)), name
            )

    def delete_folder(self) -> None:
        if self.exists():
            self._patiently(lambda: self.filesystem.delete_dir(self.path))

    def delete_unfinished(self) -> None:
        """Delete what writers that were killed have left in this folder and those below it. Files
        in object stores leave nothing.
        """
        if not self.is_local:
            return
        too_old = time.time() - _UNFINISHED_AFTER_S
        for parent, _, names in os.walk(self.path):
            for path in (Path(parent, name) for name in names if _TEMPORARY.fullmatch(name)):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < too_old:
                        path.unlink()

    def copy_from(self, other: "Folder") -> None:
        """Copy the content of a folder, wherever it is, into this one."""
        self.filesystem.create_dir(self.path, recursive=True)
        _copy(other, self)

    def upload(self, local: str | Path) -> None:
        """Copy a local folder's content into this one."""
        self.copy_from(Folder.at(local))

    def download(self, local: str | Path) -> None:
        """Copy this folder's content into a local one."""
        Folder.at(local).copy_from(self)


def _copy(source: Folder, target: Folder) -> None:
    def copying() -> None:
        pyarrow.fs.copy_files(
            source.path,
            target.path,
            source_filesystem=source.filesystem,
            destination_filesystem=target.filesystem,
        )

    patiently(copying, f"{source.uri} to {target.uri}")


@contextmanager
def _temporary(target: str) -> Iterator[Path]:
    """A name beside `target`, hidden and used by nobody else; what is under it afterwards is
    deleted.
    """
    parent, base = posixpath.split(target)
    os.makedirs(parent, exist_ok=True)
    temporary = Path(parent, f".{base}.{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def in_parallel(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`work` on each of `items`, in their order. Some 32 run at a time, and results wait for
    nothing but their turn.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def patiently(
    work: Callable[[], T],
    what: str,
    *,
    not_there: tuple[int, ...] = (errno.ENOENT,),
    attempts: int = _ATTEMPTS,
) -> T:
    """`work()`, tried again and again over some seconds.

    Args:
        work: what to do; doing it again must do no harm.
        what: the file or folder, for people.
        not_there: the error numbers that say that the name leads nowhere.
        attempts: how often it is tried.

    Raises:
        FileNotFoundError: at once, where there is nothing of the name.
        StorageError: it failed each time.
    """
    for attempt in range(attempts):
        try:
            return work()
        except OSError as error:
            if error.errno in not_there or isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{what}: {error.strerror or error}") from error
            if attempt == attempts - 1:
                tried = f"; tried {attempts} times" if attempts > 1 else ""
                raise StorageError(
                    f"{what}: {error}{tried}. Fix the storage and give the same command again"
                ) from error
            time.sleep(random.uniform(0.5, 1.0) * 2**attempt)
    raise AssertionError("unreachable")
