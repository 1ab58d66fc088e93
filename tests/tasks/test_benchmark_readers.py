"""Tiny files of the official layouts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpa_ray.tasks.benchmark_readers import CAPTION_PROMPT, WORD_RECOGNITION_PROMPT, LabeledQuestion
from mpa_ray.tasks.benchmarks import BENCHMARKS

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "coco-text").mkdir(parents=True)
    for name in (
        "a1.jpg",
        "b2.jpg",
        "coco-text/c.jpg",
        "1.png",
        "2.png",
        "COCO_val2014_000000000042.jpg",
        "word_1.png",
        "word_2.png",
    ):
        (folder / name).write_bytes(b"image")
    return folder


def write(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def textvqa_row(**changes):
    return {
        "question_id": 34602,
        "image_id": "a1",
        "question": "what brand?",
        "answers": ["nokia"] * 10,
        "set_name": "val",
    } | changes


def textvqa(tmp_path, *rows):
    return write(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": list(rows)})


def read(benchmark, path, images):
    return list(BENCHMARKS[benchmark].read(path, images))


def test_textvqa(tmp_path, images):
    path = textvqa(tmp_path, textvqa_row(), textvqa_row(question_id=34603, image_id="b2"))
    first, second = read("textvqa", path, images)
    assert first == LabeledQuestion(
        question_id="34602",
        image_path=str(images / "a1.jpg"),
        image_bytes=None,
        question="what brand?",
        answers=("nokia",) * 10,
        question_kind=None,
    )
    assert (second.question_id, second.image_path) == ("34603", str(images / "b2.jpg"))


def test_stvqa(tmp_path, images):
    row = {
        "question_id": 0,
        "file_path": "coco-text/c.jpg",
        "file_name": "c.jpg",
        "question": "Which bus?",
        "answers": ["7", "seven"],
    }
    (question,) = read("stvqa", write(tmp_path / "train_task_1.json", {"data": [row]}), images)
    assert (question.question_id, question.answers) == ("0", ("7", "seven"))
    assert question.image_path == str(images / "coco-text" / "c.jpg")


def test_chartqa_takes_one_file_or_both(tmp_path, images):
    human = write(
        tmp_path / "test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "14"}]
    )
    write(
        tmp_path / "test_augmented.json",
        [{"imgname": "2.png", "query": "Which?", "label": "[2, 3]"}],
    )
    (question,) = read("chartqa", human, images)
    assert (question.question_id, question.question, question.answers) == (
        "test_human-0",
        "How many?",
        ("14",),
    )
    assert question.question_kind == "human"
    assert [question.question_kind for question in read("chartqa", tmp_path, images)] == [
        "augmented",
        "human",
    ]


def okvqa(tmp_path, prefix="", annotation_id=425):
    answers = [
        {"answer_id": 1, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"}
    ] * 10
    annotation = {
        "image_id": 42,
        "question_id": annotation_id,
        "question_type": "four",
        "answers": answers,
    }
    question = {"image_id": 42, "question": "What sport is this?", "question_id": 425}
    write(tmp_path / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    return write(
        tmp_path / f"{prefix}mscoco_val2014_annotations.json", {"annotations": [annotation]}
    )


@pytest.mark.parametrize("prefix", ["", "v2_"])
def test_okvqa_joins_its_two_files(tmp_path, images, prefix):
    (question,) = read("okvqa", okvqa(tmp_path, prefix), images)
    assert (question.question_id, question.question) == ("425", "What sport is this?")
    assert (question.answers, question.question_kind) == (("race",) * 10, "four")
    assert question.image_path == str(images / "COCO_val2014_000000000042.jpg")


def test_okvqa_refuses_what_does_not_belong_together(tmp_path, images):
    with pytest.raises(
        ValueError, match="question_id '7': field 'question_id' is not among the questions of"
    ):
        read("okvqa", okvqa(tmp_path, annotation_id=7), images)
    with pytest.raises(ValueError, match="annotations_path is .*give the official file"):
        read("okvqa", write(tmp_path / "mine.json", {}), images)
    path = okvqa(tmp_path)
    (tmp_path / "OpenEnded_mscoco_val2014_questions.json").unlink()
    with pytest.raises(
        ValueError, match="OpenEnded_mscoco_val2014_questions.json', which is no file"
    ):
        read("okvqa", path, images)


def test_pathvqa_keeps_the_yes_no_questions_and_their_places(tmp_path):
    rows = [("is it benign?", "Yes"), ("what is seen?", "fat necrosis"), ("is it red?", " no ")]
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"jpg", "path": None}] * 3, IMAGE),
            "question": [question for question, _ in rows],
            "answer": [answer for _, answer in rows],
        }
    )
    pq.write_table(table, tmp_path / "test-00000-of-00002.parquet")
    pq.write_table(table.slice(2), tmp_path / "test-00001-of-00002.parquet")
    questions = read("pathvqa", tmp_path, None)
    assert [(question.question_id, question.answers) for question in questions] == [
        ("0", ("Yes",)),
        ("2", ("no",)),
        ("3", ("no",)),
    ]
    assert questions[0].image_bytes == b"jpg"
    assert questions[0].image_path is None


def test_icdar2015_unescapes_and_skips_the_byte_order_mark(tmp_path, images):
    path = tmp_path / "gt.txt"
    path.write_bytes(
        '\ufeffword_1.png, "Genaxis, Theatre"\r\nword_2.png, "5\\" \\\\ "x""\r\n\r\n'.encode()
    )
    first, second = read("icdar2015", path, images)
    assert (first.question_id, first.answers, first.question) == (
        "word_1.png",
        ("Genaxis, Theatre",),
        WORD_RECOGNITION_PROMPT,
    )
    assert second.answers == ('5" \\ "x"',)
    path.write_text("word_1.png Theatre\n")
    with pytest.raises(ValueError, match="gt.txt: line 1 is 'word_1.png Theatre'; it must be"):
        read("icdar2015", path, images)
    path.write_bytes(b'word_1.png, "caf\xe9"')
    with pytest.raises(ValueError, match="gt.txt: is not UTF-8"):
        read("icdar2015", path, images)


def test_textcaps_yields_an_image_once(tmp_path, images):
    row = {
        "image_id": "a1",
        "caption_id": 1,
        "caption_str": "A can.",
        "reference_strs": ["A can.", "A red can."],
    }
    path = write(
        tmp_path / "TextCaps_0.1_val.json",
        {"data": [row, row | {"caption_id": 2}, row | {"image_id": "b2"}]},
    )
    questions = read("textcaps", path, images)
    assert [question.question_id for question in questions] == ["a1", "b2"]
    assert questions[0].answers == ("A can.", "A red can.")
    assert questions[0].question == CAPTION_PROMPT


def own_table(**changes):
    columns = {
        "question_id": ["q1", "q2"],
        "image": pa.array(
            [{"bytes": b"png", "path": "x.png"}, {"bytes": None, "path": "1.png"}], IMAGE
        ),
        "question": ["How many?", "Which?"],
        "answers": pa.array([["2"], ["red", "Red"]], pa.list_(pa.string())),
        "question_kind": ["count", None],
    }
    return pa.table(
        {name: column for name, column in (columns | changes).items() if column is not None}
    )


def test_parquet(tmp_path, images):
    pq.write_table(own_table(), tmp_path / "mine.parquet")
    first, second = read("parquet", tmp_path / "mine.parquet", images)
    assert (first.question_id, first.image_bytes, first.image_path, first.question_kind) == (
        "q1",
        b"png",
        None,
        "count",
    )
    assert (second.image_bytes, second.image_path, second.answers) == (
        None,
        str(images / "1.png"),
        ("red", "Red"),
    )
    pq.write_table(own_table(question_kind=None), tmp_path / "mine.parquet")
    assert [
        question.question_kind for question in read("parquet", tmp_path / "mine.parquet", images)
    ] == [None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "field 'question' is missing among"),
        (
            {"answers": pa.array([["2"], []], pa.list_(pa.string()))},
            "'q2': field 'answers' has no answer",
        ),
        ({"answers": ["2", "red"]}, "'q1': field 'answers' is '2'; it must be a list"),
        ({"question_id": pa.array(["q1", None])}, "row 1: field 'question_id' is None"),
        ({"image": pa.array([None, None], IMAGE)}, "'q1': field 'image' is missing"),
        (
            {"image": pa.array([{"bytes": None, "path": None}] * 2, IMAGE)},
            "'q1': field 'image' has neither bytes nor path",
        ),
        (
            {"image": pa.array([{"bytes": None, "path": "no.png"}] * 2, IMAGE)},
            "no.png', which is no file",
        ),
    ],
)
def test_malformed_parquet(tmp_path, images, changes, message):
    table = own_table(**changes)
    pq.write_table(table, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=f"mine.parquet: .*{message}"):
        read("parquet", tmp_path / "mine.parquet", images)


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="x.parquet: is not Parquet"):
        read("parquet", tmp_path, None)
    with pytest.raises(ValueError, match="a folder without \\*_"):
        read("chartqa", tmp_path, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            textvqa_row(image_id="gone"),
            "question_id '34602': field 'image_id' leads to .*gone.jpg', which is no file",
        ),
        (
            textvqa_row(answers=None),
            "question_id '34602': field 'answers' is missing; .*labels are public",
        ),
        (textvqa_row(answers=[]), "'34602': field 'answers' has no answer"),
        (textvqa_row(answers=["", " "]), "'34602': field 'answers' has no answer"),
        (textvqa_row(answers="nokia"), "'34602': field 'answers' is 'nokia'"),
        (textvqa_row(answers=[1]), r"'34602': field 'answers' is \[1\]"),
        (textvqa_row(question=" "), "'34602': field 'question' is ' '"),
        (textvqa_row(image_id=7), "'34602': field 'image_id' is 7"),
        (textvqa_row(question_id=None), "row 0: field 'question_id' is None"),
        (["not", "a", "row"], "row 0 is .*it must be an object"),
    ],
)
def test_malformed_row(tmp_path, images, row, message):
    with pytest.raises(ValueError, match=f"TextVQA_0.5.1_val.json: .*{message}"):
        read("textvqa", textvqa(tmp_path, row), images)


def test_malformed_files(tmp_path, images):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="annotations_path is .*x.json', which is no file"):
        read("textvqa", path, images)
    path.write_text("{")
    with pytest.raises(ValueError, match="x.json: is not JSON"):
        read("textvqa", path, images)
    with pytest.raises(ValueError, match="x.json: field 'data' is missing"):
        read("textvqa", write(path, {"rows": []}), images)
    with pytest.raises(ValueError, match="images_folder is None"):
        read("textvqa", textvqa(tmp_path, textvqa_row()), None)


def test_readers_are_lazy(tmp_path, images):
    rows = iter(
        BENCHMARKS["textvqa"].read(
            textvqa(tmp_path, textvqa_row(), textvqa_row(answers=None)), images
        )
    )
    assert next(rows).question_id == "34602"
    with pytest.raises(ValueError, match="'answers'"):
        next(rows)
