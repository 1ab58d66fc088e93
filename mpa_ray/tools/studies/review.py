"""A parity set as its raters leave it: rows dropped and fixed, written as a new folder, file by
file; the run stays as it is.

OUTPUT/parity/       what is left, for the Parity Leveler (`mpa_ray.level`)
OUTPUT/review.json   what was done and why, row by row; written last
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa

from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.clean_text import visible_line
from mpa_ray.report.rating_questions import QUESTIONS, fingerprint
from mpa_ray.report.run_folder import new_folder, require
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.ratings import Rating

RECORD = "review.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is done with a rated row, and why. A row on which raters disagree is kept as it is."""

    action: Literal["keep", "drop", "fix", "disagreement"]
    reason: str
    question: str | None = None
    answer: str | None = None


def outcome(ratings: Sequence[Rating], thresholds: Mapping[str, float]) -> Outcome:
    """What the raters of one row decided.

    More than half of those who decided must have decided the same, for a fix with the same text.
    Thresholds come into play where no such majority keeps or fixes the row: a question's mean
    rating below its threshold drops it.
    """
    decided = [rating for rating in ratings if rating.decision]
    # Only a fix has texts: others than a fix may have those of one that was taken back.
    texts = [
        (rating.question, rating.answer) if rating.decision == "fix" else (None, None)
        for rating in decided
    ]
    votes = Counter((rating.decision, *text) for rating, text in zip(decided, texts, strict=True))
    (action, question, answer), count = (
        votes.most_common(1)[0] if votes else ((None, None, None), 0)
    )
    if action and 2 * count > len(decided):
        return Outcome(
            action=action,
            reason=f"{count} of {len(decided)} raters who decided",
            question=question,
            answer=answer,
        )
    for name, least in thresholds.items():
        values = [value for rating in ratings if (value := getattr(rating, name)) is not None]
        if values and fmean(values) < least:
            return Outcome(action="drop", reason=f"{name} {fmean(values):.2f} is below {least:g}")
    if votes:
        return Outcome(
            action="disagreement",
            reason=", ".join(
                f"{name}: {votes_for}" for (name, _, _), votes_for in votes.most_common()
            ),
        )
    return Outcome(action="keep", reason="rated, and nothing speaks against it")


def apply(
    run: Folder, ratings: list[Rating], output: Folder, *, thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Write the parity set of `run` into `output`, rows dropped and fixed as the ratings say.

    Args:
        run: a run's output folder.
        ratings: of its samples; a row that nobody rated is kept.
        output: a new folder.
        thresholds: question -> the mean rating below which a row is dropped.

    Returns:
        What is in review.json: {"run", "raters", "rows", "rated", "kept", "dropped", "fixed",
        "disagreements", "not_in_parity", "other_text", "outcomes"}; `other_text` counts ratings of
        a text that the row does not have.

    Raises:
        ConfigurationError: no parity set, an unknown question, or the output holds files.
    """
    unknown = [name for name in thresholds if name not in QUESTIONS]
    if unknown:
        raise ConfigurationError(
            f"--drop_below {unknown[0]}: there is no such question; give one of"
            f" {', '.join(QUESTIONS)}"
        )
    parity = require(run, "parity")
    with new_folder(output, by="jobs/review.py"):
        return _apply(run, parity, ratings, output, thresholds)


def _apply(
    run: Folder,
    parity: Folder,
    ratings: list[Rating],
    output: Folder,
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    by_id: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        by_id[rating.id].append(rating)
    counts: Counter[str] = Counter()
    outcomes: list[dict[str, Any]] = []
    for name in parity.names(".parquet"):
        table = parity.read_table(name)
        left = _reviewed(table, by_id, thresholds, counts, outcomes)
        if left.num_rows:
            output.write_table(f"parity/{name}", left)
    seen = {item["sample_id"] for item in outcomes}
    record = {
        "run": run.uri,
        "raters": sorted({rating.rater for rating in ratings}),
        "drop_below": dict(thresholds),
        **{
            name: counts[name]
            for name in ("rows", "rated", "kept", "dropped", "fixed", "disagreements", "other_text")
        },
        "not_in_parity": len(by_id.keys() - seen),
        "outcomes": outcomes,
    }
    output.write_json(RECORD, record)
    return record


_COUNTED = {"keep": "kept", "drop": "dropped", "fix": "fixed", "disagreement": "disagreements"}


def _reviewed(
    table: pa.Table,
    by_id: Mapping[str, list[Rating]],
    thresholds: Mapping[str, float],
    counts: Counter[str],
    outcomes: list[dict[str, Any]],
) -> pa.Table:
    """What is left of one file. Images are not touched: only the text columns become Python
    values.
    """
    texts = {name: table.column(name).to_pylist() for name in ("sample_id", "question", "answer")}
    keep = []
    for number, sample_id in enumerate(texts["sample_id"]):
        counts["rows"] += 1
        mark = fingerprint(texts["question"][number], texts["answer"][number])
        about = [rating for rating in by_id.get(sample_id, ()) if rating.fingerprint == mark]
        counts["other_text"] += len(by_id.get(sample_id, ())) - len(about)
        result = outcome(about, thresholds) if about else Outcome(action="keep", reason="not rated")
        if result.action == "fix" and (result.question, result.answer) == (
            texts["question"][number],
            texts["answer"][number],
        ):
            result = Outcome(action="keep", reason=f"{result.reason}, with the text it has")
        keep.append(result.action != "drop")
        counts[_COUNTED[result.action]] += 1
        counts["rated"] += bool(about)
        if sample_id in by_id:
            outcomes.append(
                {"sample_id": sample_id, "action": result.action, "reason": result.reason}
            )
        if result.action == "fix":
            outcomes[-1]["before"] = {name: texts[name][number] for name in ("question", "answer")}
            texts["question"][number], texts["answer"][number] = result.question, result.answer
    for name in ("question", "answer"):
        place = table.column_names.index(name)
        table = table.set_column(
            place, table.schema.field(name), pa.array(texts[name], pa.string())
        )
    # The metadata by which `datasets` knows the column of images is the schema's, and must outlive
    # the change.
    return table.filter(pa.array(keep, pa.bool_())).select(PARITY.names).cast(PARITY)


def told(record: dict[str, Any]) -> str:
    """The record in a line or two, for a terminal."""
    raters = visible_line(", ".join(record["raters"]))
    lines = [
        f"{record['rows']:,} rows, {record['rated']:,} of them rated by {raters}:"
        f" {record['dropped']:,} dropped, {record['fixed']:,} fixed, {record['kept']:,} kept as"
        " they are"
    ]
    if record["disagreements"]:
        lines.append(
            f"{record['disagreements']:,} rows are kept although some raters would drop or fix"
            " them: there is no majority"
        )
    if record["other_text"]:
        lines.append(
            f"{record['other_text']:,} ratings are of another text than the row has and were left"
            " out"
        )
    if record["not_in_parity"]:
        lines.append(f"{record['not_in_parity']:,} rated samples are not in the parity set")
    return "\n".join(lines)
