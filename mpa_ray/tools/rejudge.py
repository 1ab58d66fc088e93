"""Verdicts of stored answers under another matcher: no model, no Ray, no image but those of rows
that become parity.

Where the S-VLM was not asked (Eq. 2 allows it where the L-VLM disagrees with itself) and another
matcher finds the L-VLM consistent after all, there is no verdict to be had without the S-VLM. Such
a row goes to `unasked/`, an annotations folder that can enter at the Parity Identifier:

    judgements/ + unasked/  =  the judged rows of the run, each once
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.observability.progress import Progress
from mpa_ray.parity_identifier import judge
from mpa_ray.report.run_folder import (
    config_of,
    max_image_bytes,
    new_folder,
    require,
    with_stored_images,
)
from mpa_ray.schema import JUDGEMENTS, Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS, Matcher, is_consistent

UNASKED = "unasked"
RECORD = "rejudge.json"

_SVLM_COLUMNS = [
    name for name in JUDGEMENTS.names if name == "verdict" or name.startswith("svlm_answer")
]
_PARTS_PER_TASK = 32
# Reading and writing overlap with matching; each reader may hold one part's parity images.
_READERS = 4
_REMEMBERED = 1 << 16


def verdict_of(
    *,
    answer: str,
    lvlm_answer: str,
    svlm_answer: str | None,
    matches: Matcher,
    jury_answers: Sequence[str] = (),
) -> Verdict | None:
    """Eq. 2, or None where only asking the S-VLM, and jurors who were not asked, could tell."""
    if svlm_answer is None and is_consistent(answer, [lvlm_answer, *jury_answers], matches):
        return None
    return judge(
        answer=answer,
        lvlm_answer=lvlm_answer,
        svlm_answer=svlm_answer,
        matches=matches,
        jury_answers=jury_answers,
    )


def rejudge(
    run: Folder, *, matcher: str, output: Folder, parity: bool = True, processes: int | None = None
) -> dict[str, Any]:
    """Judge the stored answers of `run` again and write judgements/, unasked/, parity/ and, last,
    rejudge.json into `output`.

    Args:
        run: the output folder of a run, or of an earlier re-judging.
        matcher: a key of `MATCHERS`.
        output: a new folder.
        parity: write parity/ too. Its images are copied from the run's, and fetched by URI for rows
            that were not parity before.
        processes: worker processes; one for each core where it is None.

    Returns:
        What is in rejudge.json: rows, counts of verdicts before and after, "unasked", a list of
        transitions, images copied and fetched.

    Raises:
        ConfigurationError: there is no such matcher, nothing to judge, or the output holds files.
        RunError: the image of a row that becomes parity cannot be read, or a worker process was
            killed.
    """
    if matcher not in MATCHERS:
        raise ConfigurationError(
            f"--matcher {matcher}: there is none of this name; give one of {', '.join(MATCHERS)}"
        )
    if processes is not None and processes < 1:
        raise ConfigurationError(f"--processes {processes}: give at least 1")
    require(run, "judgements")
    with new_folder(output, by="jobs/rejudge.py"):
        started = time.monotonic()
        names = sorted(
            {*run.child("judgements").names(".parquet"), *run.child(UNASKED).names(".parquet")}
        )
        work = partial(
            _rejudge_parts,
            run=run,
            output=output,
            matcher=matcher,
            parity=parity,
            max_image_bytes=max_image_bytes(run),
        )
        progress = Progress("rejudge", len(names), unit="parts")
        transitions: Counter[tuple[str, str]] = Counter()
        images: Counter[str] = Counter()
        for parts, moved, images_of in _in_processes(
            work, names, processes or len(os.sched_getaffinity(0))
        ):
            progress.add(parts)
            transitions.update(moved)
            images.update(images_of)
        record = _record(transitions) | {
            "run": run.uri,
            "matcher": matcher,
            "matcher_before": _matcher_before(run),
            "parity_images": {name: images[name] for name in ("copied", "fetched")}
            if parity
            else None,
            "seconds": time.monotonic() - started,
        }
        output.write_json(RECORD, record)
    return record


def _in_processes(work: Any, names: list[str], processes: int) -> Iterator[Any]:
    tasks = [
        names[start : start + _PARTS_PER_TASK] for start in range(0, len(names), _PARTS_PER_TASK)
    ]
    if min(processes, len(tasks)) == 1:
        yield from map(work, tasks)
        return
    # Forking a process in which Arrow's threads run can lock up.
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, tasks)
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process was ended from outside, perhaps for want of memory; give fewer"
                " --processes"
            ) from error


@lru_cache(maxsize=len(MATCHERS))
def _remembering(matcher: str) -> Matcher:
    """The matcher with a memory: short answers repeat, and a row of equal answers asks the same
    twice.
    """
    return lru_cache(maxsize=_REMEMBERED)(MATCHERS[matcher])


def _rejudge_parts(
    names: list[str], **settings: Any
) -> tuple[int, Counter[tuple[str, str]], Counter[str]]:
    moved: Counter[tuple[str, str]] = Counter()
    images: Counter[str] = Counter()
    with ThreadPoolExecutor(_READERS) as pool:
        for moved_in_part, images_of_part in pool.map(partial(_rejudge_part, **settings), names):
            moved.update(moved_in_part)
            images.update(images_of_part)
    return len(names), moved, images


def _rejudge_part(
    name: str, *, run: Folder, output: Folder, matcher: str, parity: bool, max_image_bytes: int
) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    rows = _stored_rows(run, name)
    verdicts = new_verdicts(rows, _remembering(matcher))
    before = rows.column("verdict").to_pylist()
    moved = Counter(
        (was or UNASKED, now or UNASKED) for was, now in zip(before, verdicts, strict=True)
    )
    rows = rows.set_column(
        rows.column_names.index("verdict"), "verdict", pa.array(verdicts, pa.string())
    )
    unknown = pc.is_null(rows.column("verdict"))
    judged, unasked = rows.filter(pc.invert(unknown)), rows.filter(unknown)
    if judged.num_rows:
        output.write_table(f"judgements/{name}", judged)
    if unasked.num_rows:
        output.write_table(f"{UNASKED}/{name}", unasked.drop_columns(_SVLM_COLUMNS))
    images: Counter[str] = Counter()
    found = judged.filter(pc.equal(judged.column("verdict"), str(Verdict.PARITY)))
    if parity and found.num_rows:
        table, fetched = with_stored_images(
            found, stored=run.child("parity"), name=name, max_image_bytes=max_image_bytes
        )
        output.write_table(f"parity/{name}", table)
        images.update(copied=table.num_rows - fetched, fetched=fetched)
    return moved, images


def _stored_rows(run: Folder, name: str) -> pa.Table:
    """A part's rows, those that an earlier re-judging set aside included."""
    folders = [run.child(folder) for folder in ("judgements", UNASKED)]
    tables = [folder.read_table(name) for folder in folders if folder.exists(name)]
    # Rows set aside have no columns of the S-VLM; the empty table brings them.
    return pa.concat_tables([JUDGEMENTS.empty_table(), *tables], promote_options="default")


