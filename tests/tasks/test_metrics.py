"""Hard cases worked out by hand from the official evaluators."""

import itertools
import random

import pytest

from mpa_ray.tasks.answer_normalization import (
    CONTRACTIONS,
    map_words,
    process_textvqa_answer,
    process_vqa_answer,
    strip_punctuation,
)
from mpa_ray.tasks.metrics import (
    anls,
    mpa_compat_accuracy,
    normalized_edit_distance,
    relaxed_accuracy,
    textvqa_accuracy,
    vqa_accuracy,
    word_recognition_rate,
)


@pytest.mark.parametrize(
    ("matches", "score"),
    # With m of ten matching: m subsets see m - 1 matches, 10 - m see m.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
@pytest.mark.parametrize("metric", [vqa_accuracy, textvqa_accuracy])
def test_accuracy_is_the_mean_over_leave_one_out_subsets(metric, matches, score):
    answers = ["red"] * matches + [f"other{index}" for index in range(10 - matches)]
    assert metric("red", answers) == pytest.approx(score)


def test_vqa_compares_as_written_when_all_answers_agree():
    assert vqa_accuracy("Yes!", ["yes"] * 10) == 0.0
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0.0
    assert vqa_accuracy(" yes\n", ["yes"] * 10) == 1.0
    assert vqa_accuracy("Yes!", ["yes"] * 9 + ["no"]) == 1.0


def test_textvqa_normalises_even_when_all_answers_agree():
    assert textvqa_accuracy("YES!", ["yes"] * 10) == 1.0
    assert textvqa_accuracy("the 1,000?", ["1000"] * 10) == 1.0


@pytest.mark.parametrize("metric", [vqa_accuracy, textvqa_accuracy])
@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["red"], 1.0),
        (["red", "blue"], 1.0),
        (["red", "red", "blue"], 1.0),
        # One of three is 3 1/3 of ten: (10/3 * (7/3)/3 + 20/3 * 1) / 10.
        (["red", "blue", "green"], (10 / 3 * (7 / 9) + 20 / 3) / 10),
        # OK-VQA: five annotators, each answer twice, so one of five is two of ten.
        (["red", "a", "b", "c", "d"], 0.6),
        (["blue"], 0.0),
        (["red"] * 2 + ["blue"] * 10, (2 * (1 / 3) + 10 * (2 / 3)) / 12),
    ],
)
def test_fewer_or_more_than_ten_answers(metric, answers, score):
    assert metric("red", answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("raw", "vqa", "textvqa"),
    [
        ("1995.", "1995", "1995"),  # the misspelt look-behind takes the period after a digit
        ("3.5", "3.5", "3.5"),
        (".5", ".5", ".5"),
        ("U.S.A.", "usa", "usa"),
        (
            "1,000-piece set",
            "1000piece set",
            "1000 piece set",
        ),  # TextVQA has no comma left to find between digits
        ("1,000", "1000", "1000"),
        ("red,blue", "red blue", "redblue"),
        ("red, blue", "red blue", "red blue"),
        ("t-shirt", "t shirt", "t shirt"),
        ("stop - go-on", "stop goon", "stop goon"),  # one dash beside a space drops every dash
        ("The TEN of none", "10 of 0", "10 of 0"),
        ("dont", "don't", "don't"),
        ("Im", "im", "im"),  # the table's capitals are out of reach
        ("somebody'd", "somebodyd", "somebodyd"),
        ("men's", "men's", "men 's"),
        ("it's", "it's", "it 's"),
        ("10:30", "10:30", "10:30"),  # no colon in the list
        ("a\tb\nc", "b c", "b c"),
        ("the", "", ""),
        ("§", "§", "§"),
    ],
)
def test_normalisation_keeps_the_evaluators_oddities(raw, vqa, textvqa):
    assert process_vqa_answer(raw) == vqa
    assert process_textvqa_answer(raw) == textvqa


def test_only_32_periods_are_removed():
    assert strip_punctuation("a." * 40) == "a" * 32 + "a." * 8


