"""Why an S-VLM got a parity sample wrong: the categories of Table 8, what the L-VLM is asked as
judge, and how its reply is read.

The paper names the categories; their definitions and the prompt are ours.
"""

import re
from dataclasses import dataclass

from mpa_ray.tasks.matchers import normalize_answer

UNCLASSIFIED = "unclassified"
"""Where the judge's reply names no category, or the sample could not be asked about."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """A kind of knowledge gap.

    Attributes:
        name: as counted.
        definition: as the judge reads it.
        paper_percent: Table 8, of 100 parity samples that the authors inspected.
    """

    name: str
    definition: str
    paper_percent: int


VERBOSE = "correct but verbose"
_VERBOSE = (
    "the small model's answer says the same as the reference answer, only in more or other words"
)
_NOISY = (
    "the reference answer is wrong, the question cannot be answered from the image, or the"
    " answers have nothing to do with each other"
)

_SCENE_TEXT = (
    Category(
        name="shallow OCR grounding",
        definition="the small model read text correctly, but took the wrong text or did not"
        " connect it with what the question asks",
        paper_percent=33,
    ),
    Category(
        name="noisy or hallucinated OCR",
        definition="the small model misread the text, or named text that is not in the image",
        paper_percent=53,
    ),
    Category(name=VERBOSE, definition=_VERBOSE, paper_percent=5),
    Category(name="noisy or irrelevant", definition=_NOISY, paper_percent=9),
)
CATEGORIES: dict[str, tuple[Category, ...]] = {
    "textvqa": _SCENE_TEXT,
    "stvqa": _SCENE_TEXT,
    "chartqa": (
        Category(
            name="entity misalignment",
            definition="the small model took the value or name of another bar, line, slice, legend"
            " entry or axis label",
            paper_percent=55,
        ),
        Category(
            name="conditional or chart understanding",
            definition="the small model missed a condition of the question, a calculation, or how"
            " this kind of chart is read",
            paper_percent=17,
        ),
        Category(
            name="trend misinterpretation",
            definition="the small model misjudged a rise, a fall, an extreme or a pattern over the"
            " chart",
            paper_percent=14,
        ),
        Category(name=VERBOSE, definition=_VERBOSE, paper_percent=8),
        Category(name="noisy or irrelevant", definition=_NOISY, paper_percent=6),
    ),
    "okvqa": (
        Category(
            name="lack of knowledge grounding",
            definition="the small model saw what is in the image, but lacks the knowledge of the"
            " world that the question needs",
            paper_percent=23,
        ),
        Category(
            name="visual guesswork",
            definition="the small model guessed something plausible from the look of the image, or"
            " mistook what is in it",
            paper_percent=58,
        ),
        Category(name=VERBOSE, definition=_VERBOSE, paper_percent=4),
        Category(name="noisy or irrelevant", definition=_NOISY, paper_percent=15),
    ),
}
"""By task. Table 8 has none for PathVQA."""

_PROMPT = """A small model was asked a question about this image and its answer differs from the reference answer.
Question: {question}
Reference answer: {answer}
Small model's answer: {svlm_answer}
Which of these says best what went wrong?
{choices}
Reply with one letter and nothing else."""

_LONGEST_TEXT = 500
_LETTER = re.compile(
    r"(?:(?:answer|category|option)\s*:\s*)?\W*([a-z])\W*(?:\W\s*(?P<name>.*))?",
    re.IGNORECASE | re.DOTALL,
)

# Where one of these stands beside the answer, the longer answer may deny it or leave it open, and
# no rule can tell.
_NOT_PLAIN = frozenset(
    {
        "not",
        "no",
        "never",
        "neither",
        "nor",
        "or",
        "without",
        "cannot",
        "can't",
        "unclear",
        "unknown",
    }
)
_NOT_PLAIN |= {"isn't", "aren't", "wasn't", "weren't", "don't", "doesn't", "didn't"}


def judge_prompt(
    categories: tuple[Category, ...], *, question: str, answer: str, svlm_answer: str
) -> str:
    """What the L-VLM is asked about a sample. Texts of models are put on one line each, and cut
    where they are very long.
    """
    choices = "\n".join(
        f"{letter}. {category.name}: {category.definition}"
        for letter, category in _lettered(categories).items()
    )
    return _PROMPT.format(
        question=_line(question),
        answer=_line(answer),
        svlm_answer=_line(svlm_answer) or "(nothing)",
        choices=choices,
    )


def _lettered(categories: tuple[Category, ...]) -> dict[str, Category]:
    return dict(zip("ABCDEFGHIJ", categories, strict=False))


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_TEXT]


def parse_reply(reply: str, categories: tuple[Category, ...]) -> str:
    """The category a reply names: by its letter alone, by its name alone, or by both where they
    agree. Anything else is unclassified.
    """
    by_name = {category.name.casefold(): category.name for category in categories}
    text = reply.strip().strip("*_`'\"").strip()
    if name := by_name.get(text.rstrip(".").casefold()):
        return name
    found = _LETTER.fullmatch(text)
    if not found or (lettered := _lettered(categories).get(found[1].upper())) is None:
        return UNCLASSIFIED
    beside = (found["name"] or "").strip(" .*_`'\"").casefold()
    return lettered.name if not beside or beside == lettered.name.casefold() else UNCLASSIFIED


def is_verbose(answer: str, svlm_answer: str) -> bool:
    """The rule for "correct but verbose": the answer's words stand together in the S-VLM's longer
    answer, which neither denies nor weighs.

    Words are compared as `normalize_answer` writes them. Scripts without spaces have no words to
    compare; those samples go to the judge.
    """
    wanted, said = (normalize_answer(text).split() for text in (answer, svlm_answer))
    if not wanted or len(wanted) >= len(said):
        return False
    places = [
        start
        for start in range(len(said) - len(wanted) + 1)
        if said[start : start + len(wanted)] == wanted
    ]
    if not places:
        return False
    others = said[: places[0]] + said[places[0] + len(wanted) :]
    return _NOT_PLAIN.isdisjoint(others)
