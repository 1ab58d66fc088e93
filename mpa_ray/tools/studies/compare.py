"""Several runs side by side: their data, how far their parity sets overlap, their scores with
paired tests, and what they cost.

A run is compared with the first one. Nothing is loaded but counts, the ids of parity samples (8
bytes each) and predictions.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.observability.progress import duration
from mpa_ray.observability.text_table import aligned, dollars, interval
from mpa_ray.report import charts, facts, page
from mpa_ray.report.facts import Facts
from mpa_ray.report.gains import AFTER, BEFORE, CEILING, Evaluation, compared
from mpa_ray.report.run_folder import folders
from mpa_ray.report.text import visible
from mpa_ray.report.views import LABELS, drawn
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.confidence import PairedTest

_NONE = "-"
_MODELS = (BEFORE, AFTER, CEILING)

Row = list[str]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run among those that are compared.

    Attributes:
        name: short, and unique among them.
        images: where its images lay; None where it began with annotations or a parity set.
        relative: whether its samples are known by the paths of their images below that, and not by
            whole references.
        questions: a hash of the benchmark's questions (`questions_of`); None where they are not
            known.
        against_first: model -> the paired test against the same model of the first run in percent,
            and on how many questions.
    """

    name: str
    facts: Facts
    evaluation: Evaluation
    parity: NDArray[np.uint64]
    images: str | None
    relative: bool
    questions: str | None
    against_first: dict[str, tuple[PairedTest | None, int]]


def compare(runs: Sequence[Folder]) -> list[Compared]:
    """The runs, read.

    Raises:
        ConfigurationError: fewer than two, or a folder that holds no run.
    """
    found: list[Compared] = []
    for run, name in zip(runs, _names(runs), strict=True):
        known = facts.read(run)
        evaluation, questions = Evaluation(run, known.evaluation), questions_of(run)
        is_same = bool(found) and (evaluation.metric, questions) == (
            found[0].evaluation.metric,
            found[0].questions,
        )
        tests = _tests(evaluation, found[0].evaluation) if is_same else {}
        listed = manifest.load(run.child("manifest"))
        found.append(
            Compared(
                name=name,
                facts=known,
                evaluation=evaluation,
                parity=parity_ids(run),
                images=known.config.get("images") if listed else None,
                relative=bool(listed and listed.root),
                questions=questions,
                against_first=tests,
            )
        )
    if len(found) < 2:
        raise ConfigurationError("give at least two runs to compare")
    return found


def _names(runs: Sequence[Folder]) -> list[str]:
    """The folders' own names, or their whole URIs where those do not tell them apart."""
    short = [run.uri.rstrip("/").rpartition("/")[2] for run in runs]
    return short if len(set(short)) == len(short) else [run.uri for run in runs]


def _tests(evaluation: Evaluation, first: Evaluation) -> dict[str, tuple[PairedTest | None, int]]:
    both = [model for model in evaluation.predictions if model in first.predictions]
    return {
        model: compared(evaluation.predictions[model], first.predictions[model]) for model in both
    }


def questions_of(run: Folder) -> str | None:
    """A hash of the questions that a run's models were asked, with ids and answers, in any order;
    None where no prediction is kept.

    An id alone says little: it is often the question's place in its file.
    """
    # All rounds ask the same questions.
    folders = [run.child(f"{folder}evaluation/predictions") for folder in ("", "rounds/1/")]
    kept = next(((folder, name) for folder in folders for name in folder.names(".parquet")), None)
    if kept is None:
        return None
    rows = kept[0].read_table(kept[1], ["question_id", "question", "answers"]).to_pylist()
    return hashlib.sha256("\n".join(sorted(json.dumps(row) for row in rows)).encode()).hexdigest()


