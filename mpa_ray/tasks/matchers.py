"""Eq. 1 of the paper, E(X) = [X = A]: when are two answers the same? And Eq. 2, which rows teach
something.

The paper leaves "=" open. `MATCHERS` holds the readings a task can choose from, each a function of
(prediction, answer); `answer` is the annotation's. None of them matches an empty answer.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from mpa_ray.tasks.answer_normalization import ARTICLES
from mpa_ray.tasks.metrics import anls, contains_reference, relaxed_accuracy

Matcher = Callable[[str, str], bool]

_ANLS_MATCH = 0.5

_DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
# "none" is 0 to the official VQA evaluators too.
_NUMBER_WORDS = {"none": "0", "zero": "0"}
_NUMBER_WORDS |= {word: str(value) for value, word in enumerate(_DIGITS + _TEENS, start=1)}
_NUMBER_WORDS |= {word: str(value) for word, value in _TENS.items()}
_NUMBER_WORDS |= {
    f"{word}-{digit}": str(value + unit)
    for word, value in _TENS.items()
    for unit, digit in enumerate(_DIGITS, start=1)
}

# Marks that belong to what they touch, unlike a full stop or a quote: "50%", "#1", "@home", "AT&T",
# "1/2".
_MARKS_WITH_MEANING = frozenset("%‰#@&/\\§")
_EDGE_CATEGORIES = frozenset({"Po", "Ps", "Pe", "Pi", "Pf"})
# Neither is punctuation to Unicode: the backtick is a modifier, the underscore a connector. Both
# come from Markdown.
_MARKUP = frozenset("`_")

_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-"}
)

_DIGIT_GROUP_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DOTTED_LETTERS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]?")
_PERCENT = re.compile(r"(?<=\d) ?(?:%|percent(?!\w)|per cent(?!\w))")


# An annotation's answer is compared twice, and short answers come up again and again.
@lru_cache(maxsize=1 << 16)
def normalize_answer(answer: str) -> str:
    """An answer as `exact` compares it: what is a matter of writing goes, what is a matter of
    meaning stays.

    Unicode compatibility forms, case, spacing and the script of decimal digits are unified. From
    every word's edges go quotes, brackets, sentence punctuation of any script and Markdown; leading
    English articles go; number words to ninety-nine become digits; "1,000" becomes "1000", "p.m."
    becomes "pm", "50 percent" becomes "50%". Decimals stay as written: "5" and "5.0" differ
    ("relaxed" is for values). An answer made of punctuation alone stays as it is.
    """
    folded = answer.lower() if answer.isascii() else _unify(answer)
    words = [word for word in map(_normalize_word, folded.split()) if word]
    if not words:
        return " ".join(folded.split())
    while len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return _PERCENT.sub("%", " ".join(_join_number_words(words)))


def _unify(answer: str) -> str:
    folded = unicodedata.normalize(
        "NFKC", unicodedata.normalize("NFKC", answer).casefold()
    ).translate(_PLAIN)
    return "".join(_ascii_digit(character) for character in folded)


def _ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _normalize_word(word: str) -> str:
    ungrouped = _DIGIT_GROUP_COMMA.sub("", word)
    start, end = 0, len(ungrouped)
    while start < end and _is_edge_punctuation(ungrouped, start):
        start += 1
    while end > start and _is_edge_punctuation(ungrouped, end - 1):
        end -= 1
    stripped = ungrouped[start:end]
    return stripped.replace(".", "") if _DOTTED_LETTERS.fullmatch(stripped) else stripped


def _is_edge_punctuation(word: str, index: int) -> bool:
    character = word[index]
    if character == "." and word[index + 1 : index + 2].isdecimal():
        return False
    if character in _MARKS_WITH_MEANING:
        return False
    return character in _MARKUP or unicodedata.category(character) in _EDGE_CATEGORIES


def _join_number_words(words: list[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in _TENS and word in _DIGITS:
            joined[-1] = f"{joined[-1]}-{word}"
        else:
            joined.append(word)
    return [_NUMBER_WORDS.get(word, word) for word in joined]


def matches_exactly(prediction: str, answer: str) -> bool:
    """Eq. 1 read literally, on normalised answers."""
    normalized = normalize_answer(answer)
    return bool(normalized) and normalize_answer(prediction) == normalized


def matches_by_anls(prediction: str, answer: str) -> bool:
    """A normalised Levenshtein similarity of at least 0.5: forgives slips in reading text, and also
    "left" for "lift".
    """
    return bool(answer.strip()) and anls(prediction, [answer]) >= _ANLS_MATCH


def matches_relaxed(prediction: str, answer: str) -> bool:
    """ChartQA's 5% rule on normalised answers, so that "1,000" is a number and "Yes." is "yes".
    Years within 5% match too.
    """
    normalized = normalize_answer(answer)
    return bool(normalized) and relaxed_accuracy(normalize_answer(prediction), normalized) == 1.0


MATCHERS: dict[str, Matcher] = {
    "exact": matches_exactly,
    "anls": matches_by_anls,
    "relaxed": matches_relaxed,
    # The authors' released code. "no" is in "not sure".
    "mpa_compat": contains_reference,
}


def is_consistent(answer: str, said: Iterable[str], matches: Matcher) -> bool:
    """Whether everyone who was asked (the L-VLM, and a jury where there is one) answers as the
    annotation does.
    """
    return all(matches(one, answer) for one in said)
