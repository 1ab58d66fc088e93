import contextlib
import random
import time

import pytest

from mpa_ray.tasks.annotation_parser import Annotation, UnparsableAnnotation, parse_annotations

BUS = Annotation("What color is the bus?", "Red")


@pytest.mark.parametrize(
    "reply",
    [
        "Question: What color is the bus?, Answer: Red",
        "Question: What color is the bus? Answer: Red",
        "Question: What color is the bus?\nAnswer: Red",
        "Question: What color is the bus?\r\n\r\nAnswer: Red.\r\n",
        "Question:\nWhat color is the bus?\nAnswer:\nRed",
        "question: What color is the bus?, answer: Red",
        "QUESTION : What color is the bus?\nANSWER : Red",
        "Q: What color is the bus?\nA: Red",
        "Q: What color is the bus? A: Red",
        "Q1: What color is the bus?\nA1: Red",
        "Question 1: What color is the bus?\nAnswer 1: Red",
        "Question #1 (direct look-up): What color is the bus?\nAnswer: Red",
        "**Question:** What color is the bus?\n**Answer:** Red",
        "**Question**: What color is the bus? **Answer**: Red",
        "**Question: What color is the bus?**\n**Answer: Red**",
        "- **Question:** *What color is the bus?*\n- **Answer:** `Red`",
        "1. Question: What color is the bus?\n   Answer: Red",
        "### Question\nWhat color is the bus?\n\n### Answer\nRed",
        "## Question: What color is the bus?\n## Answer: Red",
        "> Question: What color is the bus?\n> Answer: Red",
        "Here is one:\n\n```\nQuestion: What color is the bus?\nAnswer: Red\n```",
        '```json\n{"question": "What color is the bus?", "answer": "Red"}\n```',
        'Sure! {"Question": "What color is the bus?", "Answer": "Red"} I hope this helps.',
        '[{"q": "What color is the bus?", "a": "Red"}]',
        '{"pairs": [{"question": "What color is the bus?", "answer": ["Red"]}]}',
        "{'question': 'What color is the bus?', 'answer': 'Red'}",
        '{"question": "What color is the bus?", "answer": "Red"',
        "Question: <What color is the bus?>, Answer: <Red>",
        'Question: "What color is the bus?", Answer: "Red"',
        '"Question: What color is the bus?, Answer: Red"',
        "Question: “What color is the bus?” Answer: “Red.”",
        "Question: What color is the bus?; Answer: Red",
        "Question: What color is the bus? (Answer: Red)",
        "Question: What color is the bus? - Answer: Red",
        "[Question]: What color is the bus?\n[Answer]: Red",
        "The question is: What color is the bus? The answer is: Red",
        "Question: What color is the bus? | Answer: Red",
        "What color is the bus?\nRed",
        "What color is the bus?\n\nRed",
        "Here is a question about the image:\nWhat color is the bus?\nRed.",
        "What color is the bus?\nAnswer: Red",
        "What color is the bus? Answer: Red",
        "Question: What color is the bus?\nRed",
        "Type: Direct look-up\nQuestion: What color is the bus?\nAnswer: Red",
        "Question: What color is the bus?\nType: look-up\nAnswer: Red",
        "Question: What color is the bus?, Answer: Red\n\nThe bus in the image is painted red.",
        "Question: What color is the bus?\nAnswer: Red\nExplanation: It is painted red.",
        "Question: What color is the bus?, Answer: Red. Explanation: It is painted red.",
        "Question: What color is the bus?, Answer: Red (because it is painted)",
        "Question: What color is the bus?\nAnswer: Red\n(This is a London bus.)",
        "Question: What color is the bus?, Answer: Red, because it is painted red.",
        "Question: What color is the bus?, Answer: Red\n---\nLet me know!",
        "Question: What color\nis the bus?\nAnswer: Red",
    ],
)
def test_the_same_pair_in_many_forms(reply):
    assert parse_annotations(reply) == [BUS]