def test_the_table_is_complete():
    assert len(CONTRACTIONS) == 120
    assert map_words("couldnt've ow's'at") == "couldn't've 'ow's'at"


@pytest.mark.parametrize("metric", [vqa_accuracy, textvqa_accuracy, anls, mpa_compat_accuracy])
@pytest.mark.parametrize("answers", [[], (), "red"])
def test_answers_must_be_a_sequence_of_strings(metric, answers):
    with pytest.raises(ValueError, match="^answers is .*give"):
        metric("red", answers)


@pytest.mark.parametrize("metric", [vqa_accuracy, textvqa_accuracy, anls, mpa_compat_accuracy])
def test_scores_are_bounded_and_ignore_the_order_of_the_answers(metric):
    rng = random.Random(0)
    words = ["no", "No.", "not sure", "1,000", "the 2", "two", "", "U.S.", "men's", "東京"]
    for _ in range(200):
        answers = [rng.choice(words) for _ in range(rng.randint(1, 12))]
        score = metric(rng.choice(words), answers)
        assert 0.0 <= score <= 1.0
        if metric is not mpa_compat_accuracy:  # its majority is the first among equals
            prediction = rng.choice(words)
            shuffled = rng.sample(answers, len(answers))
            assert metric(prediction, answers) == pytest.approx(metric(prediction, shuffled))


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Coca Cola", ["coca cola"], 1.0),
        ("coca-cola", ["coca cola"], 8 / 9),
        (" stop ", ["STOP"], 1.0),
        ("abcd", ["abzz"], 0.0),  # NL is 0.5 exactly
        ("abcde", ["abczz"], 0.6),
        ("cat", ["dog", "cart"], 0.75),
        ("", ["cat"], 0.0),
        ("東京塔", ["東京"], 2 / 3),
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


def test_edit_distance_is_a_metric():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abc", k=rng.randint(0, 6))) for _ in range(40)]
    for first, second in itertools.pairwise(texts):
        distance = normalized_edit_distance(first, second)
        assert 0.0 <= distance <= 1.0
        assert distance == normalized_edit_distance(second, first)
        assert (distance == 0.0) == (first == second)


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("95", "100", 1.0),
        ("94.9", "100", 0.0),
        ("105", "100", 1.0),
        ("-95", "-100", 1.0),
        ("95", "-100", 0.0),
        ("50%", "0.5", 1.0),
        ("50%", "50", 0.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # a target of 0 compares as text
        ("2012", "2011", 1.0),
        ("1,000", "1000", 0.0),
        ("Yes ", "yes", 1.0),
        ("five", "5", 0.0),
        ("nan", "nan", 1.0),
        ("inf", "5", 0.0),
        ("1e999", "1e999", 1.0),
        ("%", "%", 1.0),
    ],
)
def test_relaxed_accuracy(prediction, target, score):
    assert relaxed_accuracy(prediction, target) == score


def test_word_recognition_rate():
    assert word_recognition_rate(
        ["joint", "Exit!", " 42 "], ["JOINT", "exit", "42"]
    ) == pytest.approx(2 / 3)
    assert word_recognition_rate(["joint"], ["JOINT"], case_sensitive=True) == 0.0
    with pytest.raises(ValueError, match="one prediction per target"):
        word_recognition_rate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="targets is empty"):
        word_recognition_rate([], [])


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("I am not sure", ["no"], 1.0),
        ("Coca-Cola Zero", ["coca cola"], 1.0),
        ("215", ["1.5"], 1.0),
        ("no", ["not sure"], 0.0),
        ("red", ["blue", "red", "red"], 1.0),
        ("red", ["blue", "red"], 0.0),
        ("anything", ["?"], 0.0),
        ("", ["red"], 0.0),
        ("!", ["!"], 0.0),
        ("это Москва", ["москва"], 1.0),
    ],
)
def test_mpa_compat_accuracy(prediction, answers, score):
    assert mpa_compat_accuracy(prediction, answers) == score
