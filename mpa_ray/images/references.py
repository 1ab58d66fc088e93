"""Image references, and reading the bytes one stands for. `mpa_ray.images.finding` makes them.

A reference is a URI that says by itself where the bytes are:

    /data/a.jpg, s3://bucket/a.jpg                      a file
    /data/shard.parquet#row_group=0&row=17              a row of a Parquet file with an image column
    ...#row_group=0&row=17&image_id=c823...&key=77fe...
                                    the same in a shard of jobs/pack.py: the image keeps the id and
                                    the draw key (`decode.draw_key_of`) that it had as a loose file
    s3://bucket/shard.tar#offset=1536&size=20480&member=a.jpg    a member of a tar (WebDataset)

and some say why there are none:

    /data/list.parquet#uri_row=3                        a row of a URI column that names nothing
    /etc/x.jpg#outside_root         what a URI column names and must not be opened
    /data/shard.tar#header=512&member=..%2Fa.jpg&outside_root
                                    a member whose name points out of the tar's folder
    /data/shard.tar#header=512&member=a.jpg&link        a member that is a link or a device
    /data/a.jpg#duplicate=1                             what a URI column names a second time

`%`, `#` and bytes that are no UTF-8 are percent-encoded in paths: no file name can be taken for a
fragment, and every reference is text. In an object store everything is encoded that may not stand
in a URI.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.images.decode import UnreadableImage
from mpa_ray.schema import Reason
from mpa_ray.storage.folder import is_remote
from mpa_ray.storage.ranges import Ranges, opened, whole

IMAGE_COLUMN = "image"
OUTSIDE_ROOT, LINK = "outside_root", "link"
_DUPLICATE = "duplicate"

_READERS = 16
_PLAIN_IN_URIS = "/:@!$&'()*+,;=~"
# Members of a tar with at most so much between them are read in one request of at most so many
# bytes, unless one member alone is larger.
_LARGEST_GAP = 64 * 2**10
_LARGEST_REQUEST = 16 * 2**20
# Rows of a Parquet file are decoded so many at a time, and read from it in pieces of so many bytes.
_ROWS_AT_ONCE = 64
_PARQUET_BUFFER = 4 * 2**20

Content = bytes | UnreadableImage


def quote_path(path: str) -> str:
    """A path as a reference. In a local one only what has a meaning or is no text is encoded, so
    that ordinary paths stay readable.
    """
    if is_remote(path):
        return quote(path, safe=_PLAIN_IN_URIS, errors="surrogateescape")
    text = path.replace("%", "%25").replace("#", "%23")
    return "".join(
        f"%{ord(character) - 0xDC00:02X}" if "\udc80" <= character <= "\udcff" else character
        for character in text
    )


def local_path(reference: str) -> str | None:
    """The path of the file a reference leads to, as the disk knows it; None where that is in an
    object store.
    """
    path = reference.partition("#")[0]
    return None if is_remote(path) else unquote(path, errors="surrogateescape")


def duplicate(reference: str, number: int) -> str:
    """The reference of what `reference` names for the `number`th time after the first. It has an id
    of its own, and is quarantined.
    """
    return f"{reference}{'&' if '#' in reference else '#'}{_DUPLICATE}={number}"


@dataclass(frozen=True)
class _Asked:
    """One reference of a call of `fetch`: its place in the call and what its fragment says."""

    place: int
    fields: dict[str, str]

    def number(self, name: str) -> int:
        return int(self.fields[name])


def fetch(references: list[str], *, max_image_bytes: int) -> list[Content]:
    """The encoded bytes of each reference, in order; in place of those that cannot be read, why.

    Raises:
        StorageError: a disk or service failed for another reason than that something is not there,
            again and again. The rows are not at fault and must not be quarantined for it.
    """
    found: list[Content] = [UnreadableImage(Reason.MISSING, "not read")] * len(references)
    by_file: dict[str, list[_Asked]] = defaultdict(list)
    for place, reference in enumerate(references):
        uri, _, fragment = reference.partition("#")
        asked = _Asked(
            place,
            {
                name: values[0]
                for name, values in parse_qs(
                    fragment, keep_blank_values=True, errors="surrogateescape"
                ).items()
            },
        )
        nothing = _why_nothing(uri, asked.fields)
        if nothing:
            found[place] = nothing
        else:
            # A Parquet file may be asked for as an image too, and is refused as one later.
            by_file[f"{uri}#{'row' in asked.fields:d}"].append(asked)

    def read(item: tuple[str, list[_Asked]]) -> None:
        uri, asked = item
        for place, content in _read_file(uri.partition("#")[0], asked, max_image_bytes):
            found[place] = content

    with ThreadPoolExecutor(min(_READERS, len(by_file) or 1)) as pool:
        list(pool.map(read, by_file.items()))
    return found


def _why_nothing(uri: str, fields: dict[str, str]) -> UnreadableImage | None:
    """Why a reference stands for nothing that may be read."""
    if _DUPLICATE in fields:
        return UnreadableImage(
            Reason.DUPLICATE_REFERENCE, f"named {fields[_DUPLICATE]} times before"
        )
    if OUTSIDE_ROOT in fields:
        what = (
            f"{fields['member']!r} points out of {uri}"
            if "member" in fields
            else f"{uri} is neither below the Parquet file's folder nor below images"
        )
        return UnreadableImage(Reason.OUTSIDE_ROOT, what)
    if LINK in fields:
        return UnreadableImage(
            Reason.MISSING,
            f"{fields['member']!r} is a link or a device in {uri}; those are not followed",
        )
    if "uri_row" in fields:
        return UnreadableImage(Reason.MISSING, "the row names no file")
    return None


def _read_file(
    uri: str, asked: list[_Asked], max_image_bytes: int
) -> Iterable[tuple[int, Content]]:
    path = local_path(uri) or uri
    try:
        if "row" in asked[0].fields:
            with opened(path) as stream:
                return list(_rows(stream, asked, max_image_bytes))
        members = [one for one in asked if "offset" in one.fields]
        contents = []
        if members:
            with opened(path) as stream:
                contents = list(_members(stream, members, max_image_bytes))
        if len(members) < len(asked):
            size, content = whole(path, limit=max_image_bytes)
            contents += [
                (one.place, _too_large(size, max_image_bytes) if content is None else content)
                for one in asked
                if "offset" not in one.fields
            ]
        return contents
    except FileNotFoundError as error:
        return [(one.place, UnreadableImage(Reason.MISSING, _as_text(error))) for one in asked]


def _as_text(error: Exception) -> str:
    """What an error says, without the bytes of names that are no text."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _too_large(size: int, max_image_bytes: int) -> UnreadableImage:
    return UnreadableImage(
        Reason.TOO_MANY_BYTES, f"{size} bytes, at most {max_image_bytes} (max_image_bytes)"
    )