@pytest.mark.parametrize(
    ("reply", "question", "answer"),
    [
        (
            "Question: What, in short, is it?, Answer: 7:30, p.m.",
            "What, in short, is it?",
            "7:30, p.m.",
        ),
        ("Question: What is the ratio, a:b?, Answer: 3:2", "What is the ratio, a:b?", "3:2"),
        (
            'Question: What does the sign "Answer: yes" mean?, Answer: sign',
            'What does the sign "Answer: yes" mean?',
            "sign",
        ),
        ("Question: Is the answer: yes or no?, Answer: yes", "Is the answer: yes or no?", "yes"),
        (
            "Question: Name vitamin A: which food has it?\nAnswer: carrot",
            "Name vitamin A: which food has it?",
            "carrot",
        ),
        (
            "Question: Does it say, note: or memo?, Answer: memo",
            "Does it say, note: or memo?",
            "memo",
        ),
        ("Question: Which Type: A or B?, Answer: B", "Which Type: A or B?", "B"),
        ("Question: Name the brand, Answer: Coca-Cola", "Name the brand", "Coca-Cola"),
        ("Question: What time is it Answer: 7:30", "What time is it", "7:30"),
        ("Question: Who? What? Answer: St. Louis Co.", "Who? What?", "St. Louis Co."),
        ("Question: Which mark?, Answer: A", "Which mark?", "A"),
        (
            "Question: Which is it, A: red or B: blue?, Answer: A",
            "Which is it, A: red or B: blue?",
            "A",
        ),
        ("Question: How much?, Answer: 3.5.", "How much?", "3.5"),
        ("Question: When?\nA: at 7 p.m.", "When?", "at 7 p.m."),
        ("Question: Which mark?\nAnswer:\nA", "Which mark?", "A"),
        ("Question: How much?, Answer: -5%", "How much?", "-5%"),
        ('Question: How long?, Answer: 12"', "How long?", '12"'),
        ("Question: Which grade?, Answer: C++", "Which grade?", "C++"),
        (
            "Question: What is read?, Answer: Sorry, we're closed",
            "What is read?",
            "Sorry, we're closed",
        ),
        ("Question: Why wet?, Answer: Because it rains", "Why wet?", "Because it rains"),
        ('{"question": "How many?", "answer": 5.50}', "How many?", "5.50"),
        ('{"question": "Is it red?", "answer": true}', "Is it red?", "Yes"),
        ("Frage: Welche Farbe hat der Bus?\nAntwort: Rot", "Welche Farbe hat der Bus?", "Rot"),
        ("Pregunta: ¿De qué color es?, Respuesta: Rojo", "¿De qué color es?", "Rojo"),
        ("Question : De quelle couleur ?\nRéponse : Rouge", "De quelle couleur ?", "Rouge"),
        ("Вопрос: Какого цвета автобус? Ответ: Красный", "Какого цвета автобус?", "Красный"),
        ("问题：公交车是什么颜色？答案：红色。", "公交车是什么颜色？", "红色"),
        ("问题:公交车是什么颜色? 答案:红色", "公交车是什么颜色?", "红色"),
        ("質問：バスは何色ですか？\n答え：「赤」", "バスは何色ですか？", "赤"),
        ("バスは何色ですか？\n赤", "バスは何色ですか？", "赤"),
        ("질문: 버스는 무슨 색입니까?\n답변: 빨간색", "버스는 무슨 색입니까?", "빨간색"),
        ("السؤال: ما لون الحافلة؟ الإجابة: أحمر", "ما لون الحافلة؟", "أحمر"),
        ("प्रश्न: बस का रंग क्या है?\nउत्तर: लाल", "बस का रंग क्या है?", "लाल"),
        ("Câu hỏi: Xe buýt màu gì?\nCâu trả lời: Đỏ", "Xe buýt màu gì?", "Đỏ"),
    ],
)
def test_what_belongs_to_the_text_stays(reply, question, answer):
    assert parse_annotations(reply) == [Annotation(question, answer)]


