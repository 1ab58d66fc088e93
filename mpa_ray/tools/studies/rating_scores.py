"""Scores of filled rating sheets: means before and after PI with bootstrap intervals, agreement of
the raters, Table 4 beside them.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.clean_text import visible_line
from mpa_ray.report.rating_questions import AFTER, BEFORE, HUMAN, QUESTIONS
from mpa_ray.tasks.confidence import bootstrap_interval
from mpa_ray.tools.studies.agreement import fleiss_kappa, krippendorff_alpha

# Table 4: 500 samples, 3 raters; the order of QUESTIONS. The paper prints human-likeness in
# percent.
TABLE_4 = {
    ("Qwen2VL-7B", BEFORE): (0.76, 0.68, 0.80, 0.58),
    ("Qwen2VL-7B", AFTER): (0.92, 0.84, 0.92, 0.74),
    ("InternVL2-8B", BEFORE): (0.74, 0.65, 0.78, 0.56),
    ("InternVL2-8B", AFTER): (0.87, 0.78, 0.88, 0.73),
}

_YES = frozenset({"1", "1.0", "1,0", "yes", "y", "true"})
_NO = frozenset({"0", "0.0", "0,0", "no", "n", "false"})
_LISTED = 20

Ratings = dict[tuple[str, str], int]
"""(item, question) -> 0 or 1; what was left empty is not in it."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One rater's filled sheet."""

    name: str
    ratings: Ratings
    missing: tuple[str, ...]
    """A text for each item that was left out wholly or in part: the row and what is missing."""


