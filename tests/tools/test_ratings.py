import json
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.report.rating_questions import AFTER, BEFORE, QUESTIONS, fingerprint
from mpa_ray.tools.studies.rating_scores import score, tables
from mpa_ray.tools.studies.ratings import Rating, groups_of, read, sheets
from tests.report_runs import some_rows
from tests.run_folders import write_run


def line(id_="a-0", rater="ann", **changes):
    """A rating as a page exports it."""
    study = {"mpa_ray_rating": 1, "run": "0" * 12, "samples": 5, "seed": 0, "blind": True}
    mine = {"rater": rater, "time": "2026-01-01T00:00:00.000Z", "id": id_, "fingerprint": "f" * 12}
    return study | mine | dict.fromkeys(QUESTIONS, 1) | changes


def written(path: Path, *lines) -> Path:
    path.write_text(
        "\n".join(
            item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            for item in lines
        ),
        encoding="utf-8",
    )
    return path


def test_the_later_of_two_ratings_counts(tmp_path):
    late = line(time="2026-01-02T00:00:00.000Z", answerability=0)
    found = read(
        [
            written(tmp_path / "a.jsonl", late, line()),
            written(tmp_path / "b.jsonl", line(rater="ben"), ""),
        ]
    )
    assert {(rating.rater, rating.answerability) for rating in found} == {("ann", 0), ("ben", 1)}
    apart = read(
        [written(tmp_path / "c.jsonl", line(), line(blind=False), line(fingerprint="e" * 12))]
    )
    assert len(apart) == 3, (
        "ratings of another text, or with the models' answers in sight, are others"
    )


def test_separators_inside_of_texts_are_no_ends_of_lines(tmp_path):
    fixed = line(decision="fix", question="a\u2028b", answer="c\x85d")
    (found,) = read([written(tmp_path / "a.jsonl", fixed)])
    assert (found.question, found.answer) == ("a\u2028b", "c\x85d")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 1: the line: Invalid JSON"),
        ("[1]", "line 1: the line: Input should be an object"),
        (line(answerability=2), "answerability: Input should be 0 or 1"),
        (line(rater=""), "rater: String should have at least 1 character"),
        (line(samples=[1]), "samples: Input should be a valid integer"),
        (line(surprise=1), "surprise: Extra inputs are not permitted"),
        (
            line(decision="fix"),
            "the line: Value error, decision 'fix' needs the new question and answer",
        ),
        (line(decision="burn"), "decision: Input should be 'keep', 'drop' or 'fix'"),
    ],
)
def test_what_is_no_rating_is_named_by_file_and_line(tmp_path, bad, said):
    with pytest.raises(ConfigurationError) as error:
        read([written(tmp_path / "a.jsonl", bad)])
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl, line 1: ") and said in str(error.value)


def test_files_without_ratings_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="hold no rating"):
        read([written(tmp_path / "empty.jsonl", "")])
    with pytest.raises(ConfigurationError, match="no such file"):
        read([tmp_path / "nowhere.jsonl"])


def test_a_rating_belongs_to_a_text():
    assert fingerprint("a", "b") == fingerprint("a", "b") != fingerprint("ab", "")
    assert len(fingerprint("\ud800", "x")) == 12


@pytest.fixture
def run(tmp_path):
    rows = some_rows(tmp_path / "images", 40)
    return write_run(tmp_path / "run", [rows[:20], rows[20:]])


def test_groups_are_those_of_the_draw(run):
    rows = [row for table in run.child("judgements").tables() for row in table.to_pylist()]
    every = [Rating(**line(row["sample_id"], samples=1000)) for row in rows] + [
        Rating(**line("unknown-0", samples=1000))
    ]
    groups = groups_of(run, every)
    parity = {row["sample_id"] for row in rows if row["verdict"] == "parity"}
    assert groups.keys() == {row["sample_id"] for row in rows}
    assert {item for item, its_groups in groups.items() if AFTER in its_groups} == parity
    few = groups_of(run, [Rating(**line(row["sample_id"], samples=3)) for row in rows])
    assert (
        sum(BEFORE in its_groups for its_groups in few.values())
        == sum(AFTER in its_groups for its_groups in few.values())
        == 3
    )
    with pytest.raises(ConfigurationError, match="seeds 0, 1"):
        groups_of(run, [Rating(**line()), Rating(**line(seed=1))])


def test_ratings_are_scored_as_sheets_are(run):
    rows = [row for table in run.child("judgements").tables() for row in table.to_pylist()]
    lines = [
        line(row["sample_id"], rater, samples=1000) for row in rows for rater in ("ann", "ben")
    ]
    for number, item in enumerate(lines):
        item["answer_correctness"] = int(number % 3 > 0)
        if number == 5:
            del item["human_likeness"]
    ratings = [Rating(**item) for item in lines]
    groups = groups_of(run, ratings)
    result = score(groups, sheets(ratings, groups))
    assert result["raters"] == ["ann", "ben"]
    found = {(row["group"], row["question"]): row["mean"] for row in result["scores"]}
    assert found[BEFORE, "answerability"] == 1.0
    assert found[BEFORE, "answer_correctness"] == pytest.approx(2 / 3, abs=0.02)
    assert result["missing"]["ben"] == [f"{rows[2]['sample_id']}: human_likeness"]
    assert "Krippendorff's alpha" in tables(result)
