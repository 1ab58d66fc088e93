"""Parquet files that name images and do not hold them: a column of URIs or paths, or of structs
whose bytes are null.

A list from elsewhere must not make us read any file of this machine, or a bucket that nobody named.
What it may lead to:

    a relative path, a local path   below the list's folder, or below images; from a list in an
                                    object store never to a local file
    an s3:// or gs:// URI           the buckets of the list and of images
    both                            what `image_roots` names

Any other row is marked `#outside_root` and quarantined unread. A list of which more than half
cannot be read, because it names other buckets or schemes that are not read, is refused.
"""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError
from mpa_ray.images.decode import UnreadableImage, image_id_of
from mpa_ray.images.references import IMAGE_COLUMN, OUTSIDE_ROOT, fetch, holds_bytes, quote_path
from mpa_ray.schema import Reason
from mpa_ray.storage.folder import Folder, is_remote, refuse_secrets

URI_COLUMNS = ("image_uri", "uri", "url", "image_path", "path", "file_name")


class UnfitFile(ValueError):
    """A Parquet file or tar whose images cannot be listed; the message is a line for people."""


@dataclass(frozen=True)
class Roots:
    """What the rows of a list may lead to.

    Attributes:
        scheme: `s3://` or `gs://` of the list; empty where it is on a disk.
        folder: of the list, without scheme.
        below: paths, or URIs with their schemes, below which a row may lead.
        buckets: those that a row may name with their schemes.
    """

    scheme: str
    folder: str
    below: tuple[str, ...]
    buckets: tuple[str, ...]

    @classmethod
    def of(cls, path: str, images: str, image_roots: tuple[str, ...]) -> "Roots":
        """Those of the list at `path` (as the listing gives it), found below `images`."""
        scheme, folder = split_scheme(posixpath.dirname(path))
        root = place_of(images)
        below = (
            scheme + folder,
            *([root] if is_remote(root) == bool(scheme) else []),
            *map(place_of, image_roots),
        )
        buckets = {"/".join(place.split("/")[:3]) for place in (path, root) if is_remote(place)}
        return cls(
            scheme,
            folder,
            tuple(place if is_remote(place) else os.path.realpath(place) for place in below),
            tuple(buckets),
        )

    def allow(self, target: str, *, relative: bool = False) -> bool:
        """Whether a row may lead to `target`, a path or a URI, not encoded; `relative` where the
        row itself names no bucket.
        """
        if is_remote(target):
            scheme, path = split_scheme(target)
            return _is_below(
                scheme + posixpath.normpath(path),
                self.below if relative else (*self.below, *self.buckets),
            )
        return not self.scheme and _is_below(os.path.realpath(target), self.below)


def split_scheme(path: str) -> tuple[str, str]:
    """`s3://` and the rest; nothing and the path where it is local."""
    return (
        (path[: path.index("://") + 3], path[path.index("://") + 3 :])
        if is_remote(path)
        else ("", path)
    )


def place_of(uri: str) -> str:
    """A folder's URI or path as the listing writes paths: absolute, with its scheme where it has
    one, nothing encoded.
    """
    scheme, path = split_scheme(uri)
    return scheme + unquote(path).rstrip("/") if scheme else Folder.at(uri).path


def _is_below(path: str, places: tuple[str, ...]) -> bool:
    return any(path.startswith(f"{place.rstrip('/')}/") for place in places)


def is_list(file: pyarrow.parquet.ParquetFile, uri: str) -> bool:
    """Whether a Parquet file names its images; False where it holds them.

    Raises:
        UnfitFile: it does neither.
    """
    names = file.schema_arrow.names
    if IMAGE_COLUMN not in names:
        if not set(URI_COLUMNS) & set(names):
            raise UnfitFile(
                f"{uri}: no column {IMAGE_COLUMN!r} and none of {', '.join(URI_COLUMNS)}; it has"
                f" {', '.join(names)}."
                " Rename the column of the images"
            )
        return True
    kind = file.schema_arrow.field(IMAGE_COLUMN).type
    if _has_path(kind) and (not holds_bytes(kind) or _bytes_are_null(file)):
        return True
    if not holds_bytes(kind):
        raise UnfitFile(
            f"{uri}: column {IMAGE_COLUMN!r} holds {kind}, neither bytes nor a struct with them;"
            " write the encoded images into it, or call"
            " a column of paths or URIs image_uri"
        )
    return False


