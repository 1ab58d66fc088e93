"""One image's way through the Pseudo Annotator, with a teacher that says what the test wrote."""

import asyncio
import re
from typing import Any

import pyarrow as pa
import pytest

from mpa_ray.config import Config
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.pseudo_annotator import annotate_row, annotating
from mpa_ray.schema import ANNOTATED_ROW, QUARANTINE, Reason, Stage
from mpa_ray.stages.row_worker import seed_for
from mpa_ray.tasks import TASKS, prompts
from mpa_ray.tasks.annotation_parser import parse_annotations

ROW = {
    "part": 3,
    "image_id": "i1",
    "image_uri": "/a.png",
    "image": b"bytes",
    "stage": None,
    "reason": None,
    "detail": None,
}
PROMPT = "Ask something about this image."


class Teacher:
    """Writes the given annotations in turn, and answers every question with `own`."""

    def __init__(self, *annotations: str, own: str = " Red. \n") -> None:
        self.annotations = list(annotations)
        self.own = own
        self.asked: list[tuple[str, Sampling]] = []

    async def __call__(self, prompt: str, sampling: Sampling) -> Reply:
        self.asked.append((prompt, sampling))
        if prompt == PROMPT:
            return Reply(
                text=self.annotations.pop(0),
                prompt_tokens=100,
                cached_tokens=0,
                output_tokens=9,
                finish_reason="stop",
            )
        return Reply(
            text=self.own, prompt_tokens=80, cached_tokens=64, output_tokens=2, finish_reason="stop"
        )


