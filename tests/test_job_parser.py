"""The command line of the jobs that are no runs."""

import runpy
from pathlib import Path

import pytest

from mpa_ray.job_parser import JobParser

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.py"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sampels", "3"], "error: unrecognized arguments: --sampels 3; did you mean --samples?; --help says what there is"),
        (["--drop-below", "x"], "error: unrecognized arguments: --drop-below x; did you mean --drop_below?; --help says what there is"),
        (["--zzz"], "error: unrecognized arguments: --zzz; --help says what there is"),
        (["--samples", "many"], "error: argument --samples: invalid int value: 'many'; --help says what there is"),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
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
