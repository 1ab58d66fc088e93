"""Which images there are: listed once, kept in the output as `manifest/`, and cut into the parts that are worked on and committed.

A manifest file is Parquet with `image_id` and `image_uri`, and each of its row groups is one part. A part is known by its number, so a resume
compares lists of numbers, and nobody holds a list of images.
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from mpa_ray import references
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import image_id_of
from mpa_ray.schema import MANIFEST
from mpa_ray.storage import Folder

# Written last: a manifest without it was interrupted and is made again.
_INDEX = "index.json"
_PARTS_PER_FILE = 400


@dataclass(frozen=True)
class Manifest:
    """The finished list of images.

    Attributes:
        folder: where the manifest files are.
        files: (name, parts in it) of each.
        images: how many there are in all.
    """

    folder: Folder
    files: tuple[tuple[str, int], ...]
    images: int

    @property
    def parts(self) -> int:
        return sum(parts for _, parts in self.files)

    def part(self, number: int) -> pa.Table:
        """The rows of one part: `image_id`, `image_uri`."""
        ends = list(accumulate(parts for _, parts in self.files))
        position = bisect.bisect_right(ends, number)
        name, parts = self.files[position]
        with self.folder.filesystem.open_input_file(f"{self.folder.path}/{name}") as stream:
            return pyarrow.parquet.ParquetFile(stream).read_row_group(number - (ends[position] - parts))


def load(folder: Folder) -> Manifest | None:
    """The manifest in `folder`, or None where there is no finished one."""
    if not folder.exists(_INDEX):
        return None
    index = folder.read_json(_INDEX)
    return Manifest(folder, tuple((file["name"], file["parts"]) for file in index["files"]), index["images"])


def build(images: str, folder: Folder, *, images_per_part: int) -> Manifest:
    """Lists `images` and writes the manifest.

    Raises:
        ConfigurationError: there is no image.
    """
    uris = references.find(images)
    files: list[dict[str, Any]] = []
    for number, chunk in enumerate(_chunks(uris, images_per_part * _PARTS_PER_FILE)):
        table = pa.table({"image_id": [image_id_of(uri) for uri in chunk], "image_uri": chunk}, schema=MANIFEST)
        name = f"{number:05d}.parquet"
        folder.write_table(name, table, row_group_size=images_per_part)
        files.append({"name": name, "parts": -(-len(chunk) // images_per_part), "images": len(chunk)})
    if not files:
        kinds = ", ".join(sorted(references.EXTENSIONS))
        raise ConfigurationError(f"images={images!r} holds no image; files that end in {kinds}, .parquet or .tar are taken")
    folder.write_json(_INDEX, {"source": images, "images": sum(file["images"] for file in files), "files": files})
    manifest = load(folder)
    assert manifest is not None
    return manifest


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
