"""Tokens and scores were checked against pycocoevalcap 1.2 with its Java tokeniser; the numbers
here are its output.
"""

import math
import random

import pytest

from mpa_ray.tasks.captions import caption_scores, caption_tokens

PREDICTIONS = [
    "A red can of Coca-Cola (zero) on a table.",
    "A man's jersey says \"O'Neal 23\".",
    "the bus is going to Oxford St.",
]
REFERENCES = [
    ["A can of Coca-Cola sits on the table.", "Red Coca-Cola can, which doesn't have sugar."],
    ["A man wearing number 23 with O'Neal on the back.", "The jersey of O'Neal, #23"],
    ["A red double-decker bus that goes to Oxford St.", "Bus number 7 at 12:45 p.m."],
]


def test_scores_equal_pycocoevalcap():
    scores = caption_scores(PREDICTIONS, REFERENCES)
    assert scores == pytest.approx(
        {"bleu_1": 0.6399999999744, "rouge_l": 0.535699152131874, "cider": 1.4523094784771606},
        abs=1e-12,
    )


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's hat isn't on (the table).", "a man 's hat is n't on -lrb- the table -rrb-"),
        (
            "U.S. Army 7:30 p.m. $5.00 50% off, 1,000 items & more",
            "u.s. army 7:30 p.m. $ 5.00 50 % off 1,000 items & more",
        ),
        ("the girls' room at 7-Eleven #1 best @home", "the girls room at 7-eleven # 1 best @home"),
        (
            "I'm you're we'll don't won't cannot gonna",
            "i 'm you 're we 'll do n't wo n't can not gon na",
        ),
        ("red/white and/or 3/4 cup, 24/7", "red/white and/or 3/4 cup 24/7"),
        ("Mr. Smith vs. Jones Inc. said No. 5 is no.", "mr. smith vs. jones inc. said no. 5 is no"),
        ("a well-known t-shirt, AT&T C++", "a well-known t-shirt at&t c++"),
        ("No smoking!!! Really?! what??", "no smoking !!! really ?! what ??"),
        ("“Smart” it’s – dash … ellipsis", "smart it 's dash ellipsis"),
        (
            "1990s '90s 90's 555-1234 2:00pm 500ml 2.5L",
            "1990s '90s 90 's 555-1234 2:00 pm 500ml 2.5 l",
        ),
        ("a man sat.", "a man sat"),
        ("", ""),
    ],
)
def test_tokens_equal_the_penn_treebank_tokeniser(caption, tokens):
    assert caption_tokens(caption) == tokens.split()


def test_perfect_captions():
    captions = ["a red bus on the street", "two dogs play with a ball", "the sign says stop here"]
    scores = caption_scores(captions, [[caption] for caption in captions])
    assert scores["bleu_1"] == pytest.approx(1.0)
    assert scores["rouge_l"] == pytest.approx(1.0)
    assert scores["cider"] == pytest.approx(10.0)


def test_bleu_1_clips_and_penalises_brevity():
    # "the" counts once, two of two words are known: precision 2/3 of 3 words; 3 words against the
    # closest length 6.
    scores = caption_scores(
        ["the the cat"], [["the cat sat on a mat", "cat cat cat cat cat cat cat cat"]]
    )
    assert scores["bleu_1"] == pytest.approx(2 / 3 * math.exp(1 - 6 / 3), abs=1e-8)


def test_rouge_l_takes_best_precision_and_best_recall_apart():
    # Precision 2/4 from the first reference, recall 1/1 from the second.
    precision, recall, weight = 2 / 4, 1.0, 1.2**2
    scores = caption_scores(["a b c d"], [["a x b y z w"], ["d"]][:1])
    assert scores["rouge_l"] == pytest.approx(
        (1 + weight) * (2 / 4) * (2 / 6) / (2 / 6 + weight * 2 / 4)
    )
    scores = caption_scores(["a b c d"], [["a x b y z w", "d"]])
    assert scores["rouge_l"] == pytest.approx(
        (1 + weight) * precision * recall / (recall + weight * precision)
    )


def test_cider_is_zero_for_one_image_and_its_length_is_counted_in_bigrams():
    assert caption_scores(["a red bus"], [["a red bus"]])["cider"] == 0.0
    # One word has no bigram: same length as no word at all. idf is log 2 for both words, and only
    # unigrams meet.
    scores = caption_scores(["bus", "dog"], [["bus"], ["cat"]])
    assert scores["cider"] == pytest.approx(10 * (1 / 4) / 2)


def test_empty_predictions_score_zero():
    scores = caption_scores(["", "..."], [["a red bus"], ["a dog"]])
    assert scores == pytest.approx({"bleu_1": 0.0, "rouge_l": 0.0, "cider": 0.0}, abs=1e-12)


def test_scores_do_not_depend_on_order_of_images_or_references():
    rng = random.Random(0)
    words = ["a", "the", "red", "bus", "sign", "stop", "with", "man", "dog"]
    images = [
        (" ".join(rng.choices(words, k=5)), [" ".join(rng.choices(words, k=7)) for _ in range(3)])
        for _ in range(8)
    ]
    scores = caption_scores(*map(list, zip(*images, strict=True)))
    shuffled = [
        (caption, rng.sample(references, 3))
        for caption, references in rng.sample(images, len(images))
    ]
    assert caption_scores(*map(list, zip(*shuffled, strict=True))) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "predictions is empty"),
        (["a"], [["a"], ["b"]], "one caption per image"),
        (["a"], [[]], r"references\[0\]"),
        (["a"], ["a bus"], r"references\[0\] is 'a bus'"),
    ],
)
def test_refused_input(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(predictions, references)
