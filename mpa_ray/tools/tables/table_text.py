"""A table of the paper as it came out: our figures beside the paper's, over seeds, and who leads by
the figures.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpa_ray.observability.text_table import aligned, interval
from mpa_ray.tasks import confidence
from mpa_ray.tools.tables.paper import LVLM, MPA, ZERO_SHOT, Cell, Figure, Table

if TYPE_CHECKING:
    from mpa_ray.tools.tables.outcome import Outcome

_COMPAT = "mpa_compat_accuracy"
LABELS = {
    ZERO_SHOT: "zero-shot",
    LVLM: "the L-VLM itself",
    MPA: "MPA",
    "no_pi_all": "all pseudo-labels (no PI)",
    "no_pi_same_size": "as many pseudo-labels, unfiltered",
    "consistent": "all self-consistent pseudo-labels",
    "human_labels": "all human labels",
    "few_shot_full": "few human labels, full fine-tuning",
    "few_shot_lora": "few human labels, LoRA",
}


def describe(
    table: Table, outcomes: Sequence["Outcome"], *, seeds: Sequence[int | None]
) -> dict[str, Any]:
    """The table as data: a row a figure, a claim a comparison of MPA with what it is compared with,
    and what did not run.

    Returns:
        {"table", "title", "note", "seeds", "rows": [...], "claims": [...], "did_not_run": [{"cell",
        "seed", "reason"}]}
    """
    cells = [
        (cell, [outcome for outcome in outcomes if outcome.cell == cell]) for cell in table.cells
    ]
    return {
        "table": table.number,
        "title": table.title,
        "note": table.note,
        "seeds": [seed for seed in seeds if seed is not None],
        "rows": [_row(figure, found) for cell, found in cells for figure in cell.figures],
        "claims": [claim for cell, found in cells for claim in _claims(cell, found)],
        "did_not_run": [
            {"cell": _name(found.cell), "seed": found.seed, "reason": found.reason}
            for found in outcomes
            if found.reason
        ],
    }


def _row(figure: Figure, outcomes: Sequence["Outcome"]) -> dict[str, Any]:
    cell = outcomes[0].cell
    scored = [(outcome, score) for outcome in outcomes if (score := outcome.score(figure))]
    scores = [score["score"] for _, score in scored]
    compat = [score["score"] for outcome in outcomes if (score := outcome.score(figure, _COMPAT))]
    samples = [
        arms[figure.model]["samples"]
        for outcome, _ in scored
        if outcome.record and figure.model in (arms := outcome.record["training"])
    ]
    row: dict[str, Any] = {
        "task": cell.task,
        "lvlm": cell.lvlm,
        "svlm": cell.svlm,
        "model": figure.model,
        "benchmark": figure.benchmark or cell.task,
        "metric": scored[0][1]["metric"] if scored else figure.metric,
        "scores": scores,
        "mean": statistics.mean(scores) if scores else None,
        "standard_deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "ci95": None,
        "mpa_compat": statistics.mean(compat) if compat else None,
        "samples": round(statistics.mean(samples)) if samples else None,
        "paper": figure.paper,
        "paper_samples": figure.samples,
    }
    if len(scored) == 1:
        row["ci95"] = scored[0][1]["ci95"]
    elif scored and scored[0][1]["ci95"]:
        row["ci95"] = [
            100 * bound
            for bound in confidence.bootstrap_interval(
                _by_question(figure, [outcome for outcome, _ in scored])
            )
        ]
    return row


def _by_question(figure: Figure, outcomes: Sequence["Outcome"]) -> NDArray[np.float64]:
    """Each question's score, the mean over seeds: an interval then is of the questions, and the
    spread of the seeds stands beside it.
    """
    columns = []
    for outcome in outcomes:
        entry = outcome.score(figure)
        assert entry is not None
        table = (
            outcome.predictions(figure)
            .read_table(f"{figure.model}.parquet", ["question_id", entry["metric"]])
            .sort_by("question_id")
        )
        columns.append(table.column(entry["metric"]).to_numpy())
    return np.mean(columns, axis=0)


def _claims(cell: Cell, outcomes: Sequence["Outcome"]) -> Iterable[dict[str, Any]]:
    """MPA against all else that was trained, on the same questions: the difference, its interval,
    and in how many seeds MPA is ahead.
    """
    for benchmark in ("", *cell.benchmarks):
        figures = {figure.model: figure for figure in cell.figures if figure.benchmark == benchmark}
        mpa = figures.pop(MPA, None)
        for name, figure in figures.items():
            if name in (ZERO_SHOT, LVLM) or not mpa:
                continue
            scored = [
                (found, ours, theirs)
                for found in outcomes
                if (ours := found.score(mpa)) and (theirs := found.score(figure))
            ]
            if not scored or not scored[0][1]["ci95"]:
                continue
            both = [found for found, _, _ in scored]
            pairs = [(ours["score"], theirs["score"]) for _, ours, theirs in scored]
            tested = confidence.paired_test(_by_question(mpa, both), _by_question(figure, both))
            low, high = (100 * bound for bound in tested["ci95"])
            yield {
                "cell": _name(cell),
                "benchmark": benchmark or cell.task,
                "against": name,
                "difference": 100 * tested["difference"],
                "ci95": [low, high],
                "p_value": tested["p_value"],
                "ahead": sum(ours > theirs for ours, theirs in pairs),
                "of": len(pairs),
                "leads": MPA if low > 0 else name if high < 0 else None,
            }


def text(found: dict[str, Any]) -> str:
    """The table as Markdown: figures, who leads, and what did not run."""
    lines = [
        f"## Table {found['table']}: {found['title']}",
        "",
        "```",
        aligned(_rows(found)),
        "```",
        "",
    ]
    lines += [found["note"], ""] if found["note"] else []
    lines += _leads(found["claims"])
    if found["did_not_run"]:
        lines += ["Cells that did not run:", "", *map(_reason, found["did_not_run"]), ""]
    return "\n".join(lines)


def _reason(item: dict[str, Any]) -> str:
    seed = "" if item["seed"] is None else f" / seed {item['seed']}"
    return f"- {item['cell']}{seed}: {item['reason']}"


def _rows(found: dict[str, Any]) -> list[list[str]]:
    seeds, paper = len(found["seeds"]) > 1, any(row["paper"] is not None for row in found["rows"])
    head = ["task", "L-VLM", "S-VLM", "model", "score", "percent", "95% interval"]
    head += ["sd over seeds"] if seeds else []
    head += ["mpa_compat", "trained on"] + (["paper", "paper trained on"] if paper else [])
    rows = [head]
    for row in found["rows"]:
        cells = [
            row["task"],
            row["lvlm"],
            row["svlm"],
            LABELS[row["model"]],
            _metric(row),
            _percent(row["mean"]),
            interval(row["ci95"]),
        ]
        cells += [_percent(row["standard_deviation"])] if seeds else []
        cells += [
            _percent(row["mpa_compat"]),
            "-" if row["samples"] is None else f"{row['samples']:,}",
        ]
        rows.append(
            cells + ([_percent(row["paper"]), row["paper_samples"] or "-"] if paper else [])
        )
    return rows


def _metric(row: dict[str, Any]) -> str:
    return " ".join(
        [*([row["benchmark"]] if row["benchmark"] != row["task"] else []), row["metric"] or "-"]
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _leads(claims: Sequence[dict[str, Any]]) -> list[str]:
    """Who leads, said of the figures above and of nothing else: a lead is an interval that excludes
    0.
    """
    if not claims:
        return []
    ours = [f"- MPA leads over {_compared(claim)}" for claim in claims if claim["leads"] == MPA]
    theirs = [
        f"- MPA trails {_compared(claim)}" for claim in claims if claim["leads"] not in (MPA, None)
    ]
    level = [
        f"- too close to tell: {_compared(claim)}" for claim in claims if claim["leads"] is None
    ]
    title = (
        "MPA's score minus that of others trained from the same S-VLM, on the same questions,"
        " in points (95% interval):"
    )
    return [
        title,
        "",
        *(ours or ["- MPA leads nowhere"]),
        *(theirs or ["- MPA trails nowhere"]),
        *level,
        "",
    ]


def _compared(claim: dict[str, Any]) -> str:
    low, high = claim["ci95"]
    task = claim["cell"].partition(" / ")[0]
    where = (
        claim["cell"] if claim["benchmark"] == task else f"{claim['cell']} on {claim['benchmark']}"
    )
    seeds = f"; ahead in {claim['ahead']} of {claim['of']} seeds" if claim["of"] > 1 else ""
    return (
        f"{LABELS[claim['against']]}, {where}: {claim['difference']:+.1f} ({low:+.1f} to"
        f" {high:+.1f}{seeds})"
    )


def _name(cell: Cell) -> str:
    return f"{cell.task} / {cell.lvlm} / {cell.svlm}"
