"""The benchmarks: how each is read, asked and officially scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpa_ray.tasks import metrics, prompts
from mpa_ray.tasks.benchmark_readers import (
    Reader,
    read_chartqa,
    read_icdar2015,
    read_okvqa,
    read_parquet,
    read_pathvqa,
    read_stvqa,
    read_textcaps,
    read_textvqa,
)
from mpa_ray.tasks.matchers import MATCHERS

Score = Callable[[str, Sequence[str]], float]

METRICS: dict[str, Score] = {
    "textvqa_accuracy": metrics.textvqa_accuracy,
    "vqa_accuracy": metrics.vqa_accuracy,
    "anls": metrics.anls,
    "relaxed_accuracy": lambda prediction, answers: metrics.relaxed_accuracy(
        prediction, answers[0]
    ),
    "exact_match": lambda prediction, answers: float(
        any(MATCHERS["exact"](prediction, answer) for answer in answers)
    ),
    "word_recognition_rate": lambda prediction, answers: metrics.word_recognition_rate(
        [prediction], [answers[0]]
    ),
    "mpa_compat_accuracy": metrics.mpa_compat_accuracy,
}
"""Scores of one question, 0 to 1; a benchmark's score is their mean."""

CAPTION_METRICS = ("bleu_1", "rouge_l", "cider")
"""Scores of a whole set of captions."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A format of published questions: how its files are read, and how they are asked and scored.

    Attributes:
        read: gives its questions, in the order of its files.
        metrics: the official score first, then the paper's own under its own name; None: the
            task's.
        prompt: what is asked; the benchmarks that have no questions of their own bring a whole
            prompt as the question.
    """

    read: Reader
    metrics: tuple[str, ...] | None
    prompt: str = prompts.ANSWERING


BENCHMARKS: dict[str, Benchmark] = {
    "parquet": Benchmark(read=read_parquet, metrics=None),
    "textvqa": Benchmark(read=read_textvqa, metrics=("textvqa_accuracy", "mpa_compat_accuracy")),
    "stvqa": Benchmark(read=read_stvqa, metrics=("anls", "mpa_compat_accuracy")),
    "chartqa": Benchmark(read=read_chartqa, metrics=("relaxed_accuracy", "mpa_compat_accuracy")),
    "okvqa": Benchmark(read=read_okvqa, metrics=("vqa_accuracy", "mpa_compat_accuracy")),
    "pathvqa": Benchmark(read=read_pathvqa, metrics=("exact_match", "mpa_compat_accuracy")),
    "icdar2015": Benchmark(
        read=read_icdar2015, metrics=("word_recognition_rate",), prompt="{question}"
    ),
    "textcaps": Benchmark(read=read_textcaps, metrics=CAPTION_METRICS, prompt="{question}"),
}
"""What `evaluate.format` and `labels.format` can be."""
