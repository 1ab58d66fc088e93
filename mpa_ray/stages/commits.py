"""Commits: `commits/part-00000012.json` is written after all files of the part, and says what is in
them.

A resume does the parts that have no commit; all commits add up to what a run found.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from mpa_ray.images.parts import part_name, part_number, require_on_this_host, with_image_struct
from mpa_ray.observability import logs
from mpa_ray.observability.logs import run_id
from mpa_ray.schema import (
    ANNOTATIONS,
    CALLS,
    JUDGEMENTS,
    QUARANTINE,
    Reason,
    Stage,
    Verdict,
    token_columns,
)
from mpa_ray.storage.folder import Folder, in_parallel

COMMITTING = {"num_cpus": 0.25}


class Counts(TypedDict):
    """What a commit, or a sum of commits, counts.

    Attributes:
        images: that were looked at.
        annotations: rows of annotations/.
        quarantined_images: of `images`, those without any annotation.
        quarantined: rows of quarantine/, by "stage/reason".
        verdicts: rows of judgements/, by `schema.Verdict`.
        tokens: by the columns of `schema.token_columns`.
        svlm_asked: annotations that the S-VLM was asked about.
    """

    images: int
    annotations: int
    quarantined_images: int
    quarantined: dict[str, int]
    verdicts: dict[str, int]
    tokens: dict[str, int]
    svlm_asked: int


class Commit(Counts):
    """commits/part-00000012.json.

    Attributes:
        part: its number.
        call: when the call of the run began that committed it, in seconds since the epoch.
        committed: when it was committed, likewise.
    """

    part: int
    call: float
    committed: float


TOKEN_COLUMNS = [name for call in CALLS for name in token_columns(call)]


def commit_part(rows: pa.Table, *, output: Folder, call: float) -> pa.Table:
    """Write a part's files and then its commit. Return one row: the commit, as JSON.

    Of several attempts at a part, of which all but one were taken for lost, all files are of one in
    the end (`_written`).

    Args:
        rows: a whole part of JUDGED_ROW, images included; or none, where the stage was ended before
            the part was complete.
        output: the run's folder.
        call: when this call of the run began, in seconds since the epoch.
    """
    if not rows.num_rows:
        return pa.table({"commit": pa.array([], pa.string())})
    number = rows.column("part")[0].as_py()
    if output.is_local:
        require_on_this_host(output.path, "output")
    well = pc.is_null(rows.column("reason"))
    judged, rejected = rows.filter(well), rows.filter(pc.invert(well))
    parity = judged.filter(pc.equal(judged.column("verdict"), str(Verdict.PARITY)))
    files = {
        "quarantine": rejected.select(QUARANTINE.names),
        "annotations": judged.select(ANNOTATIONS.names),
        "parity": with_image_struct(parity),
        "judgements": judged.select(JUDGEMENTS.names),
    }
    images, annotated = (set(table.column("image_id").to_pylist()) for table in (rows, judged))
    counts: Commit = {
        "part": number,
        "images": len(images),
        "annotations": judged.num_rows,
        "quarantined_images": len(images - annotated),
        "quarantined": dict(
            Counter(
                f"{stage}/{reason}"
                for stage, reason in zip(
                    *(rejected.column(c).to_pylist() for c in ("stage", "reason")), strict=True
                )
            )
        ),
        "verdicts": dict(Counter(judged.column("verdict").to_pylist())),
        "tokens": {name: pc.sum(judged.column(name)).as_py() or 0 for name in TOKEN_COLUMNS},
        "svlm_asked": judged.num_rows - judged.column("svlm_answer").null_count,
        "call": call,
        "committed": time.time(),
    }
    stands = _written(output, number, files, counts)
    if stands is not counts:
        return _as_row(stands)
    logs.in_worker(run_id(output.uri), "commit")
    logs.LOG.info(
        "committed part %d: %d images, %d quarantined", number, counts["images"], rejected.num_rows
    )
    return _as_row(counts)


def _written(output: Folder, number: int, files: Mapping[str, pa.Table], counts: Commit) -> Commit:
    """Write the files and the commit, and return the commit that stands: `counts`, or that of
    another attempt.

    An attempt writes nothing more once it finds the commit of another. Files of it that the other
    has not written over would then lie beside the other's: it makes the part wholly its own
    instead.
    """
    commit = f"commits/{part_name(number, '.json')}"
    done: list[str] = []
    for folder, table in files.items():
        if output.exists(commit):
            break
        _replace(output, folder, number, table)
        done.append(folder)
    else:
        if output.create_json(commit, counts):
            return counts
    if not any(_holds(output, folder, number, files[folder]) for folder in done):
        return output.read_json(commit)
    for folder, table in files.items():
        _replace(output, folder, number, table)
    output.write_json(commit, counts)
    return counts


def _holds(output: Folder, folder: str, number: int, table: pa.Table) -> bool:
    """Whether a part's file is what `_replace` made of `table`."""
    name = f"{folder}/{part_name(number)}"
    if not output.exists(name):
        return not table.num_rows
    return output.read_table(name).equals(table)


