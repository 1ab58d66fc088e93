import json
import subprocess
import sys

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.report.rating_questions import fingerprint
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.ratings import Rating
from mpa_ray.tools.studies.review import apply, outcome, told
from tests.report_runs import some_rows
from tests.run_folders import rows_of, write_run
from tests.tools.test_ratings import line, written


@pytest.fixture
def run(tmp_path):
    rows = some_rows(tmp_path / "images", 30)
    return write_run(tmp_path / "run", [rows[:10], rows[10:20], rows[20:]])


def about(row, rater="ann", **changes):
    return Rating(
        **line(
            row["sample_id"],
            rater,
            fingerprint=fingerprint(row["question"], row["answer"]),
            **changes,
        )
    )


def fix(answer="fixed", question="Fixed?"):
    return {"decision": "fix", "question": question, "answer": answer}


def test_rows_are_dropped_and_fixed_in_a_new_folder(run, tmp_path):
    rows = rows_of(run.child("parity"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")}
    ratings = [
        about(rows[0], decision="drop"),
        about(rows[1], **fix()),
        about(rows[2], decision="keep", answer_correctness=0),
    ]
    ratings += [about(rows[3], answer_correctness=0), about(rows[4], answer_correctness=1)]
    output = Folder.at(tmp_path / "new")
    record = apply(run, ratings, output, thresholds={"answer_correctness": 0.5})
    left = rows_of(output.child("parity"))
    expected = [row for number, row in enumerate(rows) if number not in (0, 3)]
    expected[0] = rows[1] | {"question": "Fixed?", "answer": "fixed"}
    assert left == expected, "images, ids and the order stay"
    assert record == output.read_json("review.json")
    counts = {
        name: record[name]
        for name in ("rows", "rated", "kept", "dropped", "fixed", "disagreements")
    }
    assert counts == {
        "rows": 12,
        "rated": 5,
        "kept": 9,
        "dropped": 2,
        "fixed": 1,
        "disagreements": 0,
    }
    assert record["outcomes"][3]["reason"] == "answer_correctness 0.00 is below 0.5"
    assert record["outcomes"][1]["before"] == {
        "question": rows[1]["question"],
        "answer": rows[1]["answer"],
    }
    assert all(
        table.schema.equals(PARITY, check_metadata=True)
        for table in output.child("parity").tables()
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")}, (
        "the run stays as it is"
    )


def test_a_file_of_which_nothing_is_left(run, tmp_path):
    rows = run.child("parity").read_table("part-00000001.parquet").to_pylist()
    apply(
        run,
        [about(row, decision="drop") for row in rows],
        Folder.at(tmp_path / "new"),
        thresholds={},
    )
    assert Folder.at(tmp_path / "new/parity").names() == [
        "part-00000000.parquet",
        "part-00000002.parquet",
    ]


def test_a_rating_of_another_text_changes_nothing(run, tmp_path):
    rows = rows_of(run.child("parity"))
    other = about(rows[0] | {"answer": "as it was once"}, decision="drop")
    same = about(rows[1], **fix(rows[1]["answer"], rows[1]["question"]))
    record = apply(
        run,
        [other, same, Rating(**line("unknown-0", decision="drop"))],
        Folder.at(tmp_path / "new"),
        thresholds={},
    )
    assert rows_of(Folder.at(tmp_path / "new/parity")) == rows
    assert (record["other_text"], record["not_in_parity"], record["fixed"], record["rated"]) == (
        1,
        1,
        0,
        1,
    )
    assert "1 ratings are of another text than the row has" in told(record)
    assert "rated by ⟨U+001B⟩[2J⟨U+000A⟩a, b:" in told(record | {"raters": ["\x1b[2J\na", "b"]})


@pytest.mark.parametrize(
    ("given", "action"),
    [
        ([{"decision": "drop"}, {"decision": "drop"}, {"decision": "keep"}], "drop"),
        ([{"decision": "drop"}, {"decision": "keep"}], "disagreement"),
        ([fix(), fix(), {"decision": "drop"}], "fix"),
        ([fix(), fix("otherwise"), {"decision": "drop"}], "disagreement"),
        ([{"decision": "keep", "answer_correctness": 0}], "keep"),
        (
            [
                {"decision": "drop"},
                {"decision": "keep", "answer_correctness": 0},
                {"answer_correctness": 0},
            ],
            "drop",
        ),
        ([{"answer_correctness": 1}, {"answer_correctness": 0}], "keep"),
        ([{"answer_correctness": None}], "keep"),
        # The texts of a fix that was taken back do not split those who agree.
        ([{"decision": "drop", "question": "x", "answer": "y"}, {"decision": "drop"}], "drop"),
    ],
)
def test_a_majority_decides(given, action):
    ratings = [
        Rating(**line(rater=f"rater {number}", **changes)) for number, changes in enumerate(given)
    ]
    assert outcome(ratings, {"answer_correctness": 0.5}).action == action


def test_what_cannot_be_done_is_refused(run, tmp_path):
    rating = about(rows_of(run.child("parity"))[0], decision="drop")
    with pytest.raises(ConfigurationError, match="holds files already"):
        apply(run, [rating], run, thresholds={})
    with pytest.raises(ConfigurationError, match="--drop_below beauty: there is no such question"):
        apply(run, [rating], Folder.at(tmp_path / "new"), thresholds={"beauty": 0.5})
    assert not (tmp_path / "new").exists()


def test_the_job(run, tmp_path):
    def job(*arguments):
        return subprocess.run(
            [sys.executable, "jobs/review.py", "--run", run.uri, *arguments],
            capture_output=True,
            text=True,
        )

    rows = rows_of(run.child("judgements"))
    files = []
    for rater in ("ann", "ben"):
        ratings = [
            about(row, rater, samples=100, answer_correctness=int(row["verdict"] != "parity"))
            for row in rows
        ]
        files.append(
            str(
                written(
                    tmp_path / f"{rater}.jsonl",
                    *(rating.model_dump(exclude_none=True) for rating in ratings),
                )
            )
        )
    done = job(
        *files,
        "--output",
        f"{tmp_path}/scores.json",
        "--parity",
        f"{tmp_path}/new",
        "--drop_below",
        "answer_correctness=0.5",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "12 rows, 12 of them rated by ann, ben: 12 dropped" in done.stdout
        and "ours, after_pi" in done.stdout
    )
    assert json.loads((tmp_path / "scores.json").read_text())["raters"] == ["ann", "ben"]
    for arguments, said in (
        (("--drop_below", "answer_correctness=0.5"), "drops nothing without --parity"),
        (("--parity", "x", "--drop_below", "answer_correctness"), "give a question and a share"),
        (("--output", f"{tmp_path}/scores.json"), "is not overwritten"),
    ):
        refused = job(files[0], *arguments)
        assert refused.returncode == 2 and said in refused.stderr
