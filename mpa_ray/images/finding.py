"""Finding images: the references under `--images` and their sizes, as a stream, in a fixed order.
What a reference looks like stands in `mpa_ray.images.references`.

Nothing is opened here but Parquet files (footers, and columns of URIs or ids) and tars (headers).
"""

import posixpath
import re
import tarfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import uri_lists
from mpa_ray.images.decode import EXTENSIONS
from mpa_ray.images.listing import File, files, is_run
from mpa_ray.images.references import IMAGE_COLUMN, LINK, OUTSIDE_ROOT, local_path, quote_path
from mpa_ray.images.uri_lists import Roots, UnfitFile
from mpa_ray.observability.progress import say
from mpa_ray.storage.folder import Folder, is_remote
from mpa_ray.storage.ranges import Ranges, opened

# Of a run: what says where its images are.
MANIFEST_INDEX = "manifest/index.json"
# What jobs/pack.py writes: the first at its start, the second when it has finished; and the mark of
# its Parquet files.
PACK_STARTED, PACK_FINISHED, SHARDS = "pack.json", "index.json", "shards"
PACKED = {b"mpa_ray": b"packed"}

# Tars whose headers are read at a time, and how much of one at once: in an object store many small
# members are one request.
_TARS_AHEAD = 16
_TAR_BLOCK = 4 * 2**20
_TAR_BLOCK_LOCAL = 64 * 2**10
# Header records (long names, pax attributes) are kilobytes.
_LARGEST_TAR_HEADER = 2**20
# What tarfile and pyarrow raise over damaged files. A failing disk or service raises StorageError
# instead, which is none of these.
_DAMAGE = (
    tarfile.TarError,
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
    MemoryError,
)
_PROBLEMS_SHOWN = 20
_EXTENSIONS_SHOWN = 5
# Read at a time behind the last member of a tar.
_END_READ = 2**19


class Found(NamedTuple):
    """An image that was found.

    Attributes:
        reference: where its bytes are.
        size: in bytes; of a row of a Parquet file the mean of its row group; 0 where the listing
            does not tell.
    """

    reference: str
    size: int


def find(images: str, *, image_roots: tuple[str, ...] = ()) -> Iterator[Found]:
    """The images under `images`. Of a folder that jobs/pack.py wrote, those of its shards.

    Args:
        images: a folder, prefix or file.
        image_roots: further folders and prefixes that lists of URIs may name.

    Raises:
        ConfigurationError: `images` does not exist or holds no image; or, after all else was
            listed, a line for each Parquet file or tar in it that cannot be read as one.
        StorageError: the list could not be had.
    """
    images = _shards_of(images)
    if is_run(Folder.at(images).exists):
        raise ConfigurationError(
            f"images={images!r} is the output of a run; give the folder of its images, or its"
            " quarantine/"
        )
    empty, problems, others, runs = True, [], Counter[str](), list[str]()
    for of_file in _in_order(files(images, runs=runs), images, image_roots, others):
        try:
            for found in of_file if isinstance(of_file, Iterator) else of_file.result():
                empty = False
                yield found
        except UnfitFile as error:
            problems.append(str(error))
    if problems:
        more = (
            [f"... and {len(problems) - _PROBLEMS_SHOWN} more of the kind"]
            if len(problems) > _PROBLEMS_SHOWN
            else []
        )
        raise ConfigurationError(*problems[:_PROBLEMS_SHOWN], *more)
    if runs:
        say(
            f"listing {images}: {len(runs):,} folders of runs in it are left out, such as {runs[0]}"
        )
    if others:
        named = ", ".join(
            f"{extension} {count:,}" for extension, count in others.most_common(_EXTENSIONS_SHOWN)
        )
        say(
            f"listing {images}: {others.total():,} files are left out by their names ({named});"
            " images, .parquet and .tar are taken"
        )
    if empty:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise ConfigurationError(
            f"images={images!r} holds no image; files that end in {kinds}, .parquet or .tar are"
            " taken"
        )


def root_of(images: str) -> str:
    """What the references begin with that `find` gives for what lies below `images`; the reference
    itself where that is one file.
    """
    return quote_path(uri_lists.place_of(_shards_of(images)))


def _shards_of(images: str) -> str:
    folder = Folder.at(images)
    if not folder.exists(PACK_STARTED):
        return images
    if not folder.exists(PACK_FINISHED):
        raise ConfigurationError(
            f"images={images!r} holds an unfinished pack; give jobs/pack.py the same command"
            " again, it resumes where it stopped"
        )
    return folder.child(SHARDS).uri


def _in_order(
    found: Iterable[File], images: str, image_roots: tuple[str, ...], others: Counter[str]
) -> Iterator[Iterator[Found] | Future[list[Found]]]:
    """The images of each file; tars are read some files ahead of their turn. `others` counts what
    is left out, by extension.
    """
    waiting: deque[Iterator[Found] | Future[list[Found]]] = deque()
    with ThreadPoolExecutor(_TARS_AHEAD) as pool:
        for file in found:
            extension = posixpath.splitext(file.path)[1].lower()
            if extension == ".tar":
                waiting.append(pool.submit(_listed_tar, file.path))
            elif extension == ".parquet":
                waiting.append(_of_parquet(file.path, images, image_roots))
            elif extension in EXTENSIONS:
                waiting.append(iter((Found(quote_path(file.path), file.size),)))
            else:
                others[extension or "no extension"] += 1
            if len(waiting) > _TARS_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _listed_tar(path: str) -> list[Found]:
    uri = quote_path(path)
    block = _TAR_BLOCK if is_remote(path) else _TAR_BLOCK_LOCAL
    try:
        with opened(
            uri if is_remote(path) else path,
            ahead=block,
            largest=_LARGEST_TAR_HEADER,
            error=tarfile.ReadError,
        ) as stream:
            return list(_of_tar(stream, uri))
    except _DAMAGE as error:
        raise UnfitFile(f"{uri}: cannot be read as tar: {error}; fix or remove the file") from error


