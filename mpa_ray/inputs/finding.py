"""Finding images: the references under `--images` and their sizes, as a stream, in a fixed order. What a reference looks like stands in
`mpa_ray.inputs.references`.

Nothing is opened here but Parquet files (footers, and columns of URIs or ids) and tars (headers).
"""

import os
import posixpath
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import EXTENSIONS
from mpa_ray.inputs.listing import File, files
from mpa_ray.inputs.reading import Ranges, opened
from mpa_ray.inputs.references import IMAGE_COLUMN, LINK, OUTSIDE_ROOT, quote_path
from mpa_ray.storage import Folder, is_remote, refuse_secrets

URI_COLUMNS = ("image_uri", "uri", "url", "image_path", "path", "file_name")

# What jobs/pack.py writes: the first at its start, the second when it has finished; and the mark of its Parquet files.
PACK_STARTED, PACK_FINISHED, SHARDS = "pack.json", "index.json", "shards"
PACKED = {b"mpa_ray": b"packed"}

# Tars whose headers are read at a time, and how much of one at once: in an object store many small members are one request.
_TARS_AHEAD = 16
_TAR_BLOCK = 4 * 2**20
_TAR_BLOCK_LOCAL = 64 * 2**10
# Header records (long names, pax attributes) are kilobytes.
_LARGEST_TAR_HEADER = 2**20
# What tarfile and pyarrow raise over damaged files. A failing disk or service raises StorageError instead, which is none of these.
_DAMAGE = (tarfile.TarError, pa.ArrowException, OSError, ValueError, LookupError, OverflowError, RecursionError, MemoryError)
_PROBLEMS_SHOWN = 20


class Found(NamedTuple):
    """An image that was found.

    Attributes:
        reference: where its bytes are.
        size: in bytes; of a row of a Parquet file the mean of its row group; 0 where the listing does not tell.
    """

    reference: str
    size: int


def find(images: str) -> Iterator[Found]:
    """The images under `images`. Of a folder that jobs/pack.py wrote, those of its shards.

    Raises:
        ConfigurationError: `images` does not exist or holds no image; or, after all else was listed, a line for each Parquet file or tar in
            it
            that cannot be read as one.
        StorageError: the list could not be had.
    """
    images = _shards_of(images)
    empty, problems = True, []
    for of_file in _in_order(files(images), Folder.at(images).path):
        try:
            for found in of_file if isinstance(of_file, Iterator) else of_file.result():
                empty = False
                yield found
        except _Unfit as error:
            problems.append(str(error))
    if problems:
        more = [f"... and {len(problems) - _PROBLEMS_SHOWN} more of the kind"] if len(problems) > _PROBLEMS_SHOWN else []
        raise ConfigurationError("\n".join(problems[:_PROBLEMS_SHOWN] + more))
    if empty:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise ConfigurationError(f"images={images!r} holds no image; files that end in {kinds}, .parquet or .tar are taken")


def root_of(images: str) -> str:
    """What the references begin with that `find` gives for what lies below `images`; the reference itself where that is one file."""
    images = _shards_of(images)
    return quote_path(_split_scheme(images)[0] + Folder.at(images).path)


class _Unfit(ValueError):
    """A Parquet file or tar whose images cannot be listed; the message is a line for people."""


def _shards_of(images: str) -> str:
    folder = Folder.at(images)
    if not folder.exists(PACK_STARTED):
        return images
    if not folder.exists(PACK_FINISHED):
        raise ConfigurationError(
            f"images={images!r} holds an unfinished pack; give jobs/pack.py the same command again, it goes on where it stopped"
        )
    return folder.child(SHARDS).uri


def _in_order(found: Iterable[File], root: str) -> Iterator[Iterator[Found] | Future[list[Found]]]:
    """The images of each file; tars are read some files ahead of their turn."""
    waiting: deque[Iterator[Found] | Future[list[Found]]] = deque()
    with ThreadPoolExecutor(_TARS_AHEAD) as pool:
        for file in found:
            extension = posixpath.splitext(file.path)[1].lower()
            if extension == ".tar":
                waiting.append(pool.submit(_listed_tar, file.path))
            elif extension == ".parquet":
                waiting.append(_of_parquet(file.path, root))
            elif extension in EXTENSIONS:
                waiting.append(iter((Found(quote_path(file.path), file.size),)))
            if len(waiting) > _TARS_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _listed_tar(path: str) -> list[Found]:
    uri = quote_path(path)
    block = _TAR_BLOCK if is_remote(path) else _TAR_BLOCK_LOCAL
    try:
        with opened(uri if is_remote(path) else path, ahead=block, largest=_LARGEST_TAR_HEADER, error=tarfile.ReadError) as stream:
            return list(_of_tar(stream, uri))
    except _DAMAGE as error:
        raise _Unfit(f"{uri}: cannot be read as tar: {error}; mend or remove the file") from error


