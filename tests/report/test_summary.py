"""The table at the end of a run."""

from typing import Any

from mpa_ray.observability.text_table import aligned, interval
from mpa_ray.report.summary import table
from mpa_ray.stages.commits import TOKEN_COLUMNS


def score(model: str, percent: float, metric: str = "textvqa_accuracy") -> dict[str, Any]:
    interval = [percent - 2, percent + 2]
    return {
        "model": model,
        "benchmark": "signs",
        "metric": metric,
        "score": percent,
        "ci95": interval,
        "n": 1000,
        "by_kind": {},
    }


RECORD: dict[str, Any] = {
    "images": 12345,
    "annotations": 12000,
    "quarantined": {"images/empty": 300, "pseudo_annotator/unparsable_annotation": 45},
    "verdicts": {"parity": 3000, "svlm_correct": 8000, "lvlm_inconsistent": 1000},
    "tokens": {name: 1000 * number for number, name in enumerate(TOKEN_COLUMNS, 1)},
    "training": {
        "mpa": {
            "samples": 2700,
            "loss": 0.5,
            "seconds": 100.0,
            "tokens_per_second": 1234.5,
            "holdout": {"learned": 77, "forgotten": 8},
        },
        "no_pi_all": {
            "samples": 10800,
            "loss": 0.5,
            "seconds": 400.0,
            "tokens_per_second": 1234.5,
            "mfu": 0.314,
        },
    },
    "evaluation": [
        entry
        for model, percent in (("zero_shot", 45.27), ("mpa", 63.91), ("no_pi_all", 60.0))
        for entry in (score(model, percent), score(model, percent + 1, "mpa_compat_accuracy"))
    ],
    "stages": {"annotate_and_identify": 3725.0, "train_mpa": 100.0, "train_no_pi_all": 400.0},
}


def line_of(text: str, start: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_everything_a_reader_looks_for_is_there() -> None:
    text = table(RECORD)
    assert line_of(text, "images").split()[-1] == "12,345"
    assert line_of(text, "quarantined: images/empty").split()[-1] == "300"
    assert line_of(text, "verdict: parity").endswith("3,000  25.0% of annotations")
    assert (
        line_of(text, "train_mpa").split("  ")[-1]
        == "2,700 samples, 1,234 tokens/s; held out: learned 77, forgot 8"
    )
    assert (
        line_of(text, "train_no_pi_all").split("  ")[-1]
        == "10,800 samples, 1,234 tokens/s (31% MFU)"
    )
    assert "1 h 2 min" in line_of(text, "annotate_and_identify")
    zero_shot, mpa = line_of(text, "zero_shot"), line_of(text, "mpa")
    assert zero_shot.split() == ["zero_shot", "45.3", "43.3", "to", "47.3", "46.3", "1,000", "-"]
    assert mpa.split() == ["mpa", "63.9", "61.9", "to", "65.9", "64.9", "1,000", "2,700", "samples"]
    assert line_of(text, "signs").split()[1:5] == [
        "textvqa_accuracy",
        "95%",
        "interval",
        "mpa_compat_accuracy",
    ]


def test_what_the_cascade_spared_is_said() -> None:
    assert "spared" not in table(RECORD), "a run of an earlier version does not know"
    assert ", spared 8.3% of annotations" in line_of(
        table(RECORD | {"svlm_asked": 11000}), "annotate_and_identify"
    )


def test_a_run_without_benchmark_or_quarantine() -> None:
    text = table(RECORD | {"evaluation": [], "quarantined": {}})
    assert line_of(text, "quarantined").split() == ["quarantined", "0"]
    assert "95%" not in text and text.endswith("\n")


def test_a_run_of_nothing_is_no_division_by_zero() -> None:
    table(RECORD | {"annotations": 0, "evaluation": []})


def test_columns_are_aligned() -> None:
    lines = aligned(
        [["model", "score", "of"], ["a", "5.0", "x"], ["longer", "10.25", "yy"]]
    ).splitlines()
    assert lines == ["model   score  of", "a         5.0  x", "longer  10.25  yy"]


def test_intervals() -> None:
    assert interval([1.234, 5.0]) == "1.2 to 5.0"
    assert interval(None) == "-"


def test_a_run_that_starts_from_a_parity_set_asked_nobody() -> None:
    given = {
        "images": 0,
        "annotations": 25,
        "quarantined": {},
        "verdicts": {"parity": 25},
        "tokens": {},
        "stages": {"train_mpa": 3.0},
    }
    text = table(RECORD | given)
    assert line_of(text, "verdict: parity").split()[2:4] == ["25", "100.0%"]
    assert line_of(text, "train_mpa").split()[1:3] == ["3", "s"]
