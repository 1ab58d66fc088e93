import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.compare import (
    compare,
    html,
    jaccard,
    parity_ids,
    questions_of,
    tables,
    text,
)
from tests.browser import assert_harmless, assert_no_sideways_scroll, browser, installed
from tests.report_runs import (
    finish,
    some_rows,
    write_finished,
    write_hostile,
    write_predictions,
    write_started,
)


@pytest.fixture
def runs(tmp_path):
    first = write_finished(tmp_path / "one/run")
    rows = some_rows(tmp_path / "one/images", 50)
    second = write_started(tmp_path / "two/run-b", [rows], [], task="chartqa")
    finish(second)
    record = second.read_json("run.json")
    better = write_predictions(second, "mpa", 80, ("text",), ("stop", "7", "yes"))
    record["evaluation"] = [
        score if score["model"] != "mpa" else better[0] for score in record["evaluation"]
    ]
    second.write_json("run.json", record)
    return [first, second]


def cells(runs, title):
    rows = next(rows for name, rows in tables(compare(runs)) if name.startswith(title))
    return {row[0]: row[1:] for row in rows[1:]}


def test_what_is_compared(runs):
    assert cells(runs, "Set-up")["task"] == ["textvqa", "chartqa"]
    data = cells(runs, "Data")
    assert data["images"] == ["65", "50"]
    assert data["parity"] == ["24 (40.0%)", "20 (40.0%)"]
    assert data["quarantined: images/truncated"] == ["5", "0"]
    assert cells(runs, "Parity sets") == {"run": ["1.000", "0.833"], "run-b": ["0.833", "1.000"]}
    accuracy = cells(runs, "Accuracy, textvqa accuracy on benchmark")
    assert accuracy["S-VLM after MPA"] == ["70.0 (61.0 to 79.0)", "80.0 (71.0 to 89.0)"]
    assert accuracy["S-VLM after MPA, against run"][0] == "-"
    assert accuracy["S-VLM after MPA, against run"][1].startswith("+10.0 (+")
    assert accuracy["S-VLM after MPA, against run"][1].endswith("n=100")
    assert accuracy["S-VLM before, against run"][1] == "+0.0 (+0.0 to +0.0), p=1, n=100"
    assert cells(runs, "Tokens")["paid to an API"] == ["$0.0123", "$0.0123"]


def test_a_run_under_way_and_one_without_scores(runs, tmp_path):
    started = write_started(
        tmp_path / "three/run-c", [some_rows(tmp_path / "three/images", 10)], []
    )
    found = [*runs, started]
    assert cells(found, "Data")["finished"] == ["yes", "yes", "no"]
    assert cells(found, "Accuracy")["S-VLM after MPA"][2] == "-"
    assert cells([started, started], "Data")["images"] == ["10", "10"]


def on_other_questions(run, change):
    """The run, scored on a benchmark of the same name and the same ids."""
    folder = run.child("evaluation/predictions")
    for name in folder.names(".parquet"):
        table = folder.read_table(name)
        column, values = change
        position = table.column_names.index(column)
        folder.write_table(
            name,
            table.set_column(
                position, column, pa.array([values] * len(table), table.schema.field(column).type)
            ),
        )
    return run


@pytest.mark.parametrize("change", [("question", "Another question?"), ("answers", ["another"])])
def test_runs_on_two_benchmarks_are_not_tested_against_each_other(tmp_path, change):
    runs = [write_finished(tmp_path / name) for name in ("a", "b", "c", "d")]
    on_other_questions(runs[1], change)
    on_other_questions(runs[3], change)
    blocks = [
        (title, rows) for title, rows in tables(compare(runs)) if title.startswith("Accuracy")
    ]
    of_a, of_b = ({row[0]: row[1:] for row in rows} for _, rows in blocks)
    assert [title for title, _ in blocks] == [
        f"Accuracy, textvqa accuracy on benchmark of {names}, percent" for names in ("a, c", "b, d")
    ]
    assert [cell != "-" for cell in of_a["S-VLM after MPA"]] == [True, False, True, False]
    assert [cell != "-" for cell in of_b["S-VLM after MPA"]] == [False, True, False, True]
    assert [cell != "-" for cell in of_a["S-VLM after MPA, against a"]] == [
        False,
        False,
        True,
        False,
    ]
    assert not any("against" in label for label in of_b)


def test_a_run_whose_questions_are_not_known(runs):
    runs[1].child("evaluation/predictions").delete_folder()
    titles = [title for title, _ in tables(compare(runs)) if title.startswith("Accuracy")]
    assert titles == [
        "Accuracy, textvqa accuracy on benchmark of run, percent",
        "Accuracy, textvqa accuracy on benchmark of run-b (its questions are not known), percent",
    ]
    runs[1].child("rounds/1/evaluation").copy_from(runs[0].child("evaluation"))
    assert questions_of(runs[1]) == questions_of(runs[0]), "as rounds keep them"


