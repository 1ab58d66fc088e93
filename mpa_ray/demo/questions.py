"""The questions about demo images: their wordings, their right answers, and which of them each
Pseudo Annotator prompt calls for.
"""

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from mpa_ray.demo.facts import COLORS, ChartFacts, Facts, SignFacts
from mpa_ray.tasks import prompts

# Four wordings a kind. The S-VLM was trained on the first two alone; the shifted domain asks in all
# four. `{color}` is filled with the colour that is asked about.
WORDINGS = {
    "word": (
        "What word is written on the sign?",
        "What does the sign say?",
        "Read the sign.",
        "Which word do you see?",
    ),
    "number": (
        "What number is written on the sign?",
        "Which number is shown below the word?",
        "Give the number.",
        "What is the number?",
    ),
    "color": (
        "What color is the sign?",
        "Which color does the sign have?",
        "Name the color.",
        "What is it painted in?",
    ),
    "shape": (
        "What is the shape of the sign?",
        "What shape does the sign have?",
        "Name the shape.",
        "What is its outline?",
    ),
    "sign_is": (
        "Is the sign {color}?",
        "Does the sign have the color {color}?",
        "Is it a {color} sign?",
        "Would you say {color}?",
    ),
    "value": (
        "What is the value of the {color} bar?",
        "How high is the {color} bar?",
        "Read the {color} bar.",
        "Which figure is on {color}?",
    ),
    "count": (
        "How many bars are shown?",
        "How many bars does the chart have?",
        "Count the bars.",
        "How many columns are there?",
    ),
    "tallest": (
        "What color is the tallest bar?",
        "Which bar has the highest value?",
        "Which color is highest?",
        "Which one leads?",
    ),
    "shortest": (
        "What color is the shortest bar?",
        "Which bar has the lowest value?",
        "Which color is lowest?",
        "Which one is smallest?",
    ),
    "first": (
        "What color is the first bar?",
        "Which color is the bar on the left?",
        "Name the first bar.",
        "What stands on the far left?",
    ),
    "chart_has": (
        "Is there a {color} bar?",
        "Does the chart have a {color} bar?",
        "Any {color} bar?",
        "Is one bar {color}?",
    ),
}

ALL_WORDINGS = (0, 1, 2, 3)
PLAIN_WORDINGS = (0, 1)

# A kind that stands twice is asked twice as often.
SIGN_KINDS = ("word", "word", "number", "color", "shape")
CHART_KINDS = ("value", "value", "count", "tallest", "shortest", "first")
SIGN_YES_NO = "sign_is"
CHART_YES_NO = "chart_has"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one image. The answer is in lower case, except "Yes" and "No"."""

    kind: str
    text: str
    answer: str


def open_kinds(facts: Facts) -> tuple[str, ...]:
    """The open kinds (all but the yes/no kind) that such an image can be asked, weighted by
    repetition.
    """
    return SIGN_KINDS if isinstance(facts, SignFacts) else CHART_KINDS


def yes_no_kind(facts: Facts) -> str:
    return SIGN_YES_NO if isinstance(facts, SignFacts) else CHART_YES_NO


def annotation_kinds(prompt: str, facts: Facts) -> tuple[str, ...]:
    """The question kinds that a Pseudo Annotator prompt calls for on such an image.

    Scene-text and chart prompts get the image's own kinds even where they meet the other kind of
    image.
    """
    return (yes_no_kind(facts),) if prompt == prompts.PATHOLOGY_YES_NO else open_kinds(facts)


def ask(facts: Facts, kind: str, rng: Random, wordings: tuple[int, ...] = ALL_WORDINGS) -> Question:
    """A question of that kind in one of those wordings, with its answer. Yes and No are equally
    likely.
    """
    color = _color_to_ask_about(facts, kind, rng)
    answer = _answer(facts, kind, color)
    assert answer is not None, f"no {kind} question fits {facts}"
    text = WORDINGS[kind][rng.choice(wordings)].format(color=color)
    return Question(kind=kind, text=text, answer=answer)


def true_answer(question: str, facts: Facts) -> str | None:
    """The right answer to a question in any of our wordings, or None where the image has none or
    the wording is not ours.
    """
    reading = _readings().get(question.strip())
    return _answer(facts, *reading) if reading else None


@cache
def _readings() -> dict[str, tuple[str, str]]:
    """Question text -> (kind, colour asked about), over all wordings and colours."""
    return {
        wording.format(color=color): (kind, color)
        for kind, wordings in WORDINGS.items()
        for wording in wordings
        for color in COLORS
    }


def _color_to_ask_about(facts: Facts, kind: str, rng: Random) -> str:
    present = [facts.color] if isinstance(facts, SignFacts) else [bar.color for bar in facts.bars]
    absent = [color for color in COLORS if color not in present]
    asks_for_no = kind in (SIGN_YES_NO, CHART_YES_NO) and rng.random() < 0.5
    return rng.choice(absent if asks_for_no else present)


def _answer(facts: Facts, kind: str, color: str) -> str | None:
    return (
        _sign_answer(facts, kind, color)
        if isinstance(facts, SignFacts)
        else _chart_answer(facts, kind, color)
    )


def _sign_answer(facts: SignFacts, kind: str, color: str) -> str | None:
    if kind == SIGN_YES_NO:
        return _yes_or_no(facts.color == color)
    return getattr(facts, kind) if kind in SIGN_KINDS else None


def _chart_answer(facts: ChartFacts, kind: str, color: str) -> str | None:
    bars = facts.bars
    match kind:
        case "value":
            return next((str(bar.value) for bar in bars if bar.color == color), None)
        case "count":
            return str(len(bars))
        case "tallest":
            return max(bars, key=lambda bar: bar.value).color
        case "shortest":
            return min(bars, key=lambda bar: bar.value).color
        case "first":
            return bars[0].color
        case "chart_has":
            return _yes_or_no(any(bar.color == color for bar in bars))
    return None


def _yes_or_no(is_so: bool) -> str:
    return "Yes" if is_so else "No"


def write_annotation(question: Question) -> str:
    return f"Question: {question.text}, Answer: {question.answer}"


def parse_annotation(annotation: str) -> tuple[str, str] | None:
    """(question, answer), or None where the text has another form."""
    matched = re.fullmatch(r"Question: (.+?), Answer: (.+)", annotation.strip())
    return (matched[1], matched[2]) if matched else None
