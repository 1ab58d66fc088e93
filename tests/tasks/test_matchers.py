import random

import pytest

from mpa_ray.parity_identifier import judge
from mpa_ray.tasks.matchers import MATCHERS, normalize_answer


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Yes", " yes. "),
        ("The Coca-Cola Company", "coca-cola company"),
        ('"STOP"', "stop"),
        ("“STOP”", "**Stop**"),
        ("«стоп»", "СТОП."),
        ("(red)", "`red`"),
        ("twenty-one", "21"),
        ("twenty one", "21"),
        ("Twelve dogs", "12 dogs"),
        ("1,000", "1000"),
        ("$1,234,567.50", "$1234567.50"),
        ("1,000 people", "1000 people"),
        ("50 %", "50 percent"),
        ("50%", "fifty per cent"),
        ("５０％", "50%"),
        ("7:30 p.m.", "7:30 PM"),
        ("U.S.A.", "USA"),
        ("yes, it is", "yes it is"),
        ("don’t walk", "Don't walk"),
        ("−5", "–5"),
        ("東京。", "東京"),
        ("「東京」", "東京"),
        ("１２３", "123"),
        ("٣", "3"),
        ("नमस्ते।", "नमस्ते"),
        ("هل؟", "هل"),
        ("STRASSE", "straße"),
        ("café", "cafe\u0301"),
        ("?", " ? "),
        ("a", "A"),
    ],
)
def test_exact_ignores_the_writing(first, second):
    assert MATCHERS["exact"](first, second)
    assert MATCHERS["exact"](second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("no", "not sure"),
        ("red", "red bus"),
        ("5", "-5"),
        ("5", "50"),
        ("5", ".5"),
        ("5", "5%"),
        ("5", "5.0"),
        ("C", "C++"),
        ("c", "c#"),
        ("1", "#1"),
        ("1,2", "12"),
        ("007", "7"),
        ("東京", "京都"),
        ("café", "cafe"),
        ("a", "the"),
        ("vitamin a", "vitamin"),
        ("?", "!"),
        ("twenty", "twenty one"),
    ],
)
def test_exact_keeps_the_meaning(first, second):
    assert not MATCHERS["exact"](first, second)
    assert not MATCHERS["exact"](second, first)


def test_normalization_is_idempotent():
    rng = random.Random(0)
    pieces = [
        "the",
        "A",
        "1,000",
        "twenty",
        "five",
        "p.m.",
        "50",
        "%",
        "percent",
        "“x”",
        "東京。",
        ".5",
        "(b)",
        "#",
        "ß",
        "İ",
        "_c_",
    ]
    for _ in range(2000):
        once = normalize_answer(" ".join(rng.choices(pieces, k=rng.randint(1, 4))))
        assert normalize_answer(once) == once


@pytest.mark.parametrize("matches", MATCHERS.values(), ids=MATCHERS)
def test_an_empty_answer_never_matches(matches):
    for prediction in ("", " ", "red", "no"):
        assert not matches(prediction, "")
        assert not matches(prediction, " \n")


@pytest.mark.parametrize("matches", MATCHERS.values(), ids=MATCHERS)
@pytest.mark.parametrize("answer", ["red", "7:30", "Coca-Cola", "50%", "東京", "0", "Yes"])
def test_an_answer_matches_itself(matches, answer):
    assert matches(answer, answer)


def test_anls_forgives_slips():
    assert MATCHERS["anls"]("Coca Cola", "CocaCola")
    assert not MATCHERS["anls"]("abcd", "abzz")


def test_relaxed_compares_values():
    assert MATCHERS["relaxed"]("1,040", "1000")
    assert MATCHERS["relaxed"]("fifty percent", "0.5")
    assert MATCHERS["relaxed"]("Yes.", "yes")
    assert not MATCHERS["relaxed"]("1,060", "1000")
    assert not MATCHERS["relaxed"]("no", "yes")


def test_mpa_compat_finds_the_reference_in_the_prediction():
    assert MATCHERS["mpa_compat"]("I am not sure", "No")
    assert MATCHERS["mpa_compat"]("the red bus", "Red!")
    assert not MATCHERS["mpa_compat"]("no", "not sure")
    assert not MATCHERS["mpa_compat"]("anything", "?")


@pytest.mark.parametrize(
    ("lvlm_answer", "svlm_answer", "verdict"),
    [
        ("Red.", "blue", "parity"),
        ("Red.", "red", "svlm_correct"),
        ("Red.", "", "parity"),
        ("green", "red", "lvlm_inconsistent"),
        ("green", "blue", "lvlm_inconsistent"),
        ("green", None, "lvlm_inconsistent"),
    ],
)
def test_judge(lvlm_answer, svlm_answer, verdict):
    assert (
        judge(
            answer="red",
            lvlm_answer=lvlm_answer,
            svlm_answer=svlm_answer,
            matches=MATCHERS["exact"],
        )
        == verdict
    )


def test_judge_refuses_a_row_whose_svlm_was_never_asked():
    with pytest.raises(ValueError, match="svlm_answer is None .* 'red'; ask the S-VLM"):
        judge(answer="red", lvlm_answer="red", svlm_answer=None, matches=MATCHERS["exact"])