def test_a_run_of_rounds_has_the_parity_samples_of_all_rounds(runs, tmp_path):
    first, second = runs
    rounds = write_started(tmp_path / "four/run-d", [], [])
    for number, run in enumerate(runs, 1):
        rounds.child(f"rounds/{number}").copy_from(run)
    union = set(map(int, parity_ids(first))) | set(map(int, parity_ids(second)))
    assert set(map(int, parity_ids(rounds))) == union


def test_all_stages_together_are_wall_time(runs):
    record = runs[0].read_json("run.json")
    assert cells(runs, "Tokens")["all stages (wall time)"][0] == "2 min 4 s"
    runs[0].write_json("run.json", record | {"wall_seconds": 100.0})
    assert cells(runs, "Tokens")["all stages (wall time)"][0] == "1 min 40 s"


def test_jaccard(runs):
    a = np.array([1, 2, 3], dtype=np.uint64)
    assert jaccard(a, np.array([2, 3, 4], dtype=np.uint64)) == 0.5
    assert jaccard(a[:0], a[:0]) is None
    assert len(parity_ids(runs[0])) == 24


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    other = write_finished(tmp_path / "other/run")
    assert [run.name for run in compare([runs[0], other])] == [runs[0].uri, other.uri]


def test_one_run_is_nothing_to_compare(runs, tmp_path):
    with pytest.raises(ConfigurationError, match="give at least two runs"):
        compare(runs[:1])
    with pytest.raises(ConfigurationError, match="nowhere: holds no run"):
        compare([Folder.at(tmp_path / "nowhere")])
    with pytest.raises(ConfigurationError, match="holds no run"):
        compare([runs[0], Folder.at(tmp_path / "nowhere")])


def test_the_terminal_shows_no_control_characters(runs, tmp_path):
    hostile = write_hostile(tmp_path / "hostile/run")
    shown = text(compare([runs[0], hostile]))
    assert "\x1b" not in shown and "\u202e" not in shown


def test_the_scores_of_all_runs_are_drawn_on_one_axis_of_their_range(runs):
    """From 40 - 9 to 90 + 9."""
    page = html(compare(runs)).decode()
    assert "with 95% intervals. The axis begins at 30, not at 0.<" in page
    assert "<span>30</span><span>100</span>" in page
    assert re.findall(r'cx="(.*?)"', page) == [
        "14.29%",
        "57.14%",
        "85.71%",
        "14.29%",
        "71.43%",
        "85.71%",
    ]
    assert f"<b>run-b</b>: chartqa: small learns from large · {runs[1].uri}<" in page


@pytest.mark.skipif(installed() is not None, reason=str(installed()))
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page(runs, tmp_path, width):
    page = tmp_path / "comparison.html"
    page.write_bytes(html(compare([*runs, write_hostile(tmp_path / "ru\"n' <b>x")])))
    with browser(tmp_path / "profile", width=width) as driver:
        driver.get(Path(page).as_uri())
        assert "3 runs compared" in driver.find_element("css selector", "h1").text
        assert_no_sideways_scroll(driver)
        assert_harmless(driver, page)


def test_the_job(runs, tmp_path):
    def job(*arguments):
        return subprocess.run(
            [sys.executable, "jobs/compare.py", *arguments], capture_output=True, text=True
        )

    done = job(*(run.uri for run in runs), "--output", f"{tmp_path}/comparison.html")
    assert done.returncode == 0, done.stderr
    assert "Parity sets, shared samples (Jaccard)" in done.stdout
    assert (tmp_path / "comparison.html").read_bytes().startswith(b"<!doctype html>")
    assert job(runs[0].uri, runs[1].uri, "--output", f"{tmp_path}/x").returncode == 2


@pytest.mark.parametrize(
    ("roots", "shared"),
    [
        (("/a", "/b"), "0.833"),
        *((roots, "image roots differ") for roots in ((None, None), ("/a", None), (None, "/b"))),
    ],
)
def test_samples_of_images_in_two_places(runs, roots, shared):
    """Older lists have no root: their images are known by where they lay, which says nothing of a
    copy elsewhere.
    """
    for run, place, root in zip(runs, ("/a", "/b"), roots, strict=True):
        record = run.read_json("run.json")
        run.write_json("run.json", record | {"config": record["config"] | {"images": place}})
        run.write_json(
            "manifest/index.json",
            {"source": place, "files": [], "images": 0} | ({"root": root} if root else {}),
        )
    assert cells(runs, "Parity sets")["run"] == ["1.000", shared]
    [title] = [title for title, _ in tables(compare(runs)) if title.startswith("Parity sets")]
    assert ("image roots differ, so images are matched by their paths below them" in title) == all(
        roots
    )


def test_samples_of_an_older_list_in_one_place(runs):
    for run in runs:
        record = run.read_json("run.json")
        run.write_json("run.json", record | {"config": record["config"] | {"images": "/a"}})
        run.write_json("manifest/index.json", {"source": "/a", "files": [], "images": 0})
    assert cells(runs, "Parity sets")["run"] == ["1.000", "0.833"]
