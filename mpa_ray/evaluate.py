"""Asking a model labeled questions and scoring it, through the same engines and the same Ray Data pipeline as the Parity Identifier.

Also: what an S-VLM learned and forgot, found without labels, by asking it again about rows that were held out of training.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from mpa_ray import intervals, metrics, prompts
from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import Sampling
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images import image_id_of
from mpa_ray.inference import Ask, Row, RowWorker, ask_model
from mpa_ray.matchers import MATCHERS
from mpa_ray.parity_leveler import CONSISTENT
from mpa_ray.parity_identifier import matcher_of
from mpa_ray.parts import dataset_of, part_name, part_number, with_images
from mpa_ray.references import IMAGE_COLUMN, quote_path
from mpa_ray.schema import SOURCE_ROW, Stage
from mpa_ray.storage import Folder, resolve
from mpa_ray.tasks import TASKS
from mpa_ray.training_data import is_held_out

if TYPE_CHECKING:
    from ray.data import Dataset

METRICS: dict[str, Callable[[str, list[str]], float]] = {
    "textvqa_accuracy": metrics.textvqa_accuracy,
    "vqa_accuracy": metrics.vqa_accuracy,
    "anls": metrics.anls,
    "relaxed_accuracy": lambda prediction, answers: metrics.relaxed_accuracy(prediction, answers[0]),
    "exact_match": lambda prediction, answers: float(any(MATCHERS["exact"](prediction, answer) for answer in answers)),
}

_QUESTIONS_PER_PART = 128

QUESTION_COLUMNS = [
    pa.field("question_id", pa.string()),
    pa.field("question", pa.string()),
    pa.field("answers", pa.list_(pa.string())),
    pa.field("question_kind", pa.string()),
]
QUESTION_ROW = pa.schema([*SOURCE_ROW, *QUESTION_COLUMNS])
ANSWERED_ROW = pa.schema([*QUESTION_ROW, pa.field("prediction", pa.string())])
PREDICTIONS = pa.schema([*QUESTION_COLUMNS, pa.field("image_uri", pa.string()), pa.field("prediction", pa.string()), pa.field("score", pa.float64())])


class Evaluator(RowWorker):
    """The actor."""

    stage = Stage.EVALUATE


async def answer_row(row: Row, ask: Ask, *, answering: Sampling) -> list[Row]:
    """The row with the model's answer as `prediction`."""
    reply = await ask(prompts.ANSWERING.format(question=row["question"]), answering)
    return [row | {"prediction": reply.text.strip()}]


def answer(dataset: "Dataset", model: ModelSection, config: Config, *, schema: pa.Schema) -> "Dataset":
    """Rows with image and question in, the same with `prediction` out."""
    work = partial(answer_row, answering=Sampling(max_tokens=config.evaluate.max_tokens))
    return ask_model(dataset, Evaluator, work, model=model, schema=schema, config=config)


