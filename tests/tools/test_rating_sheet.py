import csv
import io
import subprocess
import sys

import pyarrow as pa
import pytest

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images.benchmark import QUESTIONS as QUESTIONS_SCHEMA
from mpa_ray.report.rating_questions import AFTER, BEFORE, HUMAN, QUESTIONS
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.rating_sheet import csv_bytes, harmless, write_sheet
from tests.run_folders import judged, picture, write_run

VERDICTS = ("parity", "svlm_correct", "lvlm_inconsistent")


@pytest.fixture
def run(tmp_path):
    rows = [
        judged(
            f"{tmp_path}/images/{n}.png",
            question=f"Question {n}?",
            answer=f"=cmd|{n}",
            lvlm="x",
            svlm="y",
            verdict=VERDICTS[n % 3],
        )
        for n in range(60)
    ]
    return write_run(tmp_path / "run", [rows[:30], rows[30:]])


def sheet_of(output, name="for_raters/sheet.csv"):
    return list(
        csv.DictReader(io.StringIO(output.read_bytes(name).decode("utf-8-sig"), newline=""))
    )


def test_groups_are_drawn_as_asked(run, tmp_path):
    output = Folder.at(tmp_path / "study")
    counts = write_sheet(run, output, samples=10, seed=0, task="anything.")
    sheet, key = sheet_of(output), sheet_of(output, "key.csv")
    assert counts[BEFORE] == counts[AFTER] == 10
    assert counts["items"] == len(sheet) == len(key) == len({row["sample_id"] for row in key})
    verdicts = {
        row["sample_id"]: row["verdict"]
        for table in run.child("judgements").tables()
        for row in table.to_pylist()
    }
    assert {verdicts[row["sample_id"]] for row in key if AFTER in row["groups"].split()} == {
        "parity"
    }
    # Which rows are drawn hangs on their ids, and those on the temporary folder's name: not every
    # verdict need be among ten.
    assert len({verdicts[row["sample_id"]] for row in key if BEFORE in row["groups"].split()}) > 1


def test_raters_see_no_sign_of_the_group(run, tmp_path):
    output = Folder.at(tmp_path / "study")
    write_sheet(run, output, samples=10, seed=0, task="anything.")
    sheet = sheet_of(output)
    assert list(sheet[0]) == ["item", "image", "question", "answer", *QUESTIONS]
    assert [row["item"] for row in sheet] == [f"item-{n:02d}" for n in range(1, len(sheet) + 1)]
    assert all(
        row["image"] == f"images/{row['item']}.png" and output.exists(f"for_raters/{row['image']}")
        for row in sheet
    )
    assert not any(row[question] for row in sheet for question in QUESTIONS)
    key = {row["item"]: row for row in sheet_of(output, "key.csv")}
    groups = [key[row["item"]]["groups"] for row in sheet]
    assert groups != sorted(groups) and groups != sorted(groups, reverse=True)
    given = b"".join(
        output.child("for_raters").read_bytes(name) for name in ("sheet.csv", "instructions.md")
    )
    assert not any(
        word in given
        for word in (b"parity", b"before", b"after_pi", key["item-01"]["sample_id"].encode())
    )


def test_the_seed_decides(run, tmp_path):
    outputs = [Folder.at(tmp_path / f"study{n}") for n in range(3)]
    for output, seed in zip(outputs, (0, 0, 1), strict=True):
        write_sheet(run, output, samples=10, seed=seed, task="anything.")
    sheets = [output.read_bytes("key.csv") for output in outputs]
    assert sheets[0] == sheets[1] != sheets[2]


def test_an_annotation_drawn_twice_is_rated_once(run, tmp_path):
    output = Folder.at(tmp_path / "study")
    counts = write_sheet(run, output, samples=500, seed=0, task="anything.")
    assert counts == {"items": 60, BEFORE: 60, AFTER: 20}


def test_human_questions_are_mixed_in(run, tmp_path):
    (tmp_path / "human.jpg").write_bytes(picture(kind="JPEG"))
    rows = [
        {"question_id": str(n), "question": f"Human {n}?", "answers": ["no", "yes", "yes"]}
        for n in range(6)
    ]
    for n, row in enumerate(rows):
        row |= (
            {"image_uri": "x", "image": picture(n, kind="JPEG")}
            if n % 2
            else {"image_uri": f"{tmp_path}/human.jpg"}
        )
    table = pa.Table.from_pylist(rows, schema=QUESTIONS_SCHEMA)
    run.write_table("evaluation/questions/part-00000000.parquet", table[:3])
    run.write_table("evaluation/questions/part-00000001.parquet", table[3:])
    output = Folder.at(tmp_path / "study")
    counts = write_sheet(run, output, samples=5, seed=0, task="anything.", human=True)
    assert counts[HUMAN] == 5
    human = [row for row in sheet_of(output) if row["question"].startswith("Human")]
    assert len(human) == 5 and all(
        row["answer"] == "yes" and row["image"].endswith(".jpg") for row in human
    )


