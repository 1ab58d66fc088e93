"""Ratings of samples as the report's pages export them: one JSON object a line, one line for a
rater and a sample.

    {"mpa_ray_rating": 1, "run": "0123456789ab", "samples": 100, "seed": 0, "blind": true,
     "rater": "ann", "time": "2026-01-31T12:00:00.000Z", "id": a sample_id,
     "fingerprint": of the rated text, "answerability": 1, ...,
     "decision": "fix", "question": ..., "answer": ...}

What was not rated is not in it. `decision` is "keep", "drop" or "fix"; only the last has a new
question and answer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mpa_ray.errors import ConfigurationError
from mpa_ray.report.rating_questions import AFTER, BEFORE, QUESTIONS
from mpa_ray.report.run_folder import drawn, require
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.rating_scores import Sheet

_LISTED = 20
Answer = Literal[0, 1]


class Rating(BaseModel):
    """One rater's word on one sample."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mpa_ray_rating: Literal[1]
    run: str
    samples: int = Field(ge=0)
    seed: int
    blind: bool
    rater: str = Field(min_length=1, max_length=200)
    time: str
    id: str
    fingerprint: str
    answerability: Answer | None = None
    answer_correctness: Answer | None = None
    task_relevance: Answer | None = None
    human_likeness: Answer | None = None
    decision: Literal["keep", "drop", "fix"] | None = None
    question: str | None = None
    answer: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decision == "fix" and not (self.question and self.answer):
            raise ValueError("decision 'fix' needs the new question and answer")
        return self


def read(paths: Iterable[str | Path]) -> list[Rating]:
    """The ratings of several files; of two by the same rater on the same text, shown in the same
    way, the later one.

    Raises:
        ConfigurationError: a line for each line that is no rating.
    """
    found: dict[tuple[str, str, str, bool], Rating] = {}
    problems: list[str] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ConfigurationError(f"{path}: there is no such file")
        for number, line in _lines(path):
            try:
                rating = Rating.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "the line"
                problems.append(
                    f"{path}, line {number}: {place}: {first['msg']}; export the ratings again"
                )
                continue
            key = (rating.rater, rating.id, rating.fingerprint, rating.blind)
            if key not in found or found[key].time <= rating.time:
                found[key] = rating
    if problems:
        more = (
            [f"... and {len(problems) - _LISTED} more like these"]
            if len(problems) > _LISTED
            else []
        )
        raise ConfigurationError(*problems[:_LISTED], *more)
    if not found:
        raise ConfigurationError("the files hold no rating; export them in the page")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_bytes().decode("utf-8-sig", "replace")
    # Not splitlines(): U+2028 and the like stand inside of JSON strings.
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def groups_of(run: Folder, ratings: list[Rating]) -> dict[str, tuple[str, ...]]:
    """The groups of the rating study that each rated sample was drawn into; a sample that was in
    neither is left out.

    Raises:
        ConfigurationError: the ratings are of studies with different seeds, or the run has no
            judgements.
    """
    seeds = {rating.seed for rating in ratings}
    if len(seeds) > 1:
        raise ConfigurationError(
            f"the ratings are of draws with the seeds {', '.join(map(str, sorted(seeds)))}; score"
            " them one by one"
        )
    seed, samples = seeds.pop(), max(rating.samples for rating in ratings)
    judgements = require(run, "judgements")
    before = {sample_id for _, sample_id in drawn(judgements, samples, salt=f"{BEFORE}/{seed}")}
    after = {
        sample_id
        for _, sample_id in drawn(
            judgements, samples, salt=f"{AFTER}/{seed}", verdicts=frozenset({str(Verdict.PARITY)})
        )
    }
    rated = dict.fromkeys(rating.id for rating in ratings)
    groups = {
        item: tuple(name for name, members in ((BEFORE, before), (AFTER, after)) if item in members)
        for item in rated
    }
    return {item: its_groups for item, its_groups in groups.items() if its_groups}


def sheets(ratings: list[Rating], items: Iterable[str]) -> list[Sheet]:
    """A sheet a rater, for `rating_scores.score`."""
    known = frozenset(items)
    found = []
    for rater in sorted({rating.rater for rating in ratings}):
        cells: dict[tuple[str, str], int] = {}
        missing = []
        for rating in ratings:
            if rating.rater == rater and rating.id in known:
                given = {question: getattr(rating, question) for question in QUESTIONS}
                cells |= {
                    (rating.id, question): value
                    for question, value in given.items()
                    if value is not None
                }
                if empty := [question for question, value in given.items() if value is None]:
                    missing.append(f"{rating.id}: {', '.join(empty)}")
        found.append(Sheet(name=rater, ratings=cells, missing=tuple(missing)))
    return found
