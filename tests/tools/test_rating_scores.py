import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.report.rating_questions import AFTER, BEFORE, QUESTIONS
from mpa_ray.tools.studies.rating_scores import read_key, read_sheet, score, tables

HEADER = ["item", "image", "question", "answer", *QUESTIONS]
GROUPS = {"item-1": (BEFORE,), "item-2": (AFTER,), "item-3": (BEFORE, AFTER)}


def sheet(tmp_path, name, ratings, *, delimiter=",", encoding="utf-8"):
    lines = [delimiter.join(HEADER)]
    lines += [
        delimiter.join([item, "i.png", "Où?", "là", *cells]) for item, cells in ratings.items()
    ]
    path = tmp_path / f"{name}.csv"
    path.write_text("\r\n".join(lines), encoding=encoding)
    return path


def rated(*answers):
    """The same answer to all four questions, item by item."""
    return {f"item-{number}": [answer] * 4 for number, answer in enumerate(answers, start=1)}


def test_means_intervals_and_agreement(tmp_path):
    filled = {"ann": "011", "ben": "010", "cleo": "011"}
    sheets = [
        read_sheet(sheet(tmp_path, name, rated(*answers)), GROUPS)
        for name, answers in filled.items()
    ]
    result = score(GROUPS, sheets)
    found = {(row["group"], row["question"]): row for row in result["scores"]}
    before, after = found[BEFORE, "answerability"], found[AFTER, "answerability"]
    assert before["mean"] == pytest.approx((0 + 2 / 3) / 2)
    assert after["mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert before["ci95"][0] <= before["mean"] <= before["ci95"][1]
    assert (before["items"], before["ratings"]) == (2, 6)
    agreement = result["agreement"]["answerability"]
    # By hand: 9 ratings, 5 of them 1; item 3 has 4 ordered pairs that disagree. Alpha = 1 - 8 * (4
    # / 2) / (81 - 25 - 16).
    assert agreement["krippendorff_alpha"] == pytest.approx(1 - 16 / 40)
    assert agreement["fleiss_items"] == 3
    assert tables(result).splitlines()[1].split() == [
        "ours,",
        "before_pi",
        "0.33",
        "0.33",
        "0.33",
        "33%",
    ]


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "cp1252"), ("\t", "utf-8")]
)
def test_however_the_spreadsheet_saved_it(tmp_path, delimiter, encoding):
    ratings = {
        "item-3": ["Yes", "no", "TRUE", "1.0"],
        "item-1": ["1", "0", " y ", "N"],
        "item-2": ["0", "0", "0", "0"],
    }
    found = read_sheet(
        sheet(tmp_path, "ann", ratings, delimiter=delimiter, encoding=encoding), GROUPS
    )
    assert [found.ratings["item-3", question] for question in QUESTIONS] == [1, 0, 1, 1]
    assert [found.ratings["item-1", question] for question in QUESTIONS] == [1, 0, 1, 0]
    assert found.missing == ()


def test_missing_ratings_are_named_and_left_out(tmp_path):
    ann = read_sheet(
        sheet(tmp_path, "ann", {"item-1": ["1", "", "1", "1"], "item-2": ["1"] * 4}), GROUPS
    )
    ben = read_sheet(sheet(tmp_path, "ben", rated(*"110")), GROUPS)
    assert ann.missing == ("row 2 (item-1): answer_correctness", "item-3: no row")
    result = score(GROUPS, [ann, ben])
    rows = {(row["group"], row["question"]): row["ratings"] for row in result["scores"]}
    assert rows[BEFORE, "answer_correctness"] == 2
    assert rows[BEFORE, "answerability"] == 3
    assert result["agreement"]["answer_correctness"]["fleiss_items"] == 1
    assert (
        "ann.csv: missing in 2 items: row 2 (item-1): answer_correctness; item-3: no row"
        in tables(result)
    )
    renamed = result | {"missing": {"\x1b[2J\nann": result["missing"]["ann.csv"]}}
    assert tables(renamed).splitlines()[-1].startswith("⟨U+001B⟩[2J⟨U+000A⟩ann: missing in 2 items")


def test_a_rater_alone_has_no_agreement(tmp_path):
    result = score(GROUPS, [read_sheet(sheet(tmp_path, "ann", rated(*"101")), GROUPS)])
    assert result["agreement"]["answerability"]["krippendorff_alpha"] is None


def test_garbled_ratings_are_named_by_file_and_row(tmp_path):
    path = sheet(
        tmp_path,
        "ann",
        {"item-1": ["1", "maybe", "1", "2"], "item-9": ["1"] * 4, "item-2": ["1"] * 4},
    )
    path.write_text(path.read_text() + "\r\nitem-2,i,q,a,1,1,1,1")
    with pytest.raises(ConfigurationError) as error:
        read_sheet(path, GROUPS)
    assert str(error.value).splitlines() == [
        f"{path}, row 2, answer_correctness: 'maybe' is neither 1 nor 0; correct it, or leave it"
        " empty",
        f"{path}, row 2, human_likeness: '2' is neither 1 nor 0; correct it, or leave it empty",
        f"{path}, row 3: item 'item-9' is not in the key",
        f"{path}, row 5: item 'item-2' is there twice",
    ]


def test_many_problems_are_cut_short(tmp_path):
    groups = {f"item-{number}": (BEFORE,) for number in range(1, 41)}
    with pytest.raises(ConfigurationError, match="and 140 more like these"):
        read_sheet(sheet(tmp_path, "ann", rated(*["?"] * 40)), groups)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"item,answer\n1,2", b"PK\x03\x04 a workbook"]
)
def test_what_is_no_sheet_is_refused(tmp_path, content):
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bad\.csv: no column"):
        read_sheet(tmp_path / "bad.csv", GROUPS)


def test_what_is_no_csv_is_refused(tmp_path):
    path = sheet(tmp_path, "ann", rated("1"))
    path.write_text(path.read_text() + '\r\nitem-2,"' + "x" * 200_000)
    with pytest.raises(ConfigurationError, match=r"ann\.csv, row 3: not CSV .field larger"):
        read_sheet(path, GROUPS)


def test_inputs_that_cannot_be_scored(tmp_path):
    ann = read_sheet(sheet(tmp_path, "ann", rated(*"111")), GROUPS)
    with pytest.raises(ConfigurationError, match="give each rater's file once"):
        score(GROUPS, [ann, ann])
    empty = read_sheet(sheet(tmp_path, "ben", {}), GROUPS)
    with pytest.raises(
        ConfigurationError, match="no sheet has a rating of answerability for any item before_pi"
    ):
        score(GROUPS, [empty])
    with pytest.raises(ConfigurationError, match=r"no column 'groups'"):
        read_key(sheet(tmp_path, "key", {}))