@pytest.mark.parametrize(
    "reply",
    [
        "1. Question: A?, Answer: x\n2. Question: B?, Answer: y\n3. Question: C?, Answer: z",
        "Q1: A?\nA1: x\n\nQ2: B?\nA2: y\n\nQ3: C?\nA3: z",
        "Question: A? Answer: x. Question: B? Answer: y. Question: C? Answer: z",
        '{"question": "A?", "answer": "x"}\n{"question": "B?", "answer": "y"}\n{"question": "C?",'
        ' "answer": "z"}',
        "A?\nx\n\nB?\ny\n\nC?\nz",
        "Question: A?\nx\nQuestion: B?\ny\nQuestion: C?\nz",
        "Question: A?, Answer: x\nQuestion: a?, Answer: again\nQuestion: B?, Answer: y\nQuestion:"
        " C?, Answer: z",
        "Question: <question>, Answer: <answer>\nQuestion: A?, Answer: x\nQuestion: B?, Answer:"
        " y\nQuestion: C?, Answer: z",
    ],
)
def test_several_pairs(reply):
    pairs = [Annotation("A?", "x"), Annotation("B?", "y"), Annotation("C?", "z")]
    assert parse_annotations(reply) == pairs[:1]
    assert parse_annotations(reply, limit=2) == pairs[:2]
    assert parse_annotations(reply, limit=9) == pairs


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        (" \n", "empty reply"),
        ("The image shows a red bus.", "no question and answer found"),
        ("What is this? A red bus.", "no question and answer found"),
        (
            "What color is the bus?\nThe image shows a red bus on a street.",
            "no question and answer found",
        ),
        ("What color is the bus?\nRed\nBlue", "no question and answer found"),
        ("What color is the bus?", "no question and answer found"),
        ("Question: What color is the bus?", "no answer"),
        ("Answer: Red", "empty question"),
        ("Answer: Red, Question: What color is the bus?", "empty question"),
        ("Question: , Answer: Red", "empty question"),
        ("Question: What color is the bus?, Answer:", "empty answer"),
        ('{"question": "What?", "answer": null}', "empty answer"),
        ("Question: Q, Answer: A", "placeholder question"),
        ("Question: <question>, Answer: <answer>", "placeholder question"),
        ("Question: What is it?, Answer: [your answer]", "placeholder answer"),
        ("I'm sorry, I can't help with this image.", "refusal"),
        ("Question: What is it?, Answer: I cannot determine that.", "refusal"),
        ("Question: I am unable to see the image, Answer: none", "refusal"),
        ("抱歉，我无法看到图片。", "refusal"),
        ("Question: Red, Answer: red", "question equals answer"),
        ("Question: What?, Answer: " + "very " * 20 + "red", "answer too long"),
        ("Question: What?, Answer: " + "x" * 161, "answer too long"),
        ("Question: " + "what " * 200 + "?, Answer: red", "question too long"),
        ("Question: What?\nAnswer: Red\nBlue", "answer over several lines"),
        ("Question: What?\nAnswer:\n- Red\n- Blue", "answer over several lines"),
        ("Question: What?\nAnswer: Red\nAnswer: Blue", "several answers to one question"),
        ("Question: What\x00?, Answer: red", "control characters"),
        ("Question: What?, Answer: red<|im_end|>", "special tokens"),
        ("Question: What?, Answer: red</s>", "special tokens"),
        ("Question: What?, Answer: r\ufffdd", "control characters"),
        ("Question: What?, Answer: \x1b[31mred", "control characters"),
    ],
)
def test_refused_with_a_reason(reply, reason):
    with pytest.raises(UnparsableAnnotation, match=f"^{reason}$"):
        parse_annotations(reply)


def test_the_bounds_are_inclusive():
    assert parse_annotations("Question: What?, Answer: " + " ".join(["w"] * 20))
    assert parse_annotations("Question: What?, Answer: " + "x" * 160)


def test_limit_is_checked():
    with pytest.raises(ValueError, match="limit is 0; give at least 1"):
        parse_annotations("Q: What?\nA: x", limit=0)


_JUNK_WORDS = [
    "(because ",
    ", because",
    "A Answer ",
    "**Question",
    "# ",
    "- ",
    "1. ",
    "🚌",
    "答案：",
    "\x00",
    "x?\ny\n\n",
    '"',
    "'",
    "<",
]
_JUNK_MARKS = [
    "Answer: ",
    "Question: ",
    "Q: ? A: ",
    "Question: a?, Answer: b\n",
    "{",
    "[",
    '{"question":',
    "x",
    " ",
    "\n",
    "*",
    "?\n",
    ":",
    "_",
]


@pytest.mark.parametrize("unit", _JUNK_WORDS + _JUNK_MARKS)
def test_a_megabyte_of_junk_is_refused_or_read_at_once(unit):
    junk = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    for reply in (
        junk,
        "Question: " + junk,
        "Question: a?, Answer: " + junk,
        junk + "\nQuestion: a?, Answer: b",
    ):
        with contextlib.suppress(UnparsableAnnotation):
            parse_annotations(reply, limit=1000)
    assert time.perf_counter() - start < 1.0


def test_any_text_gives_pairs_within_the_bounds_or_the_error():
    rng = random.Random(0)
    pieces = [
        "Question:",
        "Answer:",
        "Q:",
        "A:",
        "what",
        "?",
        "red",
        "\n",
        "\n\n",
        "**",
        '"',
        "{",
        "}",
        "- ",
        "1. ",
        ",",
        "。",
        "答案：",
    ]
    for _ in range(3000):
        reply = " ".join(rng.choices(pieces, k=rng.randint(0, 14)))
        try:
            annotations = parse_annotations(reply, limit=3)
        except UnparsableAnnotation as error:
            assert str(error)
            continue
        assert 1 <= len(annotations) <= 3
        for annotation in annotations:
            assert annotation.question.strip() == annotation.question != ""
            assert annotation.answer.strip() == annotation.answer != ""
            assert "\n" not in annotation.question + annotation.answer
