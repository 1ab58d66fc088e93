"""What index.html shows of a run, as plain values for its template."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from mpa_ray.config import COMPARISONS
from mpa_ray.observability.text_table import interval
from mpa_ray.report import charts
from mpa_ray.report.charts import Axis
from mpa_ray.report.facts import Facts
from mpa_ray.report.gains import AFTER, ANSWER_TYPES, BEFORE, CEILING, Evaluation, Group
from mpa_ray.report.selection import Selection
from mpa_ray.schema import CALLS, Verdict, token_columns
from mpa_ray.storage.folder import Folder

LABELS = {
    BEFORE: "S-VLM before",
    AFTER: "S-VLM after MPA",
    CEILING: "L-VLM",
    **{name: found.label for name, found in COMPARISONS.items()},
}
_SURE = 0.05


def overview(run: Folder, found: Facts, selection: Selection) -> dict[str, Any]:
    """The context of report.html."""
    evaluation = Evaluation(run, found.evaluation)
    return {
        "headline": headline(evaluation),
        "funnel": funnel(found),
        "quarantine": sorted(found.data["quarantined"].items(), key=lambda item: -item[1]),
        "scores": scores(found, evaluation),
        "axis": charts.axis_of(drawn(evaluation)),
        "evaluation": evaluation,
        "further": further_scores(found, evaluation),
        "by_kind": by_kind(evaluation),
        "parity_by_type": parity_by_type(selection),
        "labels": LABELS,
        "calls": calls(found.data["tokens"]),
        "progress": progress(found),
        "rerun": rerun(found),
    }


def drawn(evaluation: Evaluation) -> list[float]:
    """Each model's official score and the ends of its interval."""
    return [
        value for score in evaluation.scores for value in (score["score"], *(score["ci95"] or ()))
    ]


def headline(evaluation: Evaluation) -> dict[str, Any] | None:
    """Before, after, and how sure the difference is; None where a score is lacking."""
    before, after = evaluation.score(BEFORE), evaluation.score(AFTER)
    if before is None or after is None:
        return None
    test = evaluation.test(AFTER, BEFORE)
    ceiling = evaluation.score(CEILING)
    gap = ceiling["score"] - before["score"] if ceiling else 0.0
    return {
        "before": before,
        "after": after,
        "ceiling": ceiling,
        "difference": after["score"] - before["score"],
        "test": test,
        "sure": test is not None and test["p_value"] < _SURE,
        "closed": 100 * (after["score"] - before["score"]) / gap if gap > 0 else None,
    }


def funnel(found: Facts) -> list[dict[str, Any]]:
    """From images to what was trained on: a step each, with the count it is a part of."""
    data, verdicts = found.data, found.data["verdicts"]
    parity, correct = verdicts.get(Verdict.PARITY, 0), verdicts.get(Verdict.SVLM_CORRECT, 0)
    if found.config.get("parity"):
        trained = (
            [_step("Trained on", found.training[AFTER]["samples"], None, "samples", kind="parity")]
            if AFTER in found.training
            else []
        )
        return [_step("Parity set, made elsewhere", parity, None, "", kind="parity"), *trained]
    steps = [
        _step(
            "Images worked on",
            data["images"],
            found.listed,
            "of those listed" if found.listed else "",
        ),
        _step("Annotations by the L-VLM", data["annotations"], None, ""),
        _step(
            "L-VLM agrees with itself", parity + correct, data["annotations"], "of the annotations"
        ),
        _step(
            "Parity set: S-VLM was wrong",
            parity,
            data["annotations"],
            "of the annotations",
            kind="parity",
        ),
    ]
    if AFTER in found.training:
        steps.append(
            _step(
                "Trained on",
                found.training[AFTER]["samples"],
                None,
                "samples; the rest is held out",
                kind="parity",
            )
        )
    return steps


