"""Rows of parts that were not complete when their stage was ended (`mpa_ray.stages.early_stop`).

    stop/part-00000012.parquet   what came of the rows that were asked, by their place in the part

The next call does not ask, or pay for, them again. What is lost is what was asked of images that
were not finished, which are at most `images_in_flight`. A call that is killed keeps nothing of its
parts in flight.
"""

from collections import defaultdict
from typing import Any

import pyarrow as pa

from mpa_ray.images.parts import part_name
from mpa_ray.storage.folder import Folder

_FOLDER = "stop"
_IMAGE = "image"
_PLACE = "place_in_part"

Row = dict[str, Any]


class PartialParts:
    """What an earlier call has kept, and what this one keeps, of the parts of one stage.

    Args:
        output: of the run. Its files are listed once, because most runs have none and every part
            would ask.
        schema: of the rows; without their images, which are read again with the part.
    """

    def __init__(self, output: Folder, schema: pa.Schema) -> None:
        self._folder = output.child(_FOLDER)
        self._names = set(self._folder.names(".parquet"))
        fields = [field for field in schema if field.name != _IMAGE]
        self._schema = pa.schema([*fields, pa.field(_PLACE, pa.int64())])

    def save(self, number: int, done: dict[int, list[Row]]) -> None:
        """Keep what came of some rows of part `number`, by their place in the part."""
        rows = [row | {_PLACE: place} for place, result in done.items() for row in result]
        self._folder.write_table(part_name(number), pa.Table.from_pylist(rows, schema=self._schema))

    def load(self, number: int, rows: list[Row]) -> dict[int, list[Row]]:
        """What was kept for those of `rows` that are still at their place in part `number`, without
        images.
        """
        found: dict[int, list[Row]] = defaultdict(list)
        if part_name(number) in self._names:
            for row in self._folder.read_table(part_name(number)).to_pylist():
                place = row.pop(_PLACE)
                if place < len(rows) and _came_of(row, rows[place]):
                    found[place].append(row)
        return found


def _came_of(kept: Row, source: Row) -> bool:
    """Whether `source` is the row that was asked about: the annotation, or the image where there
    was none yet.
    """
    return all(
        kept[name] == source[name]
        for name in ("image_id", "sample_id")
        if source.get(name) is not None
    )


def delete_partial_parts(output: Folder) -> None:
    """Every part is committed: what was kept for them is of no more use."""
    output.child(_FOLDER).delete_folder()
