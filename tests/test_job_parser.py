"""The command line of the jobs that are no runs."""

import runpy
from pathlib import Path

import pytest

from mpa_ray.cli import JobParser
from mpa_ray.errors import ConfigurationError

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.py"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--sampels", "3"],
            "error: unrecognized arguments: --sampels 3; did you mean --samples?; --help says what"
            " there is",
        ),
        (
            ["--drop-below", "x"],
            "error: unrecognized arguments: --drop-below x; did you mean --drop_below?; --help"
            " says what there is",
        ),
        (["--zzz"], "error: unrecognized arguments: --zzz; --help says what there is"),
        (
            ["--samples", "many"],
            "error: argument --samples: invalid int value: 'many'; --help says what there is",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = JobParser("Does something.")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--drop_below")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(argv)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{said}\n")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_help_of_every_job_has_examples_and_fits_a_screen(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", [str(job), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Examples:" in shown and f"python jobs/{job.name}" in shown
    assert len(shown.splitlines()) <= 100


def run_parser() -> JobParser:
    parser = JobParser("Does something.")
    parser.add_run("--run", "--output")
    parser.add_argument("--samples", type=int, default=3)
    return parser


@pytest.mark.parametrize(
    "argv",
    [
        ["runs/a", "--samples", "5"],
        ["--samples", "5", "runs/a"],
        ["--run", "runs/a", "--samples", "5"],
        ["--samples", "5", "--output=runs/a"],
        ["--run", "runs/a", "runs/a", "--samples", "5"],
    ],
)
def test_a_run_is_an_argument_or_behind_its_flag(argv: list[str]) -> None:
    given = run_parser().parse_args(argv)
    assert (given.run, given.samples) == ("runs/a", 5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--samples", "5"], "the following arguments are required: RUN"),
        (["runs/a", "--run", "runs/b"], "one RUN is needed, and runs/a and runs/b are given"),
        (["runs/a", "runs/b"], "unrecognized arguments: runs/b"),
    ],
)
def test_one_run_is_needed(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_parser().parse_args(argv)
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        f"error: {said}; --help says what there is\n",
    )


@pytest.mark.parametrize("job", ["export", "rating_sheet", "rejudge", "report", "status"])
def test_jobs_on_a_run_take_it_both_ways(job: str) -> None:
    needed = {"export": ["--format", "trl", "--output", "o"], "rating_sheet": ["--output", "o"]}
    needed["rejudge"] = ["--matcher", "anls", "--output", "o"]
    arguments = runpy.run_path(str(JOBS[0].parent / f"{job}.py"))["arguments"]
    flag = "--output" if job in ("report", "status") else "--run"
    for argv in (["runs/a"], [flag, "runs/a"], ["--run", "runs/a"]):
        assert arguments().parse_args([*argv, *needed.get(job, [])]).run == "runs/a"


def test_a_review_takes_a_run_and_ratings() -> None:
    names = runpy.run_path(str(JOBS[0].parent / "review.py"))
    for argv in (["/r", "a", "b"], ["--run", "/r", "a", "b"], ["a", "b", "--run", "/r", "--open"]):
        run, ratings = names["run_and_ratings"](names["arguments"]().parse_args(argv))
        assert (run.uri, ratings) == ("/r", ["a", "b"])
    with pytest.raises(
        ConfigurationError, match="/r: give the output folder of a run, and after it"
    ):
        names["run_and_ratings"](names["arguments"]().parse_args(["/r"]))


def test_a_plan_and_a_gap_study_take_it_first(tmp_path: Path) -> None:
    plan = runpy.run_path(str(JOBS[0].parent / "plan.py"))["parse"]
    assert plan(["/r", "--count", "5"])[0] == plan(["--rates", "/r", "--count", "5"])[0]
    with pytest.raises(ConfigurationError, match=f"--run '{tmp_path}': holds no config.json"):
        runpy.run_path(str(JOBS[0].parent / "gap_study.py"))["parse"]([str(tmp_path)])
