"""A jury row by row: who is asked, what is kept, and that one juror who differs makes the
annotation inconsistent.
"""

import asyncio
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from mpa_ray import cli
from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.engines import Reply, Sampling
from mpa_ray.errors import ConfigurationError
from mpa_ray.parity_identifier import identify_row, judge
from mpa_ray.schema import JUDGED_ROW, JUDGEMENTS, JURY_ROW, Verdict
from mpa_ray.stages import jury
from mpa_ray.stages.jury import identify_jury, jury_row
from mpa_ray.tasks import prompts
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.rejudge import new_verdicts

ROW = {
    "part": 0,
    "image_id": "i",
    "image_uri": "/a.png",
    "question": "What color?",
    "answer": "red",
    "lvlm_answer": "Red.",
}
LARGE = ModelSection(model="a/large")


class Model:
    def __init__(self, says: str) -> None:
        self.says = says
        self.asked: list[str] = []

    async def __call__(self, prompt: str, sampling: Sampling) -> Reply:
        self.asked.append(prompt)
        return Reply(
            text=f" {self.says}\n",
            prompt_tokens=70,
            cached_tokens=16,
            output_tokens=3,
            finish_reason="stop",
        )


def ask_jury(row: dict[str, Any], *jurors: Model, exhaustive: bool = False) -> dict[str, Any]:
    for juror in jurors:
        [row] = asyncio.run(
            jury_row(
                row, juror, matcher="exact", answering=Sampling(max_tokens=8), exhaustive=exhaustive
            )
        )
        pa.Table.from_pylist([row], schema=JURY_ROW)
    return row


def judged(row: dict[str, Any], student: Model, *, exhaustive: bool = False) -> dict[str, Any]:
    [found] = asyncio.run(
        identify_row(
            row, student, matcher="exact", answering=Sampling(max_tokens=8), exhaustive=exhaustive
        )
    )
    pa.Table.from_pylist([found], schema=JUDGED_ROW)
    return found


def test_every_juror_is_asked_the_question_and_their_answers_are_kept() -> None:
    jurors = Model("red"), Model("RED")
    row = ask_jury(ROW, *jurors)
    assert row["jury_answers"] == ["red", "RED"]
    assert {name: row[f"jury_{name}_tokens"] for name in ("prompt", "cached", "output")} == {
        "prompt": 140,
        "cached": 32,
        "output": 6,
    }
    assert all(
        juror.asked == [prompts.ANSWERING.format(question="What color?")] for juror in jurors
    )
    assert judged(row, Model("blue"))["verdict"] == Verdict.PARITY
    assert judged(row, Model("red"))["verdict"] == Verdict.SVLM_CORRECT


def test_one_juror_who_differs_is_enough_and_nobody_is_asked_after_it() -> None:
    jurors = Model("red"), Model("blue"), Model("red")
    row = ask_jury(ROW, *jurors)
    assert row["jury_answers"] == ["red", "blue"] and not jurors[2].asked
    student = Model("green")
    found = judged(row, student)
    assert (
        found["verdict"] == Verdict.LVLM_INCONSISTENT
        and not student.asked
        and found["svlm_answer"] is None
    )


def test_no_juror_is_asked_where_the_lvlm_disagrees_with_itself() -> None:
    juror = Model("red")
    assert ask_jury(ROW | {"lvlm_answer": "blue"}, juror) == ROW | {"lvlm_answer": "blue"}
    assert not juror.asked


@pytest.mark.parametrize("lvlm", ["red", "blue"])
@pytest.mark.parametrize("first", ["red", "blue"])
@pytest.mark.parametrize("second", ["red", "blue"])
@pytest.mark.parametrize("student", ["red", "blue"])
def test_asking_everyone_gives_the_same_verdicts(
    lvlm: str, first: str, second: str, student: str
) -> None:
    row = ROW | {"lvlm_answer": lvlm}
    cascade = judged(ask_jury(row, Model(first), Model(second)), Model(student))
    everyone = judged(
        ask_jury(row, Model(first), Model(second), exhaustive=True), Model(student), exhaustive=True
    )
    assert cascade["verdict"] == everyone["verdict"]
    assert everyone["jury_answers"] == [first, second]
    assert (cascade["verdict"] == Verdict.PARITY) == (
        lvlm == first == second == "red" and student == "blue"
    )