def test_cells_are_harmless(run, tmp_path):
    output = Folder.at(tmp_path / "study")
    write_sheet(run, output, samples=3, seed=0, task="anything.")
    assert all(row["answer"].startswith("'=cmd|") for row in sheet_of(output))


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-5", "'-5"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" \t=1", "'=1"),
        ("\r\n=1", "'=1"),
        ("＝1", "'＝1"),
        ("\u202e=1", "'=1"),
        ("two\nlines", "two lines"),
        ("nul\0byte", "nul byte"),
        ("a=b", "a=b"),
        ("What is it;=cmd|' /C calc'!A0", "What is it;'=cmd|' /C calc'!A0"),
        ("one; +2;\t-3 ;＝4", "one; '+2; '-3 ;'＝4"),
        (';"=1"', ';"\'=1"'),
        ('; " "@1', '; " "\'@1'),
        ("one; two", "one; two"),
        ("क्\u200dष", "क्\u200dष"),
        ("", ""),
    ],
)
def test_harmless(cell, written):
    assert harmless(cell) == written


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_no_cell_is_a_formula_whatever_the_spreadsheet_takes_for_the_delimiter(delimiter):
    """In many locales it is a semicolon, and then quotes behind the first cell protect nothing."""
    tails = [
        "=cmd|' /C calc'!A0",
        '"=1+1',
        '""=1+1',
        " =1",
        '" =1',
        "\t+1",
        "\u00a0-1",
        "'\";@SUM(A1)",
        '"";"=1',
        ",=1",
        "\n=1",
    ]
    rows = [
        [f"item-{n}", f"What is it;{tail}", f";{tail}", tail]
        for n, tail in enumerate(tails)
        if not (delimiter == "|" and "|" in tail)
    ]
    text = csv_bytes(rows).decode("utf-8-sig")
    cells = [
        cell
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for cell in row
    ]
    assert cells and not [
        cell for cell in cells if cell.strip(' "').startswith(("=", "+", "-", "@"))
    ]


def test_quotes_and_delimiters_survive():
    cells = ['say "hi"; now, please', "東京", "\ud800"]
    (row,) = csv.reader(io.StringIO(csv_bytes([cells]).decode("utf-8-sig"), newline=""))
    assert row == ['say "hi"; now, please', "東京", ""]


def test_what_cannot_be_done_is_refused(run, tmp_path):
    new = Folder.at(tmp_path / "new")
    with pytest.raises(ConfigurationError, match="--samples 0"):
        write_sheet(run, new, samples=0, seed=0, task="")
    with pytest.raises(ConfigurationError, match="holds files already"):
        write_sheet(run, run, samples=1, seed=0, task="")
    with pytest.raises(ConfigurationError, match="it holds no evaluation/questions"):
        write_sheet(run, new, samples=1, seed=0, task="", human=True)
    without = write_run(
        tmp_path / "other",
        [[judged(f"{tmp_path}/i/1.png", answer="a", lvlm="a", svlm="a", verdict="svlm_correct")]],
    )
    with pytest.raises(ConfigurationError, match="no parity sample"):
        write_sheet(without, new, samples=1, seed=0, task="")
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(RunError, match="cannot be read .*; put it back"):
        write_sheet(run, new, samples=1, seed=0, task="")


def test_the_jobs(run, tmp_path):
    def job(name, *arguments):
        return subprocess.run(
            [sys.executable, f"jobs/{name}.py", *arguments], capture_output=True, text=True
        )

    made = job("rating_sheet", "--run", run.uri, "--output", f"{tmp_path}/study", "--samples", "8")
    assert made.returncode == 0, made.stderr
    sheet = (tmp_path / "study/for_raters/sheet.csv").read_text(encoding="utf-8-sig")
    for rater in ("ann", "ben"):
        (tmp_path / f"{rater}.csv").write_text(sheet.replace('"","","",""', '"1","1","1","0"'))
    files = [f"{tmp_path}/{rater}.csv" for rater in ("ann", "ben")]
    scored = job(
        "score_ratings",
        "--key",
        f"{tmp_path}/study/key.csv",
        *files,
        "--output",
        f"{tmp_path}/scores.json",
    )
    assert scored.returncode == 0, scored.stderr
    assert "ours, before_pi" in scored.stdout and "paper, Qwen2VL-7B, after_pi" in scored.stdout
    refused = job("score_ratings", "--key", f"{tmp_path}/study/key.csv", f"{tmp_path}/nobody.csv")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: {tmp_path}/nobody.csv: there is no such file\n",
    )
