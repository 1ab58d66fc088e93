"""Which images there are: listed once, kept in the output as `manifest/`, and cut into the parts
that are worked on and committed.

A manifest file is Parquet with `image_id` and `image_uri`, and each of its row groups is one part.
A part is known by its number, so a resume compares lists of numbers, and nobody holds a list of
images.

Every id is there once. What a list of URIs names again becomes a reference of its own
(`...#duplicate=1`), with its own id, and is quarantined (`duplicate_reference`): annotations and
quarantine together are the references as they were given, each once, and no image is paid for
twice.
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mpa_ray.images import references
from mpa_ray.images.decode import image_id_of
from mpa_ray.images.finding import Found, find, root_of
from mpa_ray.images.repeats import Repeats
from mpa_ray.observability.progress import Tally, say
from mpa_ray.schema import MANIFEST, absolute
from mpa_ray.storage.folder import Folder

# Written last: a manifest without it was interrupted and is made again.
_INDEX = "index.json"
_PARTS_PER_FILE = 400
_IMAGES_PER_FILE = 100_000


@dataclass(frozen=True)
class Manifest:
    """The finished list of images.

    Attributes:
        folder: where the manifest files are.
        files: (name, parts in it) of each.
        images: how many there are in all.
        root: what the references below the source begin with; None for a list that is older than
            this.
    """

    folder: Folder
    files: tuple[tuple[str, int], ...]
    images: int
    root: str | None

    @property
    def parts(self) -> int:
        return sum(parts for _, parts in self.files)

    def part(self, number: int) -> pa.Table:
        """The rows of one part: `image_id`, `image_uri`."""
        ends = list(accumulate(parts for _, parts in self.files))
        position = bisect.bisect_right(ends, number)
        name, parts = self.files[position]
        return self.folder.read_parquet(
            name, lambda file: file.read_row_group(number - (ends[position] - parts))
        )


def load(folder: Folder, *, source: str | None = None) -> Manifest | None:
    """The manifest in `folder`, or None where there is no finished one (of `source`, where one is
    given).
    """
    if not folder.exists(_INDEX):
        return None
    index = folder.read_json(_INDEX)
    # An older list has the text of the setting as it was given.
    if source is not None and absolute(index["source"]) != absolute(source):
        return None
    files = tuple((file["name"], file["parts"]) for file in index["files"])
    return Manifest(folder, files, index["images"], index.get("root"))


def build(
    images: str,
    folder: Folder,
    *,
    images_per_part: int,
    bytes_per_part: int,
    max_image_bytes: int,
    image_roots: tuple[str, ...] = (),
) -> Manifest:
    """List `images` and write the manifest; `cut` says what a part is, and `find` what
    `image_roots` are.

    Raises:
        ConfigurationError: there is no image, or a Parquet file or tar cannot be read.
        StorageError: the list could not be had.
    """
    found = find(images, image_roots=image_roots)
    parts = cut(
        found,
        images_per_part=images_per_part,
        bytes_per_part=bytes_per_part,
        max_image_bytes=max_image_bytes,
    )
    return write(parts, folder, source=images, root=root_of(images), schema=MANIFEST)


def cut(
    found: Iterable[Found], *, images_per_part: int, bytes_per_part: int, max_image_bytes: int
) -> Iterator[pa.Table]:
    """Parts of so many images and of so many bytes at most, as far as sizes are known; an image
    that is larger is a part of its own.
    """
    uris: list[str] = []
    held = 0
    for uri, size in found:
        # A larger one is quarantined unread. It counts all the same: of a row of Parquet only the
        # mean of its row group is known.
        size = min(size, max_image_bytes)
        if uris and (len(uris) == images_per_part or held + size > bytes_per_part):
            yield pa.table({"image_uri": uris})
            uris, held = [], 0
        uris.append(uri)
        held += size
    if uris:
        yield pa.table({"image_uri": uris})


def write(
    parts: Iterable[pa.Table], folder: Folder, *, source: str, root: str | None, schema: pa.Schema
) -> Manifest:
    """Write a manifest whose parts are `parts`, in their order; what an interrupted attempt left
    is removed.

    Args:
        parts: tables with `image_uri` and, where the schema has more than a manifest needs, its
            further columns.
        folder: where it goes.
        source: what was listed.
        root: what the references below the source begin with (`finding.root_of`).
        schema: MANIFEST, and columns beside it.
    """
    folder.delete_folder()
    files: list[dict[str, Any]] = []
    tally = Tally(f"listing {source}", unit="images")
    with Repeats() as repeats:
        for number, group in enumerate(_files_of(parts)):
            name, images = f"{number:05d}.parquet", 0
            tables = []
            for part in group:
                ids = [image_id_of(uri) for uri in part.column("image_uri").to_pylist()]
                digests = [bytes.fromhex(image_id) for image_id in ids]
                repeats.add(digests, digests, range(tally.count, tally.count + len(ids)))
                tables.append(
                    part.append_column("image_id", pa.array(ids, pa.string()))
                    .select(schema.names)
                    .cast(schema)
                )
                images += part.num_rows
                tally.add(part.num_rows)
            _write_file(folder, name, tables)
            files.append({"name": name, "parts": len(tables), "images": images})
        found = repeats.found()
    if len(found):
        say(
            f"listing {source}: {len(found):,} references name what was named before; they are"
            " quarantined as duplicate_reference"
        )
        _rename(found, files, folder)
    index = {
        "source": source,
        "root": root,
        "images": tally.count,
        "duplicates": len(found),
        "files": files,
    }
    folder.write_json(_INDEX, index)
    manifest = load(folder)
    assert manifest is not None
    return manifest


def _files_of(parts: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Parts, as many as go into a file together."""
    group: list[pa.Table] = []
    images = 0
    for part in parts:
        group.append(part)
        images += part.num_rows
        if len(group) == _PARTS_PER_FILE or images >= _IMAGES_PER_FILE:
            yield group
            group, images = [], 0
    if group:
        yield group


def _write_file(folder: Folder, name: str, parts: list[pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(sink, parts[0].schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part)
    folder.write_bytes(name, sink.getvalue())


def _rename(repeats: np.ndarray, files: list[dict[str, Any]], folder: Folder) -> None:
    """Give the rows at the positions of `repeats` references and ids of their own. Only files that
    hold one are written again.
    """
    end = 0
    for file in files:
        begin, end = end, end + file["images"]
        inside = repeats[slice(*np.searchsorted(repeats["position"], (begin, end)))]
        if len(inside):
            _rename_in(
                folder,
                file["name"],
                dict(
                    zip(
                        (inside["position"] - begin).tolist(),
                        inside["number"].tolist(),
                        strict=True,
                    )
                ),
            )


def _rename_in(folder: Folder, name: str, numbers: dict[int, int]) -> None:
    parts = folder.read_parquet(
        name, lambda file: [file.read_row_group(group) for group in range(file.num_row_groups)]
    )
    row, renamed = 0, []
    for part in parts:
        uris, ids = part.column("image_uri").to_pylist(), part.column("image_id").to_pylist()
        for place in range(part.num_rows):
            if number := numbers.get(row + place):
                uris[place] = references.duplicate(uris[place], number)
                ids[place] = image_id_of(uris[place])
        row += part.num_rows
        columns = {column: part.column(column) for column in part.column_names} | {
            "image_uri": uris,
            "image_id": ids,
        }
        renamed.append(pa.table(columns, schema=part.schema))
    _write_file(folder, name, renamed)
