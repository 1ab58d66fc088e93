"""The demo's renderer and its questions."""

import hashlib
import io
import random

import pytest
from PIL import Image, ImageFont

from mpa_ray.demo import render as rendering
from mpa_ray.demo.facts import COLORS, WORDS, Bar, ChartFacts, SignFacts
from mpa_ray.demo.questions import (
    ALL_WORDINGS,
    PLAIN_WORDINGS,
    WORDINGS,
    annotation_kinds,
    ask,
    open_kinds,
    parse_annotation,
    true_answer,
    write_annotation,
    yes_no_kind,
)
from mpa_ray.demo.render import DOMAINS, SIDE, benchmark_rows, contact_sheet, render, write_images
from mpa_ray.tasks import prompts

SIGN = SignFacts(word="stop", number="42", color="red", shape="circle")
CHART = ChartFacts(
    bars=(Bar(color="blue", value=3), Bar(color="pink", value=9), Bar(color="black", value=1))
)


def fingerprint(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("kind", ["sign", "chart", "mixed"])
def test_an_image_is_a_function_of_its_arguments_alone(kind, domain):
    image, facts = render(kind, seed=3, index=8, domain=domain)
    random.seed(0)
    render(kind, seed=9, index=9, domain=domain)
    again, facts_again = render(kind, seed=3, index=8, domain=domain)
    assert (fingerprint(again), facts_again) == (fingerprint(image), facts)
    assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    others = [
        render(kind, seed=4, index=8, domain=domain),
        render(kind, seed=3, index=10, domain=domain),
    ]
    assert fingerprint(image) not in {fingerprint(other) for other, _ in others}


def test_the_domains_show_the_same_facts_in_different_pixels():
    plain, plain_facts = render("sign", seed=0, index=0, domain="plain")
    shifted, shifted_facts = render("sign", seed=0, index=0, domain="shifted")
    assert plain_facts == shifted_facts
    assert fingerprint(plain) != fingerprint(shifted)


def test_mixed_is_half_signs_half_charts():
    facts = [render("mixed", seed=0, index=index)[1] for index in range(20)]
    assert sum(isinstance(fact, SignFacts) for fact in facts) == 10


@pytest.mark.parametrize("arguments", [{"kind": "poster"}, {"kind": "sign", "domain": "dark"}])
def test_an_unknown_kind_or_domain_is_refused_by_name(arguments):
    with pytest.raises(ValueError, match="choose one of"):
        render(**arguments, seed=0, index=0)


def test_a_word_fits_the_sign():
    assert all(len(word) <= 5 for word in WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_written_images_carry_no_labels(tmp_path):
    write_images(tmp_path / "images", kind="mixed", count=12, seed=5)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(12)]
    for index, file in enumerate(files):
        image = Image.open(file)
        assert image.info == {}
        assert fingerprint(image) == fingerprint(render("mixed", seed=5, index=index)[0])
        chunks = {file.read_bytes().count(chunk) for chunk in (b"tEXt", b"zTXt", b"iTXt", b"eXIf")}
        assert chunks == {0}


def test_a_benchmark_shares_no_image_with_unlabeled_ones_even_at_the_same_seed():
    unlabeled = {
        fingerprint(render("mixed", seed=seed, index=index)[0])
        for seed in (0, 1)
        for index in range(1_000)
    }
    assert len(unlabeled) == 2_000
    for seed in (0, 7):
        for row in benchmark_rows(kind="mixed", count=500, seed=seed):
            assert fingerprint(Image.open(io.BytesIO(row["image"]["bytes"]))) not in unlabeled


@pytest.mark.parametrize("kind", ["sign", "chart"])
def test_benchmark_rows(kind):
    rows = list(benchmark_rows(kind=kind, count=400, seed=2))
    assert list(rows[0]) == ["question_id", "image", "question", "answers", "question_kind"]
    assert len({row["question_id"] for row in rows}) == 400
    assert rows[3]["image"]["path"] == "000003.png"
    asked = {row["question_kind"] for row in rows}
    assert asked == set(open_kinds(SIGN if kind == "sign" else CHART))
    for number, row in enumerate(rows[:100]):
        _, facts = render(kind, seed=2, index=rendering.BENCHMARK_FIRST_INDEX + number)
        assert row["answers"] == [true_answer(row["question"], facts)]
    heard = {row["question"] for row in rows}
    if kind == "sign":
        assert heard == {wording for asked_kind in asked for wording in WORDINGS[asked_kind]}
    assert [row["question"] for row in benchmark_rows(kind=kind, count=3, seed=2)] == [
        row["question"] for row in rows[:3]
    ]


def test_benchmark_rows_ask_the_kinds_they_are_told_to():
    rows = list(
        benchmark_rows(kind="mixed", count=200, seed=0, question_kinds=["sign_is", "chart_has"])
    )
    assert {row["question_kind"] for row in rows} == {"sign_is", "chart_has"}
    share_of_yes = sum(row["answers"] == ["Yes"] for row in rows) / len(rows)
    assert 0.4 < share_of_yes < 0.6
    with pytest.raises(ValueError, match="count"):
        next(benchmark_rows(kind="sign", count=1, seed=0, question_kinds=["count"]))


@pytest.mark.parametrize("facts", [SIGN, CHART])
def test_true_answer_inverts_ask(facts):
    rng = random.Random(0)
    for kind in (*open_kinds(facts), yes_no_kind(facts)):
        for wording in ALL_WORDINGS:
            for _ in range(10):
                question = ask(facts, kind, rng, (wording,))
                assert true_answer(question.text, facts) == question.answer


@pytest.mark.parametrize(
    ("question", "facts", "answer"),
    [
        ("What does the sign say?", SIGN, "stop"),
        ("Give the number.", SIGN, "42"),
        ("Name the color.", SIGN, "red"),
        ("What is its outline?", SIGN, "circle"),
        ("Is the sign red?", SIGN, "Yes"),
        ("Is the sign pink?", SIGN, "No"),
        ("What is the value of the pink bar?", CHART, "9"),
        ("What is the value of the green bar?", CHART, None),
        ("Count the bars.", CHART, "3"),
        ("Which color is highest?", CHART, "pink"),
        ("Which color is lowest?", CHART, "black"),
        ("Name the first bar.", CHART, "blue"),
        ("Is there a black bar?", CHART, "Yes"),
        ("Is there a red bar?", CHART, "No"),
        ("What does the sign say?", CHART, None),
        ("Count the bars.", SIGN, None),
        ("Who painted this?", SIGN, None),
    ],
)
def test_true_answer(question, facts, answer):
    assert true_answer(question, facts) == answer


def test_no_wording_stands_for_two_kinds():
    spelled = [
        wording.format(color=color)
        for wordings in WORDINGS.values()
        for wording in wordings
        for color in COLORS
    ]
    distinct_without_color = {wording for wordings in WORDINGS.values() for wording in wordings}
    assert len(distinct_without_color) == 4 * len(WORDINGS)
    with_color = sum("{color}" in wording for wording in distinct_without_color)
    assert len(set(spelled)) == with_color * len(COLORS) + len(distinct_without_color) - with_color
    assert all(len(wordings) == 4 for wordings in WORDINGS.values())
    assert set(PLAIN_WORDINGS) < set(ALL_WORDINGS)


def test_each_annotation_prompt_calls_for_its_kinds():
    for prompt in (prompts.SCENE_TEXT, prompts.CHART, prompts.WORLD_KNOWLEDGE):
        assert annotation_kinds(prompt, SIGN) == open_kinds(SIGN)
        assert annotation_kinds(prompt, CHART) == open_kinds(CHART)
    assert annotation_kinds(prompts.PATHOLOGY_YES_NO, SIGN) == ("sign_is",)
    assert annotation_kinds(prompts.PATHOLOGY_YES_NO, CHART) == ("chart_has",)


def test_an_annotation_reads_back():
    question = ask(CHART, "value", random.Random(0))
    assert parse_annotation(write_annotation(question)) == (question.text, question.answer)
    assert parse_annotation("Answer: 3") is None


def test_fonts_come_with_the_package(monkeypatch):
    rendering._font.cache_clear()
    asked_for = []
    load = ImageFont.truetype
    monkeypatch.setattr(
        ImageFont,
        "truetype",
        lambda font, *rest, **more: asked_for.append(font) or load(font, *rest, **more),
    )
    for face in rendering.FACES:
        assert rendering._font(face, 19).getlength("STOP") > 0
    files = [
        font for font in asked_for if not isinstance(font, io.BytesIO)
    ]  # Pillow's built-in face is loaded from memory
    assert len(files) == 5
    assert all(font.parent == rendering.FONTS and font.stat().st_size < 10_000 for font in files)
    assert "Bitstream Vera" in (rendering.FONTS / "LICENSE").read_text()


def test_contact_sheet():
    images = [render("mixed", seed=0, index=index)[0] for index in range(5)]
    sheet = contact_sheet(images, columns=3)
    assert sheet.size == (3 * SIDE, 2 * SIDE)
    assert fingerprint(sheet.crop((SIDE, SIDE, 2 * SIDE, 2 * SIDE))) == fingerprint(images[4])
