"""Eq. 2 row by row, and that asking the S-VLM only where it matters (Algorithm 3) gives the
verdicts of asking it everywhere.
"""

import asyncio
import itertools
from typing import Any

import pyarrow as pa
import pytest

from mpa_ray.config import Config, IdentifySection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.parity_identifier import identify_row, identifying
from mpa_ray.schema import JUDGED_ROW, Verdict
from mpa_ray.tasks import TASKS, prompts
from mpa_ray.tasks.matchers import MATCHERS


class Student:
    def __init__(self, says: str) -> None:
        self.says = says
        self.asked: list[tuple[str, Sampling]] = []

    async def __call__(self, prompt: str, sampling: Sampling) -> Reply:
        self.asked.append((prompt, sampling))
        return Reply(
            text=self.says,
            prompt_tokens=70,
            cached_tokens=16,
            output_tokens=3,
            finish_reason="stop",
        )


async def judged(
    answer: str,
    lvlm_answer: str,
    student: Student,
    *,
    matcher: str = "exact",
    exhaustive: bool = False,
) -> dict[str, Any]:
    row = {
        "part": 0,
        "image_id": "i",
        "image_uri": "/a.png",
        "question": "What color?",
        "answer": answer,
        "lvlm_answer": lvlm_answer,
    }
    [found] = await identify_row(
        row, student, matcher=matcher, answering=Sampling(max_tokens=8), exhaustive=exhaustive
    )
    assert {name: found[name] for name in row} == row
    return found


def identify(*arguments: Any, **settings: Any) -> dict[str, Any]:
    return asyncio.run(judged(*arguments, **settings))


ANSWERS = ["red", "Red.", "dark red", "", "10", "10.2", "ten", "no", "not sure"]


@pytest.mark.parametrize("matcher", sorted(MATCHERS))
def test_cascade_and_exhaustive_agree_on_all_combinations(matcher: str) -> None:
    async def all_combinations() -> set[Verdict]:
        verdicts = set()
        for answer, lvlm_answer, svlm_answer in itertools.product(ANSWERS, repeat=3):
            cascade, exhaustive = Student(svlm_answer), Student(svlm_answer)
            verdict = (await judged(answer, lvlm_answer, cascade, matcher=matcher))["verdict"]
            assert (
                await judged(answer, lvlm_answer, exhaustive, matcher=matcher, exhaustive=True)
            )["verdict"] == verdict
            # Eq. 2, written out.
            right, known = (
                MATCHERS[matcher](lvlm_answer, answer),
                MATCHERS[matcher](svlm_answer, answer),
            )
            assert (verdict == Verdict.PARITY) == (right and not known)
            assert (len(cascade.asked), len(exhaustive.asked)) == (int(right), 1)
            verdicts.add(verdict)
        return verdicts

    assert asyncio.run(all_combinations()) == set(Verdict)


def test_the_student_is_asked_what_the_teacher_was_asked() -> None:
    student = Student(" blue\n")
    row = identify("red", "red", student)
    assert student.asked == [
        (prompts.ANSWERING.format(question="What color?"), Sampling(max_tokens=8))
    ]
    assert (row["verdict"], row["svlm_answer"]) == (Verdict.PARITY, "blue")
    assert [row[f"svlm_answer_{kind}_tokens"] for kind in ("prompt", "cached", "output")] == [
        70,
        16,
        3,
    ]
    pa.Table.from_pylist([row], schema=JUDGED_ROW)


def test_a_row_that_is_not_asked_about_has_no_answer() -> None:
    row = identify("red", "blue", Student("red"))
    assert (row["verdict"], row["svlm_answer"]) == (Verdict.LVLM_INCONSISTENT, None)
    assert identify("red", "blue", Student("red"), exhaustive=True)["svlm_answer"] == "red"


def test_the_matcher_is_the_tasks_unless_one_is_given() -> None:
    for task in TASKS:
        assert Config(task=task).matcher == TASKS[task].matcher
    assert Config(identify=IdentifySection(matcher="anls")).matcher == "anls"


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_settings_reach_the_svlm(exhaustive: bool) -> None:
    row = {
        "part": 0,
        "image_id": "i",
        "image_uri": "/a.png",
        "question": "What color?",
        "answer": "red",
        "lvlm_answer": "rad",
    }
    config = Config(identify=IdentifySection(max_tokens=7, matcher="anls", exhaustive=exhaustive))
    student = Student("blue")
    [found] = asyncio.run(identifying(config)(row, student))
    # By ANLS, "rad" is close enough to "red"; an exact matcher would refuse it.
    assert found["verdict"] == Verdict.PARITY
    assert [sampling for _, sampling in student.asked] == [Sampling(max_tokens=7)]
    inconsistent = Student("blue")
    asyncio.run(identifying(config)(row | {"lvlm_answer": "green"}, inconsistent))
    assert len(inconsistent.asked) == int(exhaustive)