def annotate(
    teacher: Teacher, *, row: dict[str, Any] = ROW, questions: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    annotating, answering = (
        Sampling(max_tokens=50, temperature=0.7, top_p=0.9),
        Sampling(max_tokens=20),
    )
    work = annotate_row(
        row,
        teacher,
        prompt=PROMPT,
        annotating=annotating,
        answering=answering,
        questions=questions,
        seed=seed,
    )
    return asyncio.run(work)


def test_an_annotation_and_the_teachers_own_answer() -> None:
    teacher = Teacher("Question: What color is the sign?, Answer: Red")
    [row] = annotate(teacher)
    assert {
        name: row[name]
        for name in ("sample_id", "question", "answer", "lvlm_answer", "annotation_text")
    } == {
        "sample_id": "i1-0",
        "question": "What color is the sign?",
        "answer": "Red",
        "lvlm_answer": "Red.",
        "annotation_text": "Question: What color is the sign?, Answer: Red",
    }
    tokens = [
        row[f"{call}_{kind}_tokens"]
        for call in ("annotation", "lvlm_answer")
        for kind in ("prompt", "cached", "output")
    ]
    assert tokens == [100, 0, 9, 80, 64, 2]
    assert row["reason"] is None and {name: row[name] for name in ROW} == ROW
    pa.Table.from_pylist([row], schema=ANNOTATED_ROW)


def test_the_own_answer_follows_at_once_greedily_and_without_the_annotation() -> None:
    teacher = Teacher("Question: What color is the sign?, Answer: Red")
    annotate(teacher)
    (prompt, drawn), (answering, greedy) = teacher.asked
    assert prompt == PROMPT and (drawn.max_tokens, drawn.temperature, drawn.top_p) == (50, 0.7, 0.9)
    assert (
        answering == prompts.ANSWERING.format(question="What color is the sign?")
        and "Red" not in answering
    )
    assert greedy == Sampling(max_tokens=20) and greedy.temperature == 0


def test_both_prompts_begin_with_the_same_text() -> None:
    teacher = Teacher("Question: What color is the sign?, Answer: Red")
    sampling = Sampling(max_tokens=20)

    async def ask(prompt: str, drawn: Sampling) -> Reply:
        assert prompt.startswith(prompts.PREAMBLE)
        return await teacher(prompt.removeprefix(prompts.PREAMBLE), drawn)

    [row] = asyncio.run(
        annotate_row(
            ROW,
            ask,
            prompt=PROMPT,
            annotating=sampling,
            answering=sampling,
            questions=1,
            seed=0,
            preamble=prompts.PREAMBLE,
        )
    )
    assert row["lvlm_answer"] == "Red." and len(teacher.asked) == 2


def test_seeds_belong_to_the_run_the_image_and_the_question() -> None:
    def seeds(**changes: Any) -> list[int | None]:
        teacher = Teacher("no", "no")
        annotate(
            teacher, questions=2, row=ROW | {"image_id": changes.pop("image_id", "i1")}, **changes
        )
        return [sampling.seed for _, sampling in teacher.asked]

    assert seeds() == seeds()
    found = [*seeds(), *seeds(seed=1), *seeds(image_id="i2")]
    assert len(set(found)) == 6 and all(seed is not None and 0 <= seed < 2**31 for seed in found)


@pytest.mark.parametrize(
    "text",
    [
        "It is a sign.",
        "",
        "Question: What is it?",
        "I'm sorry, I cannot help.",
        "Question: ?, Answer: ",
    ],
)
def test_what_does_not_parse_is_quarantined_with_its_raw_text(text: str) -> None:
    teacher = Teacher(text)
    [row] = annotate(teacher)
    assert (row["stage"], row["reason"]) == (Stage.PSEUDO_ANNOTATOR, Reason.UNPARSABLE_ANNOTATION)
    assert row["detail"].endswith(f": {text}")
    assert len(teacher.asked) == 1, "nothing is asked about a question that is none"
    assert pa.Table.from_pylist([row], schema=ANNOTATED_ROW).select(QUARANTINE.names).num_rows == 1


def test_several_questions_of_an_image() -> None:
    teacher = Teacher(
        "Question: What color is it?, Answer: Red",
        "nothing",
        "Question: WHAT COLOR IS IT?, Answer: Blue",
        "Question: How many signs?, Answer: 2",
    )
    rows = annotate(teacher, questions=4)
    # The third asks what the first asked.
    assert [(row["sample_id"], row.get("answer"), row["reason"]) for row in rows] == [
        ("i1-0", "Red", None),
        ("i1-1", None, Reason.UNPARSABLE_ANNOTATION),
        ("i1-2", None, Reason.REPEATED_QUESTION),
        ("i1-3", "2", None),
    ]
    assert len(teacher.asked) == 4 + 2


def test_no_question_of_several_parses() -> None:
    first, second = annotate(Teacher("first", "second"), questions=2)
    assert first["reason"] == second["reason"] == Reason.UNPARSABLE_ANNOTATION
    assert first["detail"].endswith(": first") and second["detail"].endswith(": second")
    assert (first["sample_id"], second["sample_id"]) == ("i1-0", "i1-1")


@pytest.mark.parametrize("rejected", [0, 1, 2, 3])
def test_a_rejected_request_costs_its_own_question(rejected: int) -> None:
    """Requests 0 and 2 annotate, 1 and 3 answer."""

    class Picky(Teacher):
        async def __call__(self, prompt: str, sampling: Sampling) -> Reply:
            reply = await super().__call__(prompt, sampling)
            if len(self.asked) - 1 == rejected:
                raise RequestRejected("too long")
            return reply

    rows = annotate(
        Picky("Question: What is it?, Answer: A sign", "Question: How many?, Answer: 2"),
        questions=2,
    )
    bad = 1 if rejected > 1 else 0
    assert [row["sample_id"] for row in rows] == ["i1-0", "i1-1"]
    assert (rows[bad]["stage"], rows[bad]["reason"], rows[bad]["detail"]) == (
        Stage.PSEUDO_ANNOTATOR,
        Reason.ENGINE_REJECTED,
        "too long",
    )
    assert rows[1 - bad]["reason"] is None and rows[1 - bad]["lvlm_answer"]


def test_draws_go_by_the_key_of_the_image_in_its_source() -> None:
    teacher = Teacher("Question: What is it?, Answer: A sign")
    [row] = annotate(teacher, row=ROW | {"draw_key": "k1"})
    assert row["sample_id"] == "k1-0" and row["image_id"] == "i1"
    other = Teacher("Question: What is it?, Answer: A sign")
    annotate(other, row=ROW | {"draw_key": "k1", "image_id": "i2"})
    assert other.asked[0][1].seed == teacher.asked[0][1].seed != seed_for(0, "i1", 0)


def test_braces_in_a_question_are_only_text() -> None:
    teacher = Teacher("Question: What does {question} in {0} mean?, Answer: Red")
    annotate(teacher)
    assert teacher.asked[1][0].endswith("\nWhat does {question} in {0} mean?")


def test_the_form_of_an_annotation_can_be_read_and_is_what_the_prompts_ask_for() -> None:
    text = "Question: What color is the sign?, Answer: Red, and white"
    assert re.fullmatch(prompts.annotation_form(()), text)
    assert parse_annotations(text)[0].answer == "Red, and white"
    for answer in ("Yes", "yes", "no (a.b)"):
        assert re.fullmatch(
            prompts.annotation_form(("yes", "no (a.b)")), f"Question: Is it?, Answer: {answer}"
        )
    assert not re.fullmatch(prompts.annotation_form(("yes", "no")), text)
    assert not re.fullmatch(prompts.annotation_form(()), f"{text}\nExplanation: it is")


def test_annotations_alone_are_held_to_their_form() -> None:
    teacher = Teacher("Question: Is it red?, Answer: Yes")
    config = Config(prompt=PROMPT, task="pathvqa", annotate={"constrained": True, "preamble": ""})
    asyncio.run(annotating(config)(ROW, teacher))
    (_, annotation), (_, own) = teacher.asked
    assert (
        annotation.form is not None
        and re.fullmatch(annotation.form, "Question: Is it red?, Answer: Yes")
        and own.form is None
    )


def test_an_answer_that_the_task_does_not_have_is_quarantined_with_the_text() -> None:
    def under(annotation: str) -> dict[str, Any]:
        annotating = answering = Sampling(max_tokens=20)
        teacher = Teacher(annotation)
        work = annotate_row(
            ROW,
            teacher,
            prompt=PROMPT,
            annotating=annotating,
            answering=answering,
            questions=1,
            seed=0,
            answers=("yes", "no"),
        )
        [row] = asyncio.run(work)
        assert len(teacher.asked) == (2 if row["reason"] is None else 1), (
            "a rejected annotation costs no second call"
        )
        return row

    assert under("Question: Is it red?, Answer: Yes.")["answer"].startswith("Yes")
    rejected = under("Question: What is it?, Answer: Fibrosis")
    assert rejected["reason"] == Reason.UNPARSABLE_ANNOTATION
    assert (
        rejected["detail"]
        == "the answer is none of yes, no: Question: What is it?, Answer: Fibrosis"
    )


def test_the_settings_reach_the_lvlm() -> None:
    drawing = {"max_tokens": 33, "temperature": 0.3, "top_p": 0.8, "constrained": True}
    section = drawing | {"questions_per_image": 2, "preamble": "Look closely. "}
    config = Config(task="chartqa", annotate=section, identify={"max_tokens": 7}, seed=5)
    asked: list[tuple[str, Sampling]] = []

    async def ask(prompt: str, sampling: Sampling) -> Reply:
        asked.append((prompt, sampling))
        text = f"Question: How many bars, {len(asked)}?\nAnswer: 4"
        return Reply(
            text=text, prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    asyncio.run(
        annotating(config)(
            {"part": 0, "image_id": "i", "image_uri": "/i.png", "draw_key": None}, ask
        )
    )
    drawn, own, *_ = (sampling for _, sampling in asked)
    form = prompts.annotation_form(())
    assert drawn == Sampling(
        max_tokens=33, temperature=0.3, top_p=0.8, form=form, seed=seed_for(5, "i", 0)
    )
    assert own == Sampling(max_tokens=7)
    assert [sampling.seed for _, sampling in asked[::2]] == [
        seed_for(5, "i", 0),
        seed_for(5, "i", 1),
    ]
    assert (
        all(prompt.startswith("Look closely. ") for prompt, _ in asked)
        and TASKS["chartqa"].prompt in asked[0][0]
    )