def _of_tar(stream: Ranges, uri: str) -> Iterator[Found]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            # tarfile would keep every member.
            archive.members.clear()
            if posixpath.splitext(member.name)[1].lower() not in EXTENSIONS:
                continue
            name = quote(member.name, errors="surrogateescape")
            if _leaves(member.name):
                yield Found(f"{uri}#header={member.offset}&member={name}&{OUTSIDE_ROOT}", 0)
            elif member.isfile() and not member.issparse():
                yield Found(f"{uri}#offset={member.offset_data}&size={member.size}&member={name}", member.size)
            elif not member.isdir():
                yield Found(f"{uri}#header={member.offset}&member={name}&{LINK}", 0)
        # tarfile takes a damaged header for the end, and the members behind it would be lost without a word.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _leaves(name: str) -> bool:
    """Whether a name points out of the folder it is taken to be in."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def _of_parquet(path: str, root: str) -> Iterator[Found]:
    uri = quote_path(path)
    try:
        with opened(uri if is_remote(path) else path) as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            yield from _of_rows(file, path, uri, root)
    except _Unfit:
        raise
    except _DAMAGE as error:
        raise _Unfit(f"{uri}: cannot be read as parquet: {error}; mend or remove the file") from error


def _of_rows(file: pyarrow.parquet.ParquetFile, path: str, uri: str, root: str) -> Iterator[Found]:
    names = file.schema_arrow.names
    if IMAGE_COLUMN in names:
        ids = _packed_ids(file, uri)
        for group, (rows, size) in enumerate(_row_groups(file.metadata)):
            for row in range(rows):
                yield Found(f"{uri}#row_group={group}&row={row}" + (next(ids) if ids else ""), size)
        return
    column = next((name for name in URI_COLUMNS if name in names), None)
    if column is None:
        raise _Unfit(
            f"{uri}: no column {IMAGE_COLUMN!r} and none of {', '.join(URI_COLUMNS)}; it has {', '.join(names)}."
            " Rename the column of the images"
        )
    scheme, folder = _split_scheme(posixpath.dirname(path))
    roots = [folder, root] if scheme else [os.path.realpath(place) for place in (folder, root)]
    number = 0
    for batch in file.iter_batches(columns=[column]):
        try:
            # As bytes, because Parquet does not make sure that its strings are UTF-8.
            values = batch.column(0).cast(pa.large_binary()).to_pylist()
        except pa.ArrowNotImplementedError:
            kind = batch.column(0).type
            raise _Unfit(
                f"{uri}: column {column!r} holds {kind} and not URIs; rename it, or call the column of the images {IMAGE_COLUMN!r}"
            ) from None
        for value in values:
            text = (value or b"").decode("utf-8", "surrogateescape")
            try:
                refuse_secrets(text)
            except ConfigurationError as error:
                raise _Unfit(f"{uri}, column {column!r}, row {number}: {error}") from None
            yield Found(_absolute(text, folder, scheme, roots) or f"{uri}#uri_row={number}", 0)
            number += 1


def _row_groups(footer: pyarrow.parquet.FileMetaData) -> Iterator[tuple[int, int]]:
    """Of each row group how many rows it has, and the bytes of an image of them: those of the image column, shared out evenly."""
    paths = [footer.schema.column(leaf).path for leaf in range(footer.num_columns)]
    # An image column that is a struct has a leaf for each of its fields: image.bytes, image.path.
    leaves = [leaf for leaf, path in enumerate(paths) if path.split(".")[0] == IMAGE_COLUMN]
    for group in map(footer.row_group, range(footer.num_row_groups)):
        held = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
        yield group.num_rows, held // max(1, group.num_rows)


def _packed_ids(file: pyarrow.parquet.ParquetFile, uri: str) -> Iterator[str] | None:
    """What the references of a packed shard's images end in: the id and the draw key that each had as a loose file (older shards have no
    keys). None for any other file, whatever it calls an `image_id`."""
    metadata = file.schema_arrow.metadata or {}
    if not metadata.items() >= PACKED.items():
        return None

    columns = [name for name in ("image_id", "draw_key") if name in file.schema_arrow.names]

    def ids() -> Iterator[str]:
        for batch in file.iter_batches(columns=columns):
            for packed in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                for name, value in zip(columns, packed, strict=True):
                    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
                        raise _Unfit(f"{uri}: {value!r} is no {name}; the shard was changed since it was packed: pack it again")
                yield "".join(map("&{}={}".format, ("image_id", "key"), packed))

    return ids()


def _split_scheme(path: str) -> tuple[str, str]:
    """`s3://` and the rest; nothing and the path where it is local."""
    return (path[: path.index("://") + 3], path[path.index("://") + 3 :]) if is_remote(path) else ("", path)


def _absolute(value: str, folder: str, prefix: str, roots: list[str]) -> str:
    """A URI column's value as a reference; a relative path is relative to the Parquet file.

    A path must lie below one of `roots`, whatever `..` and symbolic links are in it: a list from elsewhere must not make us read any file
    of this machine, or of a bucket that was not named. Empty where the value names nothing.
    """
    scheme, separator, rest = value.partition("://")
    if separator and scheme != "file":
        bucket = rest.partition("/")[0]
        return quote_path(value) + ("" if _is_below(posixpath.normpath(rest), bucket) or not is_remote(value) else f"#{OUTSIDE_ROOT}")
    value = rest if separator else value
    if not value or "\0" in value:
        return ""
    if prefix and not value.startswith("/"):
        path = posixpath.join(folder, value)
        return quote_path(prefix + path) + ("" if any(_is_below(posixpath.normpath(path), root) for root in roots) else f"#{OUTSIDE_ROOT}")
    path = os.path.abspath(os.path.join(folder, value))
    inside = not prefix and any(_is_below(os.path.realpath(path), root) for root in roots)
    return quote_path(path) + ("" if inside else f"#{OUTSIDE_ROOT}")


def _is_below(path: str, root: str) -> bool:
    return path.startswith(f"{root.rstrip('/')}/")
