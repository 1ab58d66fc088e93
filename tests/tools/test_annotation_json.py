import json

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.tools.exchange import annotation_json
from mpa_ray.tools.exchange.annotation_json import Imported, annotations_of, records

RELEASED_PA = {
    "question_id": 516065,
    "image_path": "/workspace/data/okvqa/images/train2014/COCO_train2014_000000051606.jpg",
    "ground_truth_question": "What is the hairstyle called?",
    "ground_truth_answer": "pony tail",
    "predicted_question": "What is the sport being played by the women in the image",
    "predicted_answer": "Tennis",
}
RELEASED_PI = {
    "question_id": 1,
    "image_path": "a.jpg",
    "PA_question": "What is it",
    "PA_answer": "Horse",
    "predictions": "A horse.",
}
CONVERSATION = {
    "id": 516065,
    "image": "train2014/a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it"},
        {"from": "gpt", "value": "Tennis"},
    ],
}


def one(record):
    (found,) = annotations_of(record)
    return found.question, found.answer


def test_the_released_files():
    assert one(RELEASED_PA) == (
        "What is the sport being played by the women in the image?",
        "Tennis",
    )
    assert one(RELEASED_PI) == ("What is it?", "Horse")
    assert one(CONVERSATION) == ("What is it?", "Tennis")
    assert annotations_of(RELEASED_PA)[0].image == RELEASED_PA["image_path"]


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "question": "What is it", "answer": "red"},
        {"image_id": "a", "question": "What is it", "pseudo_answer": "red", "answer": "a label"},
        {"file_name": "a.jpg", "question": " What is it\n", "answer": " red "},
        {
            "imgname": "a.jpg",
            "pseudo_question": "What is it",
            "pseudo_answer": "red",
            "question": "a label",
            "answer": "a label",
        },
    ],
)
def test_variants_keep_the_text(record):
    assert one(record) == ("What is it", "red")


def test_a_number_is_an_answer():
    assert one({"image": "a", "question": "How many?", "answer": 7}) == ("How many?", "7")


@pytest.mark.parametrize(
    "record",
    [
        None,
        "text",
        [],
        {},
        {"question": "q", "answer": "a"},
        {"image": None, "question": "q", "answer": "a"},
        {"image": "a", "question": "q", "answers": ["a"] * 10},
        {"image": "a", "ground_truth_question": "q", "ground_truth_answer": "a"},
        {"image": "a", "GT_question": "q", "GT_answer": "a"},
        {"image": "a", "predicted_question": "q", "answer": "a label"},
    ],
)
def test_unknown_layouts_and_labels_are_not_read(record):
    assert annotations_of(record) is None


@pytest.mark.parametrize("value", [None, "", "  ", [], ["a"], True, {"text": "a"}])
def test_a_value_that_is_no_text_is_a_problem(value):
    (found,) = annotations_of(RELEASED_PA | {"predicted_answer": value})
    assert found.problem.startswith("predicted_answer is ")


def test_several_turns():
    turns = [("human", "<image>\nOne?"), ("gpt", "1"), ("human", "Two?"), ("gpt", "2")]
    record = {"image": "a", "conversations": [{"from": who, "value": text} for who, text in turns]}
    assert annotations_of(record) == [
        Imported(image="a", question="One?", answer="1"),
        Imported(image="a", question="Two?", answer="2"),
    ]


@pytest.mark.parametrize(
    "turns",
    [
        [],
        ["x"],
        [("human", "q")],
        [("gpt", "a"), ("human", "q")],
        [("human", "q"), ("gpt", None)],
        [("human", "<image>\n"), ("gpt", "a")],
    ],
)
def test_conversations_that_cannot_be_used(turns):
    record = {
        "image": "a",
        "conversations": [
            {"from": turn[0], "value": turn[1]} if isinstance(turn, tuple) else turn
            for turn in turns
        ],
    }
    (found,) = annotations_of(record)
    assert found.problem is not None


def test_half_a_surrogate_pair_becomes_text():
    assert one(json.loads('{"image": "a", "question": "q\\ud800?", "answer": "x"}')) == ("q??", "x")


ROWS = [{"n": number, "text": 'é[{]},"\n' * number} for number in range(50)]
FILES = {
    "list": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "mark": "\ufeff" + json.dumps(ROWS),
    "lines": "\n".join(json.dumps(row) for row in ROWS),
    "lines and blanks": "\n\n".join(json.dumps(row) for row in ROWS) + "\n\n",
    "object": json.dumps({"info": 1, "data": ROWS}),
    "indented object": json.dumps({"annotations": ROWS}, indent=2),
}


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_every_container(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(annotation_json, "_CHUNK", chunk)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert list(records(str(tmp_path / "a.json"))) == ROWS


@pytest.mark.parametrize("text", ["[]", " [ ] "])
def test_an_empty_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert list(records(str(tmp_path / "a.json"))) == []


NO_JSON = [
    b"",
    b"no json",
    b"[1, 2",
    b'[{"a": 1}, {"a"',
    b"[" * 100_000,
    b'{"a": 1}\n{"b"',
    b"\xff\xfe[]",
    b'"text"',
    b"7",
]
NO_JSON += [b'{"rows": {}, \n"b": 1}', b'{"rows": []\n}']


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"a\.json: not JSON after \d records"):
        list(records(str(tmp_path / "a.json")))


def test_a_record_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_json, "_CHUNK", 100)
    monkeypatch.setattr(annotation_json, "_LONGEST_RECORD", 1000)
    (tmp_path / "a.json").write_text('[{"a": "' + "x" * 5000 + '"}]')
    with pytest.raises(ConfigurationError, match="not JSON after 0 records"):
        list(records(str(tmp_path / "a.json")))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file"):
        list(records(str(tmp_path / "nothing.json")))
