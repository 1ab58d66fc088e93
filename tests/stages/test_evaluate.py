"""Scoring answers, without a model: the official rules by name, intervals, kinds, and captions as a
whole.
"""

import pyarrow as pa
import pytest

from mpa_ray.stages.evaluate import PREDICTIONS, score
from mpa_ray.stages.held_out import change
from mpa_ray.tasks.benchmarks import BENCHMARKS, METRICS


def predictions(*rows: tuple[str, list[str], str | None]) -> pa.Table:
    columns = {
        "prediction": [row[0] for row in rows],
        "answers": [row[1] for row in rows],
        "question_kind": [row[2] for row in rows],
    }
    columns |= {
        name: [f"{number}" for number in range(len(rows))]
        for name in ("question_id", "question", "image_uri")
    }
    return pa.table([columns[name] for name in PREDICTIONS.names], schema=PREDICTIONS)


def test_scores_are_means_in_percent_with_interval_and_kinds() -> None:
    rows = (
        [("red", ["red"] * 10, "color")] * 60
        + [("blue", ["red"] * 10, "color")] * 20
        + [("7", ["7"] * 10, "count")] * 20
    )
    table, [found, compat] = score(
        predictions(*rows), ("textvqa_accuracy", "mpa_compat_accuracy"), seed=0
    )
    assert (found["metric"], found["score"], found["n"]) == (
        "textvqa_accuracy",
        pytest.approx(80.0),
        100,
    )
    assert 65 < found["ci95"][0] < 80 < found["ci95"][1] < 95
    assert found["by_kind"] == {
        "color": [pytest.approx(75.0), 80],
        "count": [pytest.approx(100.0), 20],
    }
    assert compat["metric"] == "mpa_compat_accuracy"
    assert table.column_names == [*PREDICTIONS.names, "textvqa_accuracy", "mpa_compat_accuracy"]
    assert sum(table.column("textvqa_accuracy").to_pylist()) == pytest.approx(80)


def test_questions_without_a_kind_have_none() -> None:
    _, [found] = score(
        predictions(("a", ["a"], None), ("b", ["a"], None)), ("exact_match",), seed=0
    )
    assert found["by_kind"] == {} and found["score"] == 50.0


def test_captions_are_scored_as_a_whole() -> None:
    rows = [
        ("a red sign on a wall", ["a red sign on a wall", "a wall with a red sign"], None),
        ("a dog", ["a cat"], None),
    ]
    table, found = score(predictions(*rows), BENCHMARKS["textcaps"].metrics or (), seed=0)
    assert [item["metric"] for item in found] == ["bleu_1", "rouge_l", "cider"]
    assert all(item["ci95"] is None and item["n"] == 2 for item in found)
    assert found[0]["score"] > 50 and table.column_names == PREDICTIONS.names


@pytest.mark.parametrize(
    ("metric", "said", "answers", "expected"),
    [
        ("textvqa_accuracy", "Nokia.", ["nokia"] * 10, 1.0),
        ("vqa_accuracy", "red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("anls", "nokla", ["nokia"], 0.8),
        ("relaxed_accuracy", "10.4", ["10", "99"], 1.0),
        ("relaxed_accuracy", "99", ["10", "99"], 0.0),
        ("exact_match", "Yes.", ["no", "yes"], 1.0),
        ("exact_match", "maybe", ["no", "yes"], 0.0),
        ("word_recognition_rate", "STOP", ["stop"], 1.0),
    ],
)
def test_metrics_go_by_their_official_rules(
    metric: str, said: str, answers: list[str], expected: float
) -> None:
    assert METRICS[metric](said, answers) == pytest.approx(expected)


def test_formats_name_metrics_that_there_are() -> None:
    for name, form in BENCHMARKS.items():
        assert all(metric in METRICS for metric in form.metrics or ()) or name == "textcaps"
        assert "{question}" in form.prompt


def test_what_became_of_a_held_out_row() -> None:
    found = {
        (before, after): change(before, after)
        for before in (False, True)
        for after in (False, True)
    }
    assert found == {
        (False, True): "learned",
        (True, False): "forgotten",
        (True, True): "kept",
        (False, False): "still_wrong",
    }