def parity_ids(run: Folder) -> NDArray[np.uint64]:
    """The sample_ids of the parity set, each as 8 bytes of its hash, sorted."""
    ids = [
        int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8])
        for folder in folders(run)
        for table in folder.child("parity").tables(["sample_id"])
        for sample_id in table.column(0).to_pylist()
    ]
    return np.unique(np.array(ids, dtype=np.uint64))


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float | None:
    """The share of the samples of either set that are in both; None where both are empty."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return both / either if either else None


def tables(runs: Sequence[Compared]) -> list[tuple[str, list[Row]]]:
    """What is compared, as titled tables: a header row, then one row a figure, one column a run."""
    header = ["", *(run.name for run in runs)]
    return [
        ("Set-up", [header, *_differences(runs)]),
        ("Data", [header, *_data(runs)]),
        (f"Parity sets, shared samples (Jaccard){_matched_by(runs)}", [header, *_overlap(runs)]),
        *((f"Accuracy, {title}", [header, *rows]) for title, rows in _scores(runs)),
        ("Tokens, time and cost", [header, *_cost(runs)]),
    ]


def _differences(runs: Sequence[Compared]) -> Iterable[Row]:
    """The settings in which the runs differ."""
    flat = [dict(_flat(run.facts.config)) for run in runs]
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [settings.get(name, _NONE) for settings in flat]
        if len(set(values)) > 1:
            yield [name, *values]


def _flat(tree: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        elif before + name != "output":
            yield f"{before}{name}", str(value)


def _data(runs: Sequence[Compared]) -> Iterable[Row]:
    data = [run.facts.data for run in runs]
    yield ["finished", *("yes" if run.facts.finished else "no" for run in runs)]
    yield ["images", *(f"{one['images']:,}" for one in data)]
    yield ["annotations", *(f"{one['annotations']:,}" for one in data)]
    for verdict in map(str, Verdict):
        yield [
            verdict.replace("_", " "),
            *(_part(one["verdicts"].get(verdict, 0), one["annotations"]) for one in data),
        ]
    for reason in dict.fromkeys(reason for one in data for reason in one["quarantined"]):
        yield [
            f"quarantined: {reason}",
            *(f"{one['quarantined'].get(reason, 0):,}" for one in data),
        ]


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({100 * count / whole:.1f}%)" if whole else f"{count:,}"


def _matched_by(runs: Sequence[Compared]) -> str:
    """What a reader should know of samples of images that lay in several places."""
    roots = {run.images for run in runs if run.relative}
    return (
        "; image roots differ, so images are matched by their paths below them"
        if len(roots) > 1
        else ""
    )


def _overlap(runs: Sequence[Compared]) -> Iterable[Row]:
    for run in runs:
        yield [run.name, *(_shared(run, other) for other in runs)]


def _shared(run: Compared, other: Compared) -> str:
    # Older runs know an image by its whole reference, which is another one in another place.
    by_place = run.images and other.images and not (run.relative and other.relative)
    if by_place and (run.relative != other.relative or run.images != other.images):
        return "image roots differ"
    share = jaccard(run.parity, other.parity)
    return _NONE if share is None else f"{share:.3f}"


def _scores(runs: Sequence[Compared]) -> Iterable[tuple[str, list[Row]]]:
    """A table for each benchmark and official score that the runs have. Two benchmarks of one name
    are told apart by their questions.
    """
    scored = [run for run in runs if run.evaluation.scores]
    blocks = dict.fromkeys(map(_scored_on, scored))
    for metric, benchmark, questions in blocks:
        models = dict.fromkeys(score["model"] for run in runs for score in run.evaluation.scores)
        order = sorted(
            models, key=lambda model: _MODELS.index(model) if model in _MODELS else len(_MODELS)
        )
        rows = [
            row for model in order for row in _of_model(runs, model, (metric, benchmark, questions))
        ]
        title = f"{(metric or '').replace('_', ' ')} on {benchmark}"
        if [block[:2] for block in blocks].count((metric, benchmark)) > 1:
            which = (metric, benchmark, questions)
            title += f" of {', '.join(run.name for run in scored if _scored_on(run) == which)}"
        yield f"{title}{'' if questions else ' (its questions are not known)'}, percent", rows


def _scored_on(run: Compared) -> tuple[str | None, str | None, str | None]:
    return run.evaluation.metric, run.evaluation.benchmark, run.questions


def _of_model(runs: Sequence[Compared], model: str, which: tuple[str | None, ...]) -> Iterable[Row]:
    """Score and interval; and, where the first run has the model too, how far each is from it."""
    mine = [run.evaluation.score(model) if _scored_on(run) == which else None for run in runs]
    if not any(mine):
        return
    label = LABELS.get(model, model)
    yield [
        label,
        *(
            f"{score['score']:.1f} ({interval(score['ci95'])})" if score else _NONE
            for score in mine
        ),
    ]
    tests = [
        run.against_first.get(model, (None, 0)) if score else (None, 0)
        for run, score in zip(runs, mine, strict=True)
    ]
    if any(test for test, _ in tests):
        yield [f"{label}, against {runs[0].name}", *(_difference(*test) for test in tests)]


def _difference(test: PairedTest | None, questions: int) -> str:
    if test is None:
        return _NONE
    low, high = test["ci95"]
    return (
        f"{test['difference']:+.1f} ({low:+.1f} to {high:+.1f}), p={test['p_value']:.3g},"
        f" n={questions:,}"
    )


def _cost(runs: Sequence[Compared]) -> Iterable[Row]:
    tokens = [run.facts.data["tokens"] for run in runs]
    for label, end in (
        ("tokens in", "_prompt_tokens"),
        ("of these cached", "_cached_tokens"),
        ("tokens out", "_output_tokens"),
    ):
        yield [
            label,
            *(
                f"{sum(count for name, count in one.items() if name.endswith(end)):,}"
                for one in tokens
            ),
        ]
    for stage in dict.fromkeys(stage for run in runs for stage in run.facts.stages):
        yield [
            stage.replace("_", " "),
            *(
                duration(run.facts.stages[stage]) if stage in run.facts.stages else _NONE
                for run in runs
            ),
        ]
    yield ["all stages (wall time)", *(duration(run.facts.wall_seconds) for run in runs)]
    yield [
        "paid to an API",
        *(_NONE if run.facts.cost_usd is None else dollars(run.facts.cost_usd) for run in runs),
    ]


def text(runs: Sequence[Compared]) -> str:
    """The tables for a terminal."""
    parts = []
    for title, rows in tables(runs):
        if len(rows) > 1:
            parts.append(f"{title}\n{aligned([[visible(cell) for cell in row] for row in rows])}")
    return "\n\n".join(parts) + "\n"


def html(runs: Sequence[Compared]) -> bytes:
    """The tables as a page."""
    axis = charts.axis_of(value for run in runs for value in drawn(run.evaluation))
    return page.render(
        "compare.html",
        runs=runs,
        tables=[item for item in tables(runs) if len(item[1]) > 1],
        labels=LABELS,
        axis=axis,
    )
