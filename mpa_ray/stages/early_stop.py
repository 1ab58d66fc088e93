"""How a stage ends before its time in good order: the engine cannot go on (a wrong key, a spent
budget), and nothing is broken.

An error raised inside a dataset would throw away every part that is on its way through later
stages. So the actor leaves its reason in the output instead and lets go of what it was not yet
asked; reads that are still to come give empty parts; whatever is complete flows on to its commit;
and the run, when the stream has ended, says the reason (exit code 3). The same command resumes the
run.

Annotations that were already made in parts that are not complete are kept in `stop/`, and the next
call does not ask, or pay for, them again. What is lost then is what was asked of images that were
not finished, which are at most `images_in_flight`. A call that is killed keeps nothing of its parts
in flight.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from mpa_ray.errors import RunError
from mpa_ray.images.parts import part_name
from mpa_ray.storage.folder import Folder

_FOLDER = "stop"
_REASON = "reason.json"
_IMAGE = "image"
_PLACE = "place_in_part"

Row = dict[str, Any]


def stop(output: Folder, why: str) -> None:
    """Ends the stage: nothing new is begun from here on."""
    output.child(_FOLDER).write_json(_REASON, {"reason": why})


def reason(output: Folder) -> str | None:
    """Why the stage was ended, or None while it may go on."""
    folder = output.child(_FOLDER)
    return folder.read_json(_REASON)["reason"] if folder.exists(_REASON) else None


def go_on(output: Folder) -> None:
    """A new call begins: the reason of the last one is gone, its rows are kept."""
    output.child(_FOLDER).delete(_REASON)


def raise_if_stopped(output: Folder, done: str) -> None:
    """Ends the run where its stage was ended.

    Raises:
        RunError: the reason, and `done`.
    """
    why = reason(output)
    if why is not None:
        raise RunError(f"{why}. {done}; the same command resumes the run")


def read_unless_stopped(
    number: int, *, read: Callable[[int], pa.Table], output: Folder, schema: pa.Schema
) -> pa.Table:
    """The part `number`, or an empty one when the stage was ended."""
    return schema.empty_table() if reason(output) is not None else read(number)


def keep(output: Folder, number: int, done: dict[int, list[Row]], schema: pa.Schema) -> None:
    """Keeps what came of some rows of part `number`, by their place in the part; not their images,
    which are read again with the part.
    """
    fields = [field for field in schema if field.name != _IMAGE]
    rows = [row | {_PLACE: place} for place, result in done.items() for row in result]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*fields, pa.field(_PLACE, pa.int64())]))
    output.child(_FOLDER).write_table(part_name(number), table)


def kept_parts(output: Folder) -> set[str]:
    """The names of the files that `keep` has written; listed once, because most runs have none and
    every part would ask.
    """
    return set(output.child(_FOLDER).names(".parquet"))


def kept(output: Folder, number: int, rows: list[Row], names: set[str]) -> dict[int, list[Row]]:
    """What `keep` was given for those of `rows` that are still at their place in part `number`,
    without images.
    """
    found: dict[int, list[Row]] = defaultdict(list)
    if part_name(number) in names:
        for row in output.child(_FOLDER).read_table(part_name(number)).to_pylist():
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


def forget(output: Folder) -> None:
    """Every part is committed: what was kept for them is of no more use."""
    output.child(_FOLDER).delete_folder()