def new_verdicts(rows: pa.Table, matches: Matcher) -> list[str | None]:
    """The verdict of each row of judgements; None where the S-VLM would have to be asked."""
    columns = (
        rows.column(name).to_pylist()
        for name in ("answer", "lvlm_answer", "svlm_answer", "jury_answers")
    )
    return [
        verdict_of(
            answer=answer,
            lvlm_answer=lvlm_answer,
            svlm_answer=svlm_answer,
            matches=matches,
            jury_answers=jury_answers or (),
        )
        for answer, lvlm_answer, svlm_answer, jury_answers in zip(*columns, strict=True)
    ]


def _matcher_before(run: Folder) -> str | None:
    if run.exists(RECORD):
        return run.read_json(RECORD)["matcher"]
    config = config_of(run)
    return config.matcher if config else None


def _record(transitions: Counter[tuple[str, str]]) -> dict[str, Any]:
    def counts(place: int) -> dict[str, int]:
        return {
            state: sum(rows for move, rows in transitions.items() if move[place] == state)
            for state in (*map(str, Verdict), UNASKED)
        }

    before, after = counts(0), counts(1)
    return {
        "rows": sum(before.values()),
        "before": before,
        "after": after,
        "transitions": [
            {"before": was, "after": now, "rows": rows}
            for (was, now), rows in sorted(transitions.items())
        ],
    }


def table(record: dict[str, Any]) -> str:
    """The record for a terminal: how many rows had which verdict, and which they have now."""
    states = [*map(str, Verdict), UNASKED]
    moved = {(item["before"], item["after"]): item["rows"] for item in record["transitions"]}
    was = record["matcher_before"] or "unknown"
    lines = [[f"before ({was})", "rows", *(f"-> {state}" for state in states)]]
    lines += [
        [
            state,
            f"{record['before'][state]:,}",
            *(f"{moved.get((state, now), 0):,}" for now in states),
        ]
        for state in states
    ]
    lines.append(
        [
            f"after ({record['matcher']})",
            f"{record['rows']:,}",
            *(f"{record['after'][state]:,}" for state in states),
        ]
    )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    if unasked := record["after"][UNASKED]:
        text.append(
            f"{unasked:,} rows are consistent now and their S-VLM was never asked: they have no"
            f" verdict and are in {UNASKED}/"
        )
    return "\n".join(text)
