"""Image references: finding them under `--images`, and reading the bytes one stands for.

A reference is a URI that says by itself where the bytes are:

    /data/a.jpg, s3://bucket/a.jpg                      a file
    /data/shard.parquet#row_group=0&row=17              a row of a Parquet file with an image column
    s3://bucket/shard.tar#offset=1536&size=20480&member=a.jpg    a member of a tar (WebDataset)

`%` and `#` in file names are percent-encoded, so that no file name can be taken for a fragment.
"""

import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, quote, unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import EXTENSIONS, UnreadableImage
from mpa_ray.schema import Reason
from mpa_ray.storage import is_remote, resolve

URI_COLUMNS = ("image_uri", "uri", "url", "image_path", "path", "file_name")
IMAGE_COLUMN = "image"
_READERS = 16


def find(images: str) -> Iterator[str]:
    """The references under `images`, in a fixed order, as a stream.

    Raises:
        ConfigurationError: `images` does not exist, or a Parquet file has neither an image nor a URI column.
    """
    filesystem, root = resolve(images)
    info = filesystem.get_file_info(root)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise ConfigurationError(f"images={images!r} does not exist; give a folder or prefix of images, Parquet files or tars")
    prefix = images[: images.index("://") + 3] if is_remote(images) else ""
    files = [root] if info.is_file else _walk(filesystem, root)
    for path in files:
        extension = posixpath.splitext(path)[1].lower()
        uri = quote_path(prefix + path)
        if extension == ".parquet":
            yield from _parquet_references(filesystem, path, uri, prefix)
        elif extension == ".tar":
            yield from _tar_references(filesystem, path, uri)
        elif extension in EXTENSIONS:
            yield uri


def quote_path(path: str) -> str:
    """A path as a reference: only the two characters with a meaning are encoded, so that ordinary paths stay readable."""
    return path.replace("%", "%25").replace("#", "%23")


def _walk(filesystem: pyarrow.fs.FileSystem, root: str) -> Iterator[str]:
    """The files below `root`, folder by folder in the order of their names; hidden ones are left out."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))
        return
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root))
    for entry in sorted(entries, key=lambda item: item.path):
        if entry.base_name.startswith("."):
            continue
        if entry.type == pyarrow.fs.FileType.Directory:
            yield from _walk(filesystem, entry.path)
        elif entry.is_file:
            yield entry.path


def _parquet_references(filesystem: pyarrow.fs.FileSystem, path: str, uri: str, prefix: str) -> Iterator[str]:
    with filesystem.open_input_file(path) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        if IMAGE_COLUMN in names:
            for group in range(file.num_row_groups):
                for row in range(file.metadata.row_group(group).num_rows):
                    yield f"{uri}#row_group={group}&row={row}"
            return
        column = next((name for name in URI_COLUMNS if name in names), None)
        if column is None:
            raise ConfigurationError(
                f"{path}: no column {IMAGE_COLUMN!r} and none of {', '.join(URI_COLUMNS)}; it has {', '.join(names)}. Rename the column of the images"
            )
        for batch in file.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                yield _absolute(value or "", posixpath.dirname(path), prefix)


def _absolute(value: str, folder: str, prefix: str) -> str:
    """A URI column's value as a reference; a relative path is relative to the Parquet file."""
    if is_remote(value):
        return value
    return quote_path(value if value.startswith("/") else prefix + posixpath.join(folder, value))


def _tar_references(filesystem: pyarrow.fs.FileSystem, path: str, uri: str) -> Iterator[str]:
    with filesystem.open_input_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isfile() and posixpath.splitext(member.name)[1].lower() in EXTENSIONS:
                yield f"{uri}#offset={member.offset_data}&size={member.size}&member={quote(member.name, errors='surrogateescape')}"


def fetch(references: list[str], *, max_image_bytes: int) -> list[bytes | UnreadableImage]:
    """The encoded bytes of each reference, in order; in place of those that cannot be read, why.

    Storage that fails for another reason than a missing object raises: the row is not at fault and must not be quarantined for it.
    """
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, reference in enumerate(references):
        by_file[reference.partition("#")[0]].append(index)
    found: list[bytes | UnreadableImage] = [UnreadableImage(Reason.MISSING, "not read")] * len(references)

    def read(item: tuple[str, list[int]]) -> None:
        uri, indices = item
        fragments = [references[index].partition("#")[2] for index in indices]
        for index, content in zip(indices, _read_file(unquote(uri), fragments, max_image_bytes), strict=True):
            found[index] = content

    with ThreadPoolExecutor(min(_READERS, len(by_file) or 1)) as pool:
        list(pool.map(read, by_file.items()))
    return found


def _read_file(path: str, fragments: list[str], max_image_bytes: int) -> list[bytes | UnreadableImage]:
    try:
        filesystem, inner = resolve(path)
        info = filesystem.get_file_info(inner)
        if not info.is_file:
            return [UnreadableImage(Reason.MISSING, f"{path} is not there")] * len(fragments)
        with filesystem.open_input_file(inner) as stream:
            if any(fragment.startswith("row_group=") for fragment in fragments):
                return _read_rows(stream, fragments)
            return [_read_span(stream, fragment, info.size, max_image_bytes) for fragment in fragments]
    except (FileNotFoundError, ConfigurationError, PermissionError) as error:
        return [UnreadableImage(Reason.MISSING, str(error))] * len(fragments)


def _read_span(stream: pa.NativeFile, fragment: str, file_size: int, max_image_bytes: int) -> bytes | UnreadableImage:
    """A whole file, or the bytes of a tar's member. One byte over the bound is read, so that `decode` refuses it and says its size."""
    values = parse_qs(fragment)
    offset, size = (int(values["offset"][0]), int(values["size"][0])) if fragment else (0, file_size)
    if size > max_image_bytes:
        return UnreadableImage(Reason.TOO_MANY_BYTES, f"{size} bytes, at most {max_image_bytes} (max_image_bytes)")
    stream.seek(offset)
    return stream.read(size)


def _read_rows(stream: pa.NativeFile, fragments: list[str]) -> list[bytes | UnreadableImage]:
    """Rows of a Parquet file with an image column: binary, or a struct with `bytes`. Each row group is read once."""
    file = pyarrow.parquet.ParquetFile(stream)
    groups: dict[int, pa.ChunkedArray] = {}
    found: list[bytes | UnreadableImage] = []
    for fragment in fragments:
        values = parse_qs(fragment)
        group, row = int(values["row_group"][0]), int(values["row"][0])
        if group not in groups:
            groups[group] = file.read_row_group(group, columns=[IMAGE_COLUMN]).column(IMAGE_COLUMN)
        value = groups[group][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        found.append(content if isinstance(content, bytes) else UnreadableImage(Reason.MISSING, f"row {row} of row group {group} holds no bytes"))
    return found