def _members(
    stream: Ranges, asked: list[_Asked], max_image_bytes: int
) -> Iterator[tuple[int, Content]]:
    """Members of a tar. Neighbours come in one request; what is over the bound is not read."""
    wanted = []
    for one in asked:
        if one.number("size") > max_image_bytes:
            yield one.place, _too_large(one.number("size"), max_image_bytes)
        else:
            wanted.append((one.number("offset"), one.number("size"), one.place))
    for run in _runs(sorted(wanted)):
        start, end = run[0][0], max(offset + size for offset, size, _ in run)
        data = memoryview(stream.at(start, end - start))
        for offset, size, place in run:
            yield place, bytes(data[offset - start : offset - start + size])


def _runs(spans: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Spans (offset, size, ...) in their order, grouped into what is worth one request."""
    run: list[tuple[int, int, int]] = []
    end = 0
    for span in spans:
        offset, size, _ = span
        if run and (offset - end > _LARGEST_GAP or offset + size - run[0][0] > _LARGEST_REQUEST):
            yield run
            run = []
        end = max(end, offset + size) if run else offset + size
        run.append(span)
    if run:
        yield run


def _rows(
    stream: Ranges, asked: list[_Asked], max_image_bytes: int
) -> Iterator[tuple[int, Content]]:
    """Rows of a Parquet file with an image column: binary, or a struct with `bytes`. Each row group
    is read once, up to its last row asked for.
    """
    by_group: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one in asked:
        by_group[one.number("row_group")][one.number("row")].append(one.place)
    for group, places in by_group.items():
        # A failing disk or service raises StorageError, which none of these is: the file itself is
        # damaged, or changed since it was listed.
        try:
            for row, content in _rows_of_group(stream, group, max(places), max_image_bytes):
                for place in places.pop(row, ()):
                    yield place, content
            why = UnreadableImage(Reason.MISSING, f"row group {group} has no such row")
        except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
            why = UnreadableImage(
                Reason.CORRUPT, f"row group {group} cannot be read: {_as_text(error)}"
            )
        for left in places.values():
            for place in left:
                yield place, why


def _rows_of_group(
    stream: Ranges, group: int, last: int, max_image_bytes: int
) -> Iterator[tuple[int, Content]]:
    file = pyarrow.parquet.ParquetFile(stream, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
    kind = file.schema_arrow.field(IMAGE_COLUMN).type
    if not holds_bytes(kind):
        raise ValueError(
            f"column {IMAGE_COLUMN!r} holds {kind}, neither bytes nor a struct with them"
        )
    row = 0
    for batch in file.iter_batches(
        batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[IMAGE_COLUMN]
    ):
        for value in batch.column(0):
            if row > last:
                return
            content = value.as_py()
            content = content.get("bytes") if isinstance(content, dict) else content
            if not isinstance(content, bytes):
                yield (
                    row,
                    UnreadableImage(
                        Reason.MISSING, f"row {row} of row group {group} holds no bytes"
                    ),
                )
            elif len(content) > max_image_bytes:
                yield row, _too_large(len(content), max_image_bytes)
            else:
                yield row, content
            row += 1


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds encoded images: bytes, or structs with a field
    `bytes`.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
        )
    )