def _has_path(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0


def _bytes_are_null(file: pyarrow.parquet.ParquetFile) -> bool:
    """Whether no row has bytes, as far as the footer's statistics tell."""
    leaves = [
        leaf
        for leaf in range(file.metadata.num_columns)
        if file.metadata.schema.column(leaf).path == f"{IMAGE_COLUMN}.bytes"
    ]
    chunks = [
        file.metadata.row_group(group).column(leaf)
        for leaf in leaves
        for group in range(file.num_row_groups)
    ]
    return bool(chunks) and all(
        chunk.statistics is not None
        and chunk.statistics.has_null_count
        and chunk.statistics.null_count == chunk.num_values
        for chunk in chunks
    )


def named(file: pyarrow.parquet.ParquetFile, uri: str, roots: Roots) -> Iterator[str]:
    """The references that a list comes to, one a row.

    Args:
        file: the list.
        uri: of the list, as a reference.
        roots: what its rows may lead to.

    Raises:
        UnfitFile: the column holds something else, or a user or password; or, after the last row,
            most rows lead nowhere.
    """
    column = (
        IMAGE_COLUMN
        if IMAGE_COLUMN in file.schema_arrow.names
        else next(n for n in URI_COLUMNS if n in file.schema_arrow.names)
    )
    number, unread, foreign = 0, "", 0
    for values, own in _values(file, uri, column):
        for value, is_reference in zip(values, own, strict=True):
            text = (value or b"").decode("utf-8", "surrogateescape")
            try:
                refuse_secrets(text)
            except ConfigurationError as error:
                raise UnfitFile(f"{uri}, column {column!r}, row {number}: {error}") from None
            reference = _own(text, roots) if is_reference else absolute(text, roots)
            if _is_foreign(text, reference):
                unread, foreign = unread or text, foreign + 1
            if column == IMAGE_COLUMN and not number:
                _refuse_unresolved(reference, uri, text)
            yield reference or f"{uri}#uri_row={number}"
            number += 1
    if 2 * foreign > number:
        raise UnfitFile(
            f"{uri}: {foreign:,} of {number:,} rows of column {column!r} cannot be read, such as"
            f" {unread!r}: {_fix(unread)}"
        )


def _values(
    file: pyarrow.parquet.ParquetFile, uri: str, column: str
) -> Iterator[tuple[list[bytes | None], list[bool]]]:
    """The column's values, a batch at a time; and which of them are references of a run, because
    its `image_id` is theirs.
    """
    path = f"{IMAGE_COLUMN}.path" if column == IMAGE_COLUMN else column
    with_ids = column == "image_uri" and "image_id" in file.schema_arrow.names
    for batch in file.iter_batches(columns=[path, "image_id"] if with_ids else [path]):
        texts = batch.column(column)
        try:
            # As bytes, because Parquet does not make sure that its strings are UTF-8.
            values = (
                (texts.field("path") if column == IMAGE_COLUMN else texts)
                .cast(pa.large_binary())
                .to_pylist()
            )
        except pa.ArrowNotImplementedError:
            raise UnfitFile(
                f"{uri}: column {column!r} holds {texts.type} and not URIs; rename it, or call the"
                f" column of the images {IMAGE_COLUMN!r}"
            ) from None
        ids = batch.column("image_id").to_pylist() if with_ids else [None] * len(values)
        yield (
            values,
            [
                image_id is not None and _is_id_of(image_id, value)
                for image_id, value in zip(ids, values, strict=True)
            ],
        )


def _is_id_of(image_id: object, value: bytes | None) -> bool:
    return value is not None and image_id == image_id_of(value.decode("utf-8", "surrogateescape"))


def _own(reference: str, roots: Roots) -> str:
    """A reference that a run has written: encoded already, and perhaps into a file."""
    if roots.allow(unquote(reference.partition("#")[0], errors="surrogateescape")):
        return reference
    return f"{reference}{'&' if '#' in reference else '#'}{OUTSIDE_ROOT}"


def absolute(value: str, roots: Roots) -> str:
    """A column's value as a reference; a relative path is relative to the list. Empty where the
    value names nothing.

    A path must lie below one of `roots`, whatever `..` and symbolic links are in it.
    """
    scheme, separator, rest = value.partition("://")
    if separator and scheme != "file":
        # What has another scheme is read by nobody, and is quarantined as missing.
        return quote_path(value) + (
            "" if not is_remote(value) or roots.allow(value) else f"#{OUTSIDE_ROOT}"
        )
    value = rest if separator else value
    if not value or "\0" in value:
        return ""
    if roots.scheme and not value.startswith("/"):
        target = roots.scheme + posixpath.join(roots.folder, value)
    else:
        target = os.path.abspath(os.path.join(roots.folder, value))
    return quote_path(target) + ("" if roots.allow(target, relative=True) else f"#{OUTSIDE_ROOT}")


def _is_foreign(value: str, reference: str) -> bool:
    """Whether a value names another scheme, or a bucket that it must not name."""
    scheme, separator, _ = value.partition("://")
    return (
        bool(separator)
        and scheme != "file"
        and (not is_remote(value) or reference.endswith(OUTSIDE_ROOT))
    )


def _fix(value: str) -> str:
    if is_remote(value):
        bucket = "/".join(value.split("/")[:3])
        return (
            "it names a bucket that is neither the list's nor that of images; if you trust the"
            f" list, add --image_roots {bucket}"
        )
    return (
        "only local paths, s3:// and gs:// are read; download the images first, and name the files"
    )


def _refuse_unresolved(reference: str, uri: str, value: str) -> None:
    # Nothing is read of a file over the bound, and every image is over this one.
    [content] = (
        fetch([reference], max_image_bytes=0)
        if reference
        else [UnreadableImage(Reason.MISSING, "")]
    )
    if isinstance(content, UnreadableImage) and content.reason in (
        Reason.MISSING,
        Reason.OUTSIDE_ROOT,
    ):
        raise UnfitFile(
            f"{uri}: column {IMAGE_COLUMN!r} holds paths and no bytes, and the first, {value!r},"
            " leads nowhere; put the files below that"
            " folder, or write the encoded images into the column"
        )