def read_key(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The groups of each item, from key.csv.

    Raises:
        ConfigurationError: it is no key file.
    """
    return {
        row["item"]: tuple(row["groups"].split())
        for _, row in _rows(Path(path), ("item", "groups"))
    }


def read_sheet(path: str | Path, items: Iterable[str]) -> Sheet:
    """A filled sheet, in whatever order and with whatever delimiter the spreadsheet saved it.

    Raises:
        ConfigurationError: a line for each cell that is neither yes, no nor empty, each item that
            is there twice, and each unknown one.
    """
    path = Path(path)
    ratings: Ratings = {}
    problems: list[str] = []
    missing: list[str] = []
    unseen = dict.fromkeys(items)
    known = frozenset(unseen)
    for line, row in _rows(path, ("item", *QUESTIONS)):
        item = (row["item"] or "").strip()
        if item not in unseen:
            problems.append(
                f"{path}, row {line}: item {item!r}"
                f" {'is there twice' if item in known else 'is not in the key'}"
            )
            continue
        del unseen[item]
        cells = {question: (row[question] or "").strip().casefold() for question in QUESTIONS}
        for question, cell in cells.items():
            if cell in _YES or cell in _NO:
                ratings[item, question] = int(cell in _YES)
            elif cell:
                problems.append(
                    f"{path}, row {line}, {question}: {row[question][:40]!r} is neither 1 nor 0;"
                    " correct it, or leave it empty"
                )
        if empty := [question for question, cell in cells.items() if not cell]:
            missing.append(f"row {line} ({item}): {', '.join(empty)}")
    if problems:
        more = (
            [f"... and {len(problems) - _LISTED} more like these"]
            if len(problems) > _LISTED
            else []
        )
        raise ConfigurationError(*problems[:_LISTED], *more)
    missing += [f"{item}: no row" for item in unseen]
    return Sheet(name=path.name, ratings=ratings, missing=tuple(missing))


def _rows(path: Path, needed: tuple[str, ...]) -> Iterable[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their line numbers; comma, semicolon or tab between cells."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file")
    # Only ASCII columns are read, so the encoding in which a spreadsheet saved the questions does
    # not matter.
    text = path.read_bytes().decode("utf-8-sig", "replace")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        absent = [name for name in needed if name not in (reader.fieldnames or [])]
        if absent:
            raise ConfigurationError(
                f"{path}: no column {absent[0]!r}; it has"
                f" {', '.join(map(str, reader.fieldnames or [])) or 'none'}"
            )
        for row in reader:
            if any(row[name] for name in needed):
                yield reader.line_num, row
    except csv.Error as error:
        raise ConfigurationError(
            f"{path}, row {reader.line_num + 1}: not CSV ({error}); save the sheet as CSV again"
        ) from error


def score(
    groups: dict[str, tuple[str, ...]], sheets: list[Sheet], *, seed: int = 0
) -> dict[str, Any]:
    """Means, intervals and agreement.

    An item's score is the mean of its ratings, a group's the mean of its items; the interval
    resamples items, not raters.

    Returns:
        {"raters": names, "missing": {name: texts}, "scores": [{"group", "question", "mean" in 0..1,
        "ci95", "items", "ratings"}], "agreement": {question: {"krippendorff_alpha", "fleiss_kappa",
        "fleiss_items"}}}; a coefficient is None where it is undefined. Fleiss' kappa is over the
        items that every rater rated.

    Raises:
        ConfigurationError: no sheet, two of one name, or a group with no rating of a question.
    """
    names = [sheet.name for sheet in sheets]
    if not sheets or len(set(names)) < len(names):
        raise ConfigurationError(
            f"sheets {', '.join(names) or '(none)'}: give each rater's file once, under a name of"
            " its own"
        )
    scores, agreement = [], {}
    for question in QUESTIONS:
        ratings = {
            item: [
                sheet.ratings[item, question]
                for sheet in sheets
                if (item, question) in sheet.ratings
            ]
            for item in groups
        }
        complete = [found for found in ratings.values() if len(found) == len(sheets)]
        agreement[question] = {
            "krippendorff_alpha": krippendorff_alpha(ratings.values()),
            "fleiss_kappa": fleiss_kappa(complete),
            "fleiss_items": len(complete),
        }
        for group in _groups_of(groups):
            found = [
                ratings[item]
                for item, its_groups in groups.items()
                if group in its_groups and ratings[item]
            ]
            if not found:
                raise ConfigurationError(
                    f"no sheet has a rating of {question} for any item {group}; at least one is"
                    " needed"
                )
            means = [fmean(item) for item in found]
            interval = bootstrap_interval(means, seed=seed)
            row = {
                "group": group,
                "question": question,
                "mean": fmean(means),
                "ci95": list(interval),
            }
            scores.append(row | {"items": len(found), "ratings": sum(map(len, found))})
    return {
        "raters": names,
        "missing": {sheet.name: list(sheet.missing) for sheet in sheets},
        "scores": scores,
        "agreement": agreement,
    }


def _groups_of(groups: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        group
        for group in (BEFORE, AFTER, HUMAN)
        if any(group in its_groups for its_groups in groups.values())
    ]


def tables(result: dict[str, Any]) -> str:
    """The scores beside Table 4 of the paper, the agreement, and what is missing, for a
    terminal.
    """
    scores = {(row["group"], row["question"]): row for row in result["scores"]}
    groups = list(dict.fromkeys(group for group, _ in scores))
    lines = [["", *QUESTIONS]]
    for group in groups:
        rows = [scores[group, question] for question in QUESTIONS]
        lines.append([f"ours, {group}", *(_shown(row["mean"], row["question"]) for row in rows)])
        lines.append(
            [
                "  95% interval",
                *(" to ".join(_shown(end, row["question"]) for end in row["ci95"]) for row in rows),
            ]
        )
    for (model, group), values in TABLE_4.items():
        lines.append(
            [
                f"paper, {model}, {group}",
                *(
                    _shown(value, question)
                    for value, question in zip(values, QUESTIONS, strict=True)
                ),
            ]
        )
    agreement = result["agreement"]
    for name, label in (
        ("krippendorff_alpha", "Krippendorff's alpha"),
        ("fleiss_kappa", "Fleiss' kappa"),
    ):
        agreed = [agreement[question][name] for question in QUESTIONS]
        lines.append([label, *("-" if value is None else f"{value:.2f}" for value in agreed)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    for rater, missing in result["missing"].items():
        if missing:
            more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            said = f"{rater}: missing in {len(missing)} items: {'; '.join(missing[:_LISTED])}{more}"
            text.append(visible_line(said))
    return "\n".join(text)


def _shown(value: float, question: str) -> str:
    return f"{100 * value:.0f}%" if question == "human_likeness" else f"{value:.2f}"