def test_stored_jury_answers_are_judged_again() -> None:
    def row(jury: list[str] | None, svlm: str | None) -> dict[str, Any]:
        return {
            **ROW,
            "sample_id": "s",
            "jury_answers": jury,
            "svlm_answer": svlm,
            "answer": "100",
        } | {"lvlm_answer": "100"}

    rows = [
        row(["103"], None),
        row(["103"], "5"),
        row(["150"], None),
        row(None, "5"),
        row(["100", "101"], "100"),
    ]
    table = pa.Table.from_pylist(
        [{name: one.get(name) for name in JUDGEMENTS.names} for one in rows], schema=JUDGEMENTS
    )
    inconsistent, parity, correct = map(
        str, (Verdict.LVLM_INCONSISTENT, Verdict.PARITY, Verdict.SVLM_CORRECT)
    )
    assert new_verdicts(table, MATCHERS["exact"]) == [
        inconsistent,
        inconsistent,
        inconsistent,
        parity,
        inconsistent,
    ]
    # 5% off counts now; where the S-VLM (and perhaps a further juror) was not asked, there is no
    # verdict.
    assert new_verdicts(table, MATCHERS["relaxed"]) == [None, parity, inconsistent, parity, correct]


def test_judging_without_a_jury_is_eq_2() -> None:
    assert (
        judge(answer="red", lvlm_answer="red", svlm_answer="blue", matches=MATCHERS["exact"])
        == Verdict.PARITY
    )


def test_without_a_jury_the_dataset_is_left_alone() -> None:
    dataset = object()
    assert identify_jury(dataset, Config()) is dataset  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(
    ("jury", "message"),
    [
        ([{}], "jury.0.model is not set"),
        ([{"model": "a/large"}], "jury.0.model='a/large' is asked twice"),
        ([{"model": "b/x"}, {"model": "b/x"}], "jury.0.model='b/x' is asked twice"),
        ([{"model": "b/x", "engine_optoins": {}}], "Extra inputs are not permitted"),
    ],
)
def test_a_jury_that_is_none_is_refused(jury: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"lvlm": {"model": "a/large"}, "jury": jury})


def test_a_jury_changes_the_run_and_its_speed_does_not() -> None:
    without, with_one = Config(lvlm=LARGE), Config(lvlm=LARGE, jury=(ModelSection(model="b/x"),))
    faster = Config(lvlm=LARGE, jury=(ModelSection(model="b/x", images_in_flight=4),))
    assert identity(without) != identity(with_one) == identity(faster)


def test_a_jury_on_the_command_line() -> None:
    argv = ["--images", "i", "--output", "o", "--svlm.model", "c/d"]
    config = cli.parse(
        Config(lvlm=LARGE), [*argv, "--jury", "{model: b/x, max_replicas: 2}", "{model: b/y}"]
    )
    assert [(juror.model, juror.max_replicas) for juror in config.jury] == [
        ("b/x", 2),
        ("b/y", None),
    ]
    assert cli.parse(Config(lvlm=LARGE), [*argv, "--jury", "{model: b/x}"]).jury == (
        ModelSection(model="b/x"),
    )
    with pytest.raises(
        ConfigurationError, match=r"jury\.0\.modle: unknown setting; did you mean jury\.0\.model\?"
    ):
        cli.parse(Config(lvlm=LARGE), [*argv, "--jury", "{modle: b/x}"])


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_settings_reach_each_juror(exhaustive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        jury,
        "map_rows_with_model",
        lambda dataset, stage, **_: given.append(stage.work.keywords | {"models": stage.models}),
    )
    config = Config(
        jury=[LARGE, ModelSection(model="b/large")],
        identify={"max_tokens": 7, "matcher": "anls", "exhaustive": exhaustive},
    )
    identify_jury(None, config)  # type: ignore[arg-type]
    assert [found["models"] for found in given] == [[config.jury[0]], [config.jury[1]]]
    expected = {"matcher": "anls", "answering": Sampling(max_tokens=7), "exhaustive": exhaustive}
    assert all(expected.items() <= found.items() for found in given)
