"""Where things are kept: one folder, local or in an object store, with whole-or-nothing writes.

A reader never sees half a file: locally a file is written under a temporary name and moved; object stores show an object when it is closed.
"""

import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError

REMOTE_SCHEMES = ("s3://", "gs://")
_PIECE = 16 * 2**20


def is_remote(uri: str) -> bool:
    """Whether `uri` points into an object store."""
    return uri.startswith(REMOTE_SCHEMES)


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of `uri` and the path in it.

    Raises:
        ConfigurationError: the scheme is none of local, s3:// and gs://, it is no URI, or there are keys or options in it.
    """
    refuse_secrets(uri)
    if is_remote(uri):
        if "?" in uri:
            place = uri.partition("?")[0]
            raise ConfigurationError(
                f"{place}?...: options in a URI are not taken (a ? in a name is written %3F); an endpoint goes into AWS_ENDPOINT_URL"
            )
        try:
            # Spaces and the like are encoded for Arrow; what is encoded already stays so.
            return pyarrow.fs.FileSystem.from_uri(quote(uri, safe="%/:@!$&'()*+,;=~?#"))
        except pa.ArrowInvalid as error:
            raise ConfigurationError(f"{uri!r}: {error}") from error
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise ConfigurationError(f"{uri!r}: the scheme {scheme}:// is not supported; use a local path, s3:// or gs://")
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))


def refuse_secrets(uri: str) -> None:
    """URIs are stored and printed, so they hold no keys.

    Raises:
        ConfigurationError: a user or password is in it; the message does not repeat them.
    """
    scheme, separator, rest = uri.partition("://")
    _, at, host = rest.partition("/")[0].rpartition("@")
    if separator and at and scheme != "file":
        raise ConfigurationError(
            f"{scheme}://...@{host}: there is a user or password in the URI, which would be stored and printed; remove it, and put"
            " credentials into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )


@dataclass(frozen=True)
class Folder:
    """A folder or prefix, and the few things we do in it. Picklable, so that workers get it as it is."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> "Folder":
        """The folder at a local path, s3:// or gs:// URI; nothing is created."""
        filesystem, path = resolve(str(uri))
        return cls(filesystem, path.rstrip("/"), str(uri).rstrip("/") if is_remote(str(uri)) else path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def child(self, name: str) -> "Folder":
        return Folder(self.filesystem, posixpath.join(self.path, name), posixpath.join(self.uri, name))

    def exists(self, name: str = "") -> bool:
        return self.filesystem.get_file_info(posixpath.join(self.path, name).rstrip("/")).type != pyarrow.fs.FileType.NotFound

    def names(self, suffix: str = "") -> list[str]:
        """The names of the files directly in the folder that end in `suffix`, sorted; none where the folder is not there.

        Raises:
            ConfigurationError: there is a file in the folder's place.
        """
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except NotADirectoryError:
            raise ConfigurationError(f"{self.uri} is a file; give a folder") from None
        return sorted(
            info.base_name for info in infos if info.is_file and info.base_name.endswith(suffix) and not info.base_name.startswith(".")
        )

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Writes a whole file or nothing; replaces an older one."""
        if self.is_local:
            with self.writing(name) as stream:
                stream.write(data)
        else:
            with self.filesystem.open_output_stream(posixpath.join(self.path, name)) as stream:
                stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write in pieces: whole when the context ends well, and nothing where it does not. For an object store it waits on local
        disk."""
        target = posixpath.join(self.path, name)
        if not self.is_local:
            with tempfile.TemporaryFile() as waiting:
                yield waiting
                waiting.seek(0)
                with self.filesystem.open_output_stream(target) as stream:
                    while piece := waiting.read(_PIECE):
                        stream.write(piece)
            return
        parent, base = posixpath.split(target)
        os.makedirs(parent, exist_ok=True)
        temporary = posixpath.join(parent, f".{base}.{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(posixpath.join(self.path, name)) as stream:
            return stream.read()

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_table(self, name: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
        """Writes a Parquet file, whole or not at all."""
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
        self.write_bytes(name, sink.getvalue())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        # ParquetFile and not read_table: the latter would take `key=value` in a folder's name for a partition column.
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as stream:
            return pyarrow.parquet.ParquetFile(stream).read(columns=columns)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The Parquet files of the folder, one table each, in the order of their names."""
        for name in self.names(".parquet"):
            yield self.read_table(name, columns)

    def delete(self, name: str) -> None:
        """Deletes a file; one that is not there is as good as deleted."""
        if self.exists(name):
            self.filesystem.delete_file(posixpath.join(self.path, name))

    def delete_folder(self) -> None:
        if self.exists():
            self.filesystem.delete_dir(self.path)

    def copy_from(self, other: "Folder") -> None:
        """Copies the content of a folder, wherever it is, into this one."""
        self.filesystem.create_dir(self.path, recursive=True)
        pyarrow.fs.copy_files(other.path, self.path, source_filesystem=other.filesystem, destination_filesystem=self.filesystem)

    def upload(self, local: str | Path) -> None:
        """Copies a local folder's content into this one."""
        self.filesystem.create_dir(self.path, recursive=True)
        pyarrow.fs.copy_files(str(local), self.path, source_filesystem=pyarrow.fs.LocalFileSystem(), destination_filesystem=self.filesystem)

    def download(self, local: str | Path) -> None:
        """Copies this folder's content into a local one."""
        Path(local).mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(self.path, str(local), source_filesystem=self.filesystem, destination_filesystem=pyarrow.fs.LocalFileSystem())