def _step(
    name: str, count: int, of: int | None, note: str, *, kind: str = "plain"
) -> dict[str, Any]:
    return {
        "name": name,
        "count": count,
        "share": f"{100 * count / of:.1f}%" if of else "",
        "note": note,
        "kind": kind,
    }


def scores(found: Facts, evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row a model: the official score, its interval, and how far it is from the S-VLM before."""
    rows = []
    last = {AFTER: 1, CEILING: 3}
    for score in sorted(
        evaluation.scores,
        key=lambda score: 0 if score["model"] == BEFORE else last.get(score["model"], 2),
    ):
        name = score["model"]
        trained = found.training.get(name)
        rows.append(
            {
                "name": name,
                "label": LABELS.get(name, name),
                "score": score["score"],
                "ci95": score["ci95"],
                "interval": interval(score["ci95"]),
                "n": score["n"],
                "samples": trained["samples"] if trained else None,
                "test": evaluation.test(name, BEFORE) if name != BEFORE else None,
            }
        )
    return rows


def by_kind(evaluation: Evaluation) -> list[tuple[str, list[Group], Axis]]:
    """Tables of kinds of questions: title, the kinds scored before and after, their scores'
    axis.
    """
    tables = {
        "By question": evaluation.by_question_kind(),
        "By answer": _in_order(evaluation.by_answer_type()),
    }
    found = []
    for title, groups in tables.items():
        rows = [group for group in groups if {BEFORE, AFTER} <= group.scores.keys()]
        shown = [row.scores.get(model) for row in rows for model in (BEFORE, AFTER, CEILING)]
        if rows:
            found.append((title, rows, charts.axis_of(s for s in shown if s is not None)))
    return found


def further_scores(found: Facts, evaluation: Evaluation) -> list[tuple[str, dict[str, float]]]:
    """Each further metric with its score of each model."""
    metrics = evaluation.further
    return [
        (
            metric,
            {
                score["model"]: score["score"]
                for score in found.evaluation
                if score["metric"] == metric
            },
        )
        for metric in metrics
    ]


def parity_by_type(selection: Selection) -> list[dict[str, Any]]:
    """Of each answer type: annotations, and those the S-VLM had wrong."""
    rows = []
    for kind in ANSWER_TYPES:
        counts = {str(verdict): selection.by_type[kind, str(verdict)] for verdict in Verdict}
        if rows_of_kind := sum(counts.values()):
            rows.append(
                {
                    "name": kind,
                    "rows": rows_of_kind,
                    "counts": counts,
                    "share": 100 * counts[Verdict.PARITY] / rows_of_kind,
                }
            )
    return rows


def _in_order(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: ANSWER_TYPES.index(group.name))


def calls(tokens: dict[str, int]) -> list[dict[str, Any]]:
    """A row a call an image: tokens in, the share of them found cached, tokens out."""
    rows = []
    for name, call in CALLS.items():
        prompt, cached, output = (tokens.get(column, 0) for column in token_columns(name))
        if prompt:
            share = 100 * cached / prompt if prompt else 0.0
            rows.append({"label": call.label, "prompt": prompt, "share": share, "output": output})
    return rows if tokens else []


def progress(found: Facts) -> dict[str, Any] | None:
    """How far an unfinished run is; None for a finished one."""
    if found.finished:
        return None
    done, seconds = found.data["images"], found.data["seconds"]
    left = max(0, (found.listed or done) - done)
    return {
        "done": done,
        "of": found.listed,
        "to_go": left * seconds / done if done and left else None,
    }


def rerun(found: Facts) -> dict[str, str] | None:
    """The settings as a file that a job takes, and the command; None where they are of another
    version.
    """
    if found.settings is None:
        return None
    tree = found.settings.model_dump(mode="json", exclude={"output"})
    output = f"{found.uri}-again"
    return {
        "yaml": yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120),
        "again": f"python jobs/mpa_textvqa.py --config rerun.yaml --output {shlex.quote(output)}",
        "report": f"python jobs/report.py --output {shlex.quote(found.uri)}",
    }
