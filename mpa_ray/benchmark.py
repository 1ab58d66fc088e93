"""A labeled benchmark as it is asked and scored: read once from its official files, kept in the output in parts, scored by the official
rule.

`evaluation/questions/` holds the questions of the run's benchmark, so that every model is asked the same ones by the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from mpa_ray import metrics, prompts
from mpa_ray.benchmark_readers import READERS, LabeledQuestion
from mpa_ray.config import EvaluateSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import image_id_of
from mpa_ray.inputs.references import quote_path
from mpa_ray.matchers import MATCHERS
from mpa_ray.parts import part_name
from mpa_ray.storage import Folder

QUESTION_COLUMNS = [
    pa.field("question_id", pa.string()),
    pa.field("question", pa.string()),
    pa.field("answers", pa.list_(pa.string())),
    pa.field("question_kind", pa.string()),
]
QUESTIONS = pa.schema(
    [*QUESTION_COLUMNS, pa.field("image_id", pa.string()), pa.field("image_uri", pa.string()), pa.field("image", pa.large_binary())]
)

_QUESTIONS_PER_PART = 128

Score = Callable[[str, Sequence[str]], float]

METRICS: dict[str, Score] = {
    "textvqa_accuracy": metrics.textvqa_accuracy,
    "vqa_accuracy": metrics.vqa_accuracy,
    "anls": metrics.anls,
    "relaxed_accuracy": lambda prediction, answers: metrics.relaxed_accuracy(prediction, answers[0]),
    "exact_match": lambda prediction, answers: float(any(MATCHERS["exact"](prediction, answer) for answer in answers)),
    "word_recognition_rate": lambda prediction, answers: metrics.word_recognition_rate([prediction], [answers[0]]),
    "mpa_compat_accuracy": metrics.mpa_compat_accuracy,
}
"""Scores of one question, 0 to 1; a benchmark's score is their mean."""

CAPTION_METRICS = ("bleu_1", "rouge_l", "cider")
"""Scores of a whole set of captions."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a benchmark is asked and scored.

    Attributes:
        metrics: the official score first, then the paper's own under its own name; None: the task's.
        prompt: what is asked; the benchmarks that have no questions of their own bring a whole prompt as the question.
    """

    metrics: tuple[str, ...] | None
    prompt: str = prompts.ANSWERING


FORMATS: dict[str, Format] = {
    "parquet": Format(metrics=None),
    "textvqa": Format(metrics=("textvqa_accuracy", "mpa_compat_accuracy")),
    "stvqa": Format(metrics=("anls", "mpa_compat_accuracy")),
    "chartqa": Format(metrics=("relaxed_accuracy", "mpa_compat_accuracy")),
    "okvqa": Format(metrics=("vqa_accuracy", "mpa_compat_accuracy")),
    "pathvqa": Format(metrics=("exact_match", "mpa_compat_accuracy")),
    "icdar2015": Format(metrics=("word_recognition_rate",), prompt="{question}"),
    "textcaps": Format(metrics=CAPTION_METRICS, prompt="{question}"),
}


def prepare(settings: EvaluateSection, questions: Folder) -> int:
    """Reads the benchmark into `questions`, once; gives back how many parts it has.

    Raises:
        ConfigurationError: a file, an image, an answer or a column is missing; the message names it.
    """
    assert settings.benchmark is not None
    source = {"benchmark": settings.benchmark, "format": settings.format, "images": settings.images}
    if questions.exists("index.json") and (index := questions.read_json("index.json"))["source"] == source:
        return index["parts"]
    try:
        found = READERS[settings.format](settings.benchmark, settings.images)
        count = 0
        while rows := list(islice(found, _QUESTIONS_PER_PART)):
            table = pa.Table.from_pylist(list(_rows(rows, settings, count * _QUESTIONS_PER_PART)), schema=QUESTIONS)
            questions.write_table(part_name(count), table)
            count += 1
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"evaluate.benchmark={settings.benchmark!r}: {error}") from error
    if not count:
        raise ConfigurationError(f"evaluate.benchmark={settings.benchmark!r} holds no question; give another file")
    questions.write_json("index.json", {"source": source, "parts": count})
    return count


def _rows(found: Sequence[LabeledQuestion], settings: EvaluateSection, first: int) -> Iterator[dict[str, Any]]:
    """An image that comes as bytes is known by its place: equal images of two questions are cached apart, which costs little and is never
    wrong."""
    for number, labeled in enumerate(found, first):
        uri = quote_path(labeled.image_path) if labeled.image_path else f"{quote_path(settings.benchmark or '')}#question={number}"
        yield {
            "question_id": labeled.question_id,
            "question": labeled.question,
            "answers": list(labeled.answers),
            "question_kind": labeled.question_kind,
            "image_id": image_id_of(uri),
            "image_uri": uri,
            "image": labeled.image_bytes,
        }


def metrics_of(settings: EvaluateSection, task_metric: str) -> tuple[str, ...]:
    """The scores a run reports, the official one first."""
    return FORMATS[settings.format].metrics or (task_metric, "mpa_compat_accuracy")