def _as_row(commit: Commit) -> pa.Table:
    return pa.table({"commit": [json.dumps(commit)]})


def _replace(output: Folder, folder: str, number: int, table: pa.Table) -> None:
    """Write a part's file. An empty one is left out, and what an interrupted attempt left under
    the name is removed.
    """
    name = f"{folder}/{part_name(number)}"
    if table.num_rows:
        output.write_table(name, table)
    else:
        output.delete(name)


def rows_of_source(counts: Counts, *, annotated: bool) -> int:
    """How many rows of the source a commit, or a sum of commits, is about: images, or annotations
    where those are the source.
    """
    return (
        counts["annotations"] + sum(counts["quarantined"].values())
        if annotated
        else counts["images"]
    )


def share_quarantined(counts: Counts, *, annotated: bool) -> tuple[int, int]:
    """What a sum of commits lost, and of how many rows of the source: annotations of annotations,
    or images of images. References that name what was named before are neither: nothing is lost
    with them.
    """
    repeats = counts["quarantined"].get(f"{Stage.IMAGES}/{Reason.DUPLICATE_REFERENCE}", 0)
    lost = sum(counts["quarantined"].values()) if annotated else counts["quarantined_images"]
    return lost - repeats, rows_of_source(counts, annotated=annotated) - repeats


def committed(output: Folder) -> set[int]:
    """The numbers of the finished parts."""
    return {part_number(name) for name in output.child("commits").names(".json")}


def totals(output: Folder) -> Counts:
    """The sum of all commits: images, annotations, images without any, quarantined rows by
    stage/reason, verdicts, tokens, and annotations that the S-VLM was asked about.
    """
    return add_up(commits(output))


def commits(output: Folder) -> Iterator[Commit]:
    """What each commit says, in the order of the parts."""
    folder = output.child("commits")
    return in_parallel(folder.read_json, folder.names(".json"))


def add_up(commits: Iterable[Counts]) -> Counts:
    """See `totals`."""
    images = annotations = lost = svlm_asked = 0
    quarantined: Counter[str] = Counter()
    verdicts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
    tokens: Counter[str] = Counter()
    for commit in commits:
        images += commit["images"]
        annotations += commit["annotations"]
        # Commits that do not say it are of runs whose images had one quarantined row at most.
        lost += commit.get(
            "quarantined_images", min(commit["images"], sum(commit["quarantined"].values()))
        )
        quarantined.update(commit["quarantined"])
        verdicts.update(commit["verdicts"])
        tokens.update(commit["tokens"])
        svlm_asked += commit.get("svlm_asked", 0)
    return {
        "images": images,
        "annotations": annotations,
        "quarantined_images": lost,
        "quarantined": dict(quarantined.most_common()),
        "verdicts": dict(verdicts),
        "tokens": dict(tokens),
        "svlm_asked": svlm_asked,
    }
