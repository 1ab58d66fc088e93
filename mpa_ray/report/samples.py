"""The rows behind chosen places, as a page shows them, each with a thumbnail."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mpa_ray.images import references
from mpa_ray.images.decode import UnreadableImage, below
from mpa_ray.report.gains import answer_type
from mpa_ray.report.run_folder import Place, rows_at
from mpa_ray.report.selection import QUARANTINED, in_order
from mpa_ray.report.text import cut
from mpa_ray.report.thumbnails import Step, Thumbnails
from mpa_ray.schema import Reason
from mpa_ray.storage.folder import Folder

Sample = dict[str, Any]

_JUDGED = ["image_id", "image_uri", "question", "answer", "lvlm_answer", "svlm_answer", "verdict"]
_IMAGES_AT_ONCE = 64


def judged(run: Folder, places: Sequence[Place]) -> dict[Place, Sample]:
    """The rows of judgements/ at `places`, with what became of those that were held out: `change`
    and `after`.
    """
    return _by_file(run, places, _judged_of_file)


def quarantined(run: Folder, places: Sequence[Place]) -> dict[Place, Sample]:
    """The rows of quarantine/ at `places`."""
    return _by_file(run, places, _quarantined_of_file)


def _by_file(run: Folder, places: Sequence[Place], read: Any) -> dict[Place, Sample]:
    by_file: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_file[place[0]].append(place)
    found: dict[Place, Sample] = {}
    for rows in in_order(lambda item: read(run, *item), sorted(by_file.items())):
        found |= rows
    return {place: found[place] for place in places if place in found}


def _judged_of_file(run: Folder, name: str, places: list[Place]) -> dict[Place, Sample]:
    rows = rows_at(places, run.child("judgements"), _JUDGED)
    held_out = run.child("holdout/mpa")
    changes = rows_at(places, held_out, ["change", "after"]) if held_out.exists(name) else {}
    return {
        place: row | {"change": None, "after": None} | changes.get(place, {})
        for place, row in rows.items()
    }


def _quarantined_of_file(run: Folder, name: str, places: list[Place]) -> dict[Place, Sample]:
    table = run.child("quarantine").read_table(name)
    numbers = [int(number) for _, number in places if int(number) < table.num_rows]
    return {
        (name, str(number)): row
        for number, row in zip(numbers, table.take(numbers).to_pylist(), strict=True)
    }


def place_of(row: Sample, root: str | None) -> Sample:
    """Where a row's image is: `uri`, and `path`, the part of it below the images' `root`."""
    uri = row["image_uri"]
    return {"uri": cut(uri), "path": cut(uri if root is None else below(uri, root))}


def shown(row: Sample, root: str | None) -> Sample:
    """A row as the gallery has it; a quarantined row has no verdict of its own.

    Args:
        row: of judgements/ or quarantine/.
        root: of the run's images (`Facts.root`).
    """
    if "verdict" in row:
        texts = {"lvlm": row["lvlm_answer"], "svlm": row["svlm_answer"]} | {
            name: row[name] for name in ("question", "answer", "after")
        }
        sample = {
            "id": row["sample_id"],
            "verdict": row["verdict"],
            "change": row["change"],
            "type": answer_type(row["answer"]),
        }
    else:
        texts = {"detail": row["detail"]}
        sample = {
            "id": row["image_id"],
            "verdict": QUARANTINED,
            "reason": f"{row['stage']}: {row['reason']}",
        }
    return (
        sample
        | {name: cut(text) for name, text in texts.items() if text is not None}
        | place_of(row, root)
    )


def pictures(
    run: Folder,
    rows: dict[Place, Sample],
    step: Step,
    *,
    max_image_bytes: int,
    max_image_pixels: int,
) -> Thumbnails:
    """A thumbnail of each image there is, by URI, of at most `step`'s size.

    An image that is no longer where it was is taken from parity/, where the samples of the parity
    set have theirs. One that is nowhere, or is no image, has none.
    """
    found = Thumbnails(step, max_image_bytes=max_image_bytes, max_image_pixels=max_image_pixels)
    uris = list(dict.fromkeys(row["image_uri"] for row in rows.values()))
    for start in range(0, len(uris), _IMAGES_AT_ONCE):
        chunk = uris[start : start + _IMAGES_AT_ONCE]
        found.add(zip(chunk, _fetched(chunk, max_image_bytes), strict=True))
    lost = [
        place
        for place, row in rows.items()
        if row.get("verdict") == "parity" and row["image_uri"] not in found
    ]
    for stored in _stored(run.child("parity"), lost):
        found.add((rows[place]["image_uri"], image) for place, image in stored)
    return found


def _fetched(uris: list[str], max_image_bytes: int) -> Sequence[bytes | UnreadableImage]:
    try:
        return references.fetch(uris, max_image_bytes=max_image_bytes)
    except OSError as error:
        # A report is written, too, by people who may read the run's folder and not the storage its
        # images came from.
        return [UnreadableImage(Reason.MISSING, str(error))] * len(uris)


def _stored(parity: Folder, places: list[Place]) -> Iterator[list[tuple[Place, bytes]]]:
    names = sorted({name for name, _ in places} & set(parity.names(".parquet")))

    def read(name: str) -> list[tuple[Place, bytes]]:
        rows = rows_at([place for place in places if place[0] == name], parity, ["image"])
        return [(place, row["image"]["bytes"]) for place, row in rows.items()]

    # One file at a time: each has the images of a whole part.
    return map(read, names)