def evaluate(model: ModelSection, *, name: str, config: Config, output: Folder) -> dict[str, Any]:
    """Answers the benchmark's questions with `model`, writes evaluation/predictions/<name>.parquet, and gives back the score.

    Returns:
        {"model", "benchmark", "metric", "score" in percent, "ci95" in percent, "n", "by_kind": {kind: [percent, n]}}

    Raises:
        ConfigurationError: the benchmark's file lacks a column.
        RunError: an image of the benchmark cannot be read; every question counts, so none is left out.
    """
    assert config.evaluate.benchmark is not None
    benchmark, metric = config.evaluate.benchmark, TASKS[config.task].metric
    parts = -(-question_count(benchmark) // _QUESTIONS_PER_PART)
    read = partial(_read_questions, benchmark=benchmark, max_image_bytes=config.max_image_bytes)
    tables = []
    # Labeled benchmarks hold thousands of questions, not millions: predictions without images fit into the driver.
    for table in answer(dataset_of(list(range(parts)), read), model, config, schema=ANSWERED_ROW).drop_columns(["image"]).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        _refuse_quarantined(table, benchmark)
        scores = [METRICS[metric](*pair) for pair in zip(table.column("prediction").to_pylist(), table.column("answers").to_pylist(), strict=True)]
        tables.append(table.append_column("score", pa.array(scores, pa.float64())).select(PREDICTIONS.names))
    predictions = pa.concat_tables(tables).sort_by("question_id")
    output.write_table(f"evaluation/predictions/{name}.parquet", predictions)
    scores = predictions.column("score").to_pylist()
    low, high = intervals.bootstrap_interval(scores, seed=config.seed)
    return {
        "model": name,
        "benchmark": benchmark.rpartition("/")[2].removesuffix(".parquet"),
        "metric": metric,
        "score": 100 * sum(scores) / len(scores),
        "ci95": [100 * low, 100 * high],
        "n": len(scores),
        "by_kind": _by_kind(predictions),
    }


def _by_kind(predictions: pa.Table) -> dict[str, list[float]]:
    grouped = predictions.group_by("question_kind").aggregate([("score", "mean"), ("score", "count")]).sort_by("question_kind")
    return {row["question_kind"]: [100 * row["score_mean"], row["score_count"]] for row in grouped.to_pylist() if row["question_kind"]}


def _refuse_quarantined(table: pa.Table, benchmark: str) -> None:
    for row in table.select(["question_id", "image_uri", "reason", "detail"]).to_pylist():
        if row["reason"] is not None:
            raise RunError(f"{benchmark}, question {row['question_id']} ({row['image_uri']}): {row['reason']}: {row['detail']}; mend the benchmark")


def question_count(benchmark: str) -> int:
    """How many questions a benchmark's Parquet file holds.

    Raises:
        ConfigurationError: it is not there, or lacks a column.
    """
    filesystem, path = resolve(benchmark)
    if not filesystem.get_file_info(path).is_file:
        raise ConfigurationError(f"evaluate.benchmark={benchmark!r} is not a file; give a Parquet file of labeled questions")
    with filesystem.open_input_file(path) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        for column in (IMAGE_COLUMN, "question_id", "question", "answers"):
            if column not in file.schema_arrow.names:
                raise ConfigurationError(f"evaluate.benchmark={benchmark!r} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
        return file.metadata.num_rows


def _read_questions(number: int, *, benchmark: str, max_image_bytes: int) -> pa.Table:
    """One part of the benchmark as QUESTION_ROW. Each image is known by its row, so equal images of two questions are cached apart."""
    filesystem, path = resolve(benchmark)
    start = number * _QUESTIONS_PER_PART
    rows: list[Row] = []
    with filesystem.open_input_file(path) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            begin, end = max(start, first), min(start + _QUESTIONS_PER_PART, first + count)
            if begin < end:
                taken = file.read_row_group(group).slice(begin - first, end - begin).to_pylist()
                rows += [row | {"image_uri": f"{quote_path(benchmark)}#row_group={group}&row={begin - first + n}"} for n, row in enumerate(taken)]
            first += count
    found = [row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"] for row in rows]
    return pa.Table.from_pylist(
        [
            {
                "part": number,
                "image_id": image_id_of(row["image_uri"]),
                "image_uri": row["image_uri"],
                "image": data or b"",
                "question_id": str(row["question_id"]),
                "question": row["question"],
                "answers": row["answers"],
                "question_kind": row.get("question_kind"),
            }
            for row, data in zip(rows, found, strict=True)
        ],
        schema=QUESTION_ROW,
    )


HELD_OUT = pa.schema([pa.field(name, pa.string()) for name in ("sample_id", "image_uri", "question", "answer", "before", "after", "change")])
_HELD_OUT_ROW = pa.schema([*SOURCE_ROW, *(pa.field(name, pa.string()) for name in ("sample_id", "question", "answer", "before"))])
_ASKED_AGAIN = pa.schema([*_HELD_OUT_ROW, pa.field("prediction", pa.string())])


def learned_and_forgotten(model: ModelSection, *, name: str, config: Config, output: Folder) -> dict[str, int]:
    """Asks the trained S-VLM about the held-out self-consistent rows and compares with what it answered before.

    No label is used: the annotation, which the L-VLM stands by, is what an answer is compared with. Writes holdout/<name>/.

    Returns:
        Counts: "learned" (wrong before, right now), "forgotten" (right before, wrong now), "kept" (right, right), "still_wrong".
    """
    judgements = output.child("judgements")
    numbers = [part_number(file) for file in judgements.names(".parquet")]
    read = partial(_read_held_out, judgements=judgements, share=config.pl.holdout, max_image_bytes=config.max_image_bytes)
    matches = MATCHERS[matcher_of(config)]
    counts = {"learned": 0, "forgotten": 0, "kept": 0, "still_wrong": 0}
    for table in answer(dataset_of(numbers, read), model, config, schema=_ASKED_AGAIN).drop_columns(["image"]).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        rows = table.to_pylist()
        for row in rows:
            row["after"] = row["prediction"] or ""
            row["change"] = change(matches(row["before"], row["answer"]), matches(row["after"], row["answer"]))
            counts[row["change"]] += 1
        if rows:
            output.write_table(f"holdout/{name}/{part_name(rows[0]['part'])}", pa.Table.from_pylist(rows, schema=HELD_OUT))
    return counts


def change(right_before: bool, right_after: bool) -> str:
    """What became of a held-out row."""
    return {(False, True): "learned", (True, False): "forgotten", (True, True): "kept", (False, False): "still_wrong"}[right_before, right_after]


def _read_held_out(number: int, *, judgements: Folder, share: float, max_image_bytes: int) -> pa.Table:
    table = judgements.read_table(part_name(number), ["image_id", "image_uri", "sample_id", "question", "answer", "svlm_answer", "verdict"])
    keep = [
        verdict in CONSISTENT and is_held_out(sample_id, share)
        for sample_id, verdict in zip(table.column("sample_id").to_pylist(), table.column("verdict").to_pylist(), strict=True)
    ]
    rows = with_images(table.filter(pa.array(keep, pa.bool_())), max_image_bytes=max_image_bytes)
    rows = rows.rename_columns(["before" if column == "svlm_answer" else column for column in rows.column_names])
    return pa.Table.from_pylist([row | {"part": number} for row in rows.drop_columns(["verdict"]).to_pylist()], schema=_HELD_OUT_ROW)