def _of_tar(stream: Ranges, uri: str) -> Iterator[Found]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            # tarfile would keep every member.
            archive.members.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
            if posixpath.splitext(member.name)[1].lower() not in EXTENSIONS:
                continue
            name = quote(member.name, errors="surrogateescape")
            if _leaves(member.name):
                yield Found(f"{uri}#header={member.offset}&member={name}&{OUTSIDE_ROOT}", 0)
            elif member.isfile() and not member.issparse():
                yield Found(
                    f"{uri}#offset={member.offset_data}&size={member.size}&member={name}",
                    member.size,
                )
            elif not member.isdir():
                yield Found(f"{uri}#header={member.offset}&member={name}&{LINK}", 0)
        _require_end(stream, archive.offset)


def _require_end(stream: Ranges, offset: int) -> None:
    """tarfile takes a damaged header, a hole, and the end of the first of several tars for the end;
    the members behind it would be lost without a word. The end is two blocks of zeros and then
    nothing but zeros.
    """
    stream.seek(offset)
    zeros = 0
    while piece := stream.read(_END_READ):
        if piece.strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {offset}, with data behind it")
        zeros += len(piece)
    if zeros < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {offset}")


def _leaves(name: str) -> bool:
    """Whether a name points out of the folder it is taken to be in."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def _of_parquet(path: str, images: str, image_roots: tuple[str, ...]) -> Iterator[Found]:
    uri = quote_path(path)
    try:
        with opened(uri if is_remote(path) else path) as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            yield from _of_rows(file, path, uri, images, image_roots)
    except UnfitFile:
        raise
    except _DAMAGE as error:
        raise UnfitFile(
            f"{uri}: cannot be read as parquet: {error}; fix or remove the file"
        ) from error


def _of_rows(
    file: pyarrow.parquet.ParquetFile,
    path: str,
    uri: str,
    images: str,
    image_roots: tuple[str, ...],
) -> Iterator[Found]:
    if uri_lists.is_list(file, uri):
        of_run = (
            _root_of_run(posixpath.dirname(path))
            if {"image_id", "image_uri"} <= set(file.schema_arrow.names)
            else ()
        )
        roots = Roots.of(path, images, (*image_roots, *of_run))
        yield from (Found(reference, 0) for reference in uri_lists.named(file, uri, roots))
        return
    ids = _packed_ids(file, uri)
    for group, (rows, size) in enumerate(_row_groups(file.metadata)):
        for row in range(rows):
            yield Found(f"{uri}#row_group={group}&row={row}" + (next(ids) if ids else ""), size)


@lru_cache(maxsize=8)
def _root_of_run(folder: str) -> tuple[str, ...]:
    """Where the images of a run are, if `folder` is one of its own: whoever gives a run's
    annotations or quarantine means its images.
    """
    run = Folder.at(
        quote_path(posixpath.dirname(folder)) if is_remote(folder) else posixpath.dirname(folder)
    )
    root = run.read_json(MANIFEST_INDEX).get("root") if run.exists(MANIFEST_INDEX) else None
    if root is None:
        return ()
    say(f"listing {folder}: it names images of the run in {run.uri}, below {root}")
    return (local_path(root) or root,)


def _row_groups(footer: pyarrow.parquet.FileMetaData) -> Iterator[tuple[int, int]]:
    """Of each row group how many rows it has, and the bytes of an image of them: those of the image
    column, shared out evenly.
    """
    paths = [footer.schema.column(leaf).path for leaf in range(footer.num_columns)]
    # An image column that is a struct has a leaf for each of its fields: image.bytes, image.path.
    leaves = [leaf for leaf, path in enumerate(paths) if path.split(".")[0] == IMAGE_COLUMN]
    for group in map(footer.row_group, range(footer.num_row_groups)):
        held = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
        yield group.num_rows, held // max(1, group.num_rows)


def _packed_ids(file: pyarrow.parquet.ParquetFile, uri: str) -> Iterator[str] | None:
    """What the references of a packed shard's images end in: the id and the draw key that each had
    as a loose file (older shards have no keys). None for any other file, whatever it calls an
    `image_id`.
    """
    metadata = file.schema_arrow.metadata or {}
    if not metadata.items() >= PACKED.items():
        return None

    columns = [name for name in ("image_id", "draw_key") if name in file.schema_arrow.names]

    def ids() -> Iterator[str]:
        for batch in file.iter_batches(columns=columns):
            for packed in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                for name, value in zip(columns, packed, strict=True):
                    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
                        raise UnfitFile(
                            f"{uri}: {value!r} is no {name}; the shard was changed since it was"
                            " packed: pack it again"
                        )
                yield "".join(map("&{}={}".format, ("image_id", "key"), packed))

    return ids()
