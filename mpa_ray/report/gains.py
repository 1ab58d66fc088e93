"""Where a gain came from: scores before and after, by the kind of question and by the kind of
answer.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from mpa_ray.report.run_record import Score
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.confidence import PairedTest, paired_test

BEFORE, AFTER, CEILING = "zero_shot", "mpa", "lvlm"
ANSWER_TYPES = ("number", "yes or no", "one word", "phrase")

_NUMBER = re.compile(r"[$€£¥₹#]?\s*[-+]?\d+(?:[.,:/]\d+)*\s*%?")
_NUMBER_WORDS = frozenset(
    {
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    }
)
_MOST_KINDS = 10


class Group(NamedTuple):
    """Questions of one kind, and each model's score on them in percent."""

    name: str
    questions: int
    scores: dict[str, float]


def answer_type(answer: str) -> str:
    """One of ANSWER_TYPES, by the form of the answer alone."""
    text = answer.strip().rstrip(".").casefold()
    if _NUMBER.fullmatch(text) or text in _NUMBER_WORDS:
        return "number"
    if text in ("yes", "no"):
        return "yes or no"
    return "phrase" if len(text.split()) > 1 else "one word"


def opening(question: str) -> str:
    """How a question begins, where a benchmark does not say of what kind it is: "what", "how many",
    "is".
    """
    words = re.findall(r"\w+", question.casefold())[:2]
    return " ".join(words) if words[:1] == ["how"] else "".join(words[:1])


class Evaluation:
    """The predictions of a run's models, joined by question, under the official score."""

    def __init__(self, run: Folder, scores: Sequence[Score]) -> None:
        self.metric: str | None = scores[0]["metric"] if scores else None
        self.benchmark: str | None = scores[0]["benchmark"] if scores else None
        self.scores = [score for score in scores if score["metric"] == self.metric]
        self.further = list(
            dict.fromkeys(score["metric"] for score in scores if score["metric"] != self.metric)
        )
        self.predictions = {
            score["model"]: table
            for score in self.scores
            if (table := predictions(run, score["model"], self.metric or "")) is not None
        }

    def score(self, model: str) -> Score | None:
        return next((score for score in self.scores if score["model"] == model), None)

    def test(self, model: str, against: str) -> PairedTest | None:
        """How far `model` is above `against`, in percent; None where a score of single questions is
        lacking.
        """
        if model not in self.predictions or against not in self.predictions:
            return None
        return compared(self.predictions[model], self.predictions[against])[0]

    def by_question_kind(self) -> list[Group]:
        """By the benchmark's own kinds, or by how the questions begin."""
        if not self.predictions:
            return self._as_scored()
        return self._grouped(lambda row: row["question_kind"] or opening(row["question"]))

    def _as_scored(self) -> list[Group]:
        """The kinds as the evaluation summed them up, for a run whose predictions lie elsewhere."""
        kinds = dict.fromkeys(kind for score in self.scores for kind in score.get("by_kind", {}))
        groups = []
        for kind in kinds:
            found = {
                score["model"]: score["by_kind"][kind]
                for score in self.scores
                if kind in score["by_kind"]
            }
            groups.append(
                Group(
                    kind,
                    max(n for _, n in found.values()),
                    {model: percent for model, (percent, _) in found.items()},
                )
            )
        return groups

    def by_answer_type(self) -> list[Group]:
        """By the type of the commonest reference answer (the first of equals)."""
        return self._grouped(
            lambda row: (
                answer_type(max(row["answers"], key=row["answers"].count)) if row["answers"] else ""
            )
        )

    def _grouped(self, kind_of: Callable[[dict[str, Any]], str]) -> list[Group]:
        sums: Counter[tuple[str, str]] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for model, table in self.predictions.items():
            for row in table.to_pylist():
                sums[kind_of(row), model] += row["score"]
                counts[kind_of(row), model] += 1
        sizes = Counter(
            {kind: max(counts[kind, model] for model in self.predictions) for kind, _ in counts}
        )
        return [
            Group(
                kind,
                size,
                {
                    model: 100 * sums[kind, model] / counts[kind, model]
                    for model in self.predictions
                    if counts[kind, model]
                },
            )
            for kind, size in sizes.most_common(_MOST_KINDS)
            if kind
        ]


def predictions(run: Folder, model: str, metric: str) -> pa.Table | None:
    """question_id, question, answers, question_kind and `score` (0 to 1) of a model; None where
    there are none of single questions.
    """
    name = f"evaluation/predictions/{model}.parquet"
    if not run.exists(name):
        return None
    table = run.read_table(name)
    if metric not in table.column_names:
        return None
    columns = ["question_id", "question", "answers", "question_kind"]
    return table.select([*columns, metric]).rename_columns([*columns, "score"])


def compared(a: pa.Table, b: pa.Table) -> tuple[PairedTest | None, int]:
    """The paired test of two models' predictions on the questions that both were asked, in percent,
    and how many those are.

    Questions are joined by their id, and are the same only where their texts are.
    """
    scores_of_a, scores_of_b = (
        {(row["question_id"], row["question"]): row["score"] for row in table.to_pylist()}
        for table in (a, b)
    )
    pairs = [
        (score, scores_of_b[question])
        for question, score in scores_of_a.items()
        if question in scores_of_b
    ]
    if not pairs:
        return None, 0
    found = paired_test([100 * score for score, _ in pairs], [100 * score for _, score in pairs])
    return found, len(pairs)
