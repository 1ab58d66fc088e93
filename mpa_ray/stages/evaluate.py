"""Asking a model labeled questions and scoring it, through the same engines and the same Ray Data
pipeline as the Parity Identifier.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.errors import RunError
from mpa_ray.images import benchmark, references
from mpa_ray.images.benchmark import QUESTION_COLUMNS
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.images.parts import part_name
from mpa_ray.observability.progress import Progress, Watch
from mpa_ray.schema import SOURCE_ROW, Stage
from mpa_ray.stages import early_stop
from mpa_ray.stages.ask_in_turn import Answered, Questions, ask_in_turn
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import confidence
from mpa_ray.tasks.benchmarks import BENCHMARKS, CAPTION_METRICS, METRICS
from mpa_ray.tasks.metrics import caption_scores

QUESTION_ROW = pa.schema([*SOURCE_ROW, *QUESTION_COLUMNS])
PREDICTIONS = pa.schema(
    [*QUESTION_COLUMNS, pa.field("image_uri", pa.string()), pa.field("prediction", pa.string())]
)


def evaluate(
    model: LocalModelSection, *, name: str, config: Config, output: Folder
) -> list[dict[str, Any]]:
    """Answer the benchmark's questions with `model`, write evaluation/predictions/<name>.parquet,
    and return the scores.

    Returns:
        One a metric, the official one first: {"model", "benchmark", "metric", "score" in percent,
        "ci95": [low, high] in percent, or None for a score of the whole set that has no
        per-question scores, "n", "by_kind": {kind: [percent, n]}}

    Raises:
        ConfigurationError: the benchmark lacks something.
        RunError: an image of the benchmark cannot be read; every question counts, so none is left
            out.
    """
    asked = benchmark_questions(model, name=name, config=config, output=output)
    answered = next(ask_in_turn([asked], config=config, output=output))
    return scores_of(answered, asked, name=name, config=config, output=output)


def benchmark_questions(
    model: LocalModelSection, *, name: str, config: Config, output: Folder
) -> Questions:
    """The benchmark for `model`, read into the output where it is not there yet.

    Raises:
        ConfigurationError: the benchmark lacks something.
    """
    questions = output.child("evaluation/questions")
    parts = benchmark.prepare(
        config.evaluate, questions, predictions=output.child("evaluation/predictions")
    )
    return Questions(
        name=f"evaluate_{name}",
        model=model,
        numbers=range(parts),
        read=partial(_read_questions, questions=questions, max_image_bytes=config.max_image_bytes),
        schema=QUESTION_ROW,
        prompt=BENCHMARKS[config.evaluate.format].prompt,
        count=sum(table.num_rows for table in questions.tables(["question_id"])),
    )


def scores_of(
    answered: Iterator[Answered], asked: Questions, *, name: str, config: Config, output: Folder
) -> list[dict[str, Any]]:
    """As `evaluate`, of the benchmark's answered parts."""
    settings = config.evaluate
    progress = Progress(f"evaluate {name}", asked.count or 0, unit="questions")
    tables = []
    # Labeled benchmarks hold thousands of questions, not millions: predictions fit into the driver.
    with Watch(progress.waiting, stage=f"evaluate {name}, loading"):
        for part in answered:
            _refuse_quarantined(part.rows)
            tables.append(part.rows.select(PREDICTIONS.names))
            progress.add(part.rows.num_rows)
    progress.end()
    early_stop.raise_if_stopped(
        output, f"The evaluation of {name} was not finished and is done again"
    )
    predictions = pa.concat_tables(tables).sort_by("question_id")
    wanted = benchmark.metrics_of(settings, config.task_spec.metric)
    predictions, scores = score(predictions, wanted, seed=config.seed)
    output.write_table(f"evaluation/predictions/{name}.parquet", predictions)
    shown = (settings.benchmark or "").rstrip("/").rpartition("/")[2].rpartition(".")[
        0
    ] or settings.format
    return [{"model": name, "benchmark": shown} | item for item in scores]


def score(
    predictions: pa.Table, wanted: tuple[str, ...], *, seed: int
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Score PREDICTIONS by each metric of `wanted`; the per-question scores become columns of the
    table that is given back.
    """
    said, answers = (
        predictions.column("prediction").to_pylist(),
        predictions.column("answers").to_pylist(),
    )
    if wanted == CAPTION_METRICS:
        whole = caption_scores(said, answers)
        return predictions, [
            {
                "metric": metric,
                "score": 100 * whole[metric],
                "ci95": None,
                "n": len(said),
                "by_kind": {},
            }
            for metric in wanted
        ]
    found = []
    for metric in wanted:
        scores = [METRICS[metric](*pair) for pair in zip(said, answers, strict=True)]
        predictions = predictions.append_column(metric, pa.array(scores, pa.float64()))
        low, high = confidence.bootstrap_interval(scores, seed=seed)
        found.append(
            {
                "metric": metric,
                "score": 100 * sum(scores) / len(scores),
                "ci95": [100 * low, 100 * high],
                "n": len(scores),
                "by_kind": _by_kind(predictions, metric),
            }
        )
    return predictions, found


def _by_kind(predictions: pa.Table, metric: str) -> dict[str, list[float]]:
    grouped = (
        predictions.group_by("question_kind")
        .aggregate([(metric, "mean"), (metric, "count")])
        .sort_by("question_kind")
    )
    return {
        row["question_kind"]: [100 * row[f"{metric}_mean"], row[f"{metric}_count"]]
        for row in grouped.to_pylist()
        if row["question_kind"]
    }


def _refuse_quarantined(table: pa.Table) -> None:
    for row in table.select(["question_id", "image_uri", "reason", "detail"]).to_pylist():
        if row["reason"] is not None:
            raise RunError(
                f"benchmark question {row['question_id']} ({row['image_uri']}): {row['reason']}:"
                f" {row['detail']}; fix the benchmark"
            )


def _read_questions(number: int, *, questions: Folder, max_image_bytes: int) -> pa.Table:
    """One part of the benchmark as QUESTION_ROW, images that lie in files fetched."""
    rows = questions.read_table(part_name(number)).to_pylist()
    missing = [row for row in rows if row["image"] is None]
    for row, content in zip(
        missing,
        references.fetch([row["image_uri"] for row in missing], max_image_bytes=max_image_bytes),
        strict=True,
    ):
        row |= (
            {"stage": Stage.IMAGES, "reason": content.reason, "detail": content.detail}
            if isinstance(content, UnreadableImage)
            else {"image": content}
        )
    return pa.Table.from_pylist([row | {"part": number} for row in rows], schema=QUESTION_ROW)
