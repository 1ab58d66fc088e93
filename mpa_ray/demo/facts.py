"""What a demo image shows, and the words, colours and shapes it can show."""

from dataclasses import dataclass
from random import Random

# At most five letters: a word stands in 12-pixel cells, and a 96-pixel image has eight.
_WORDS = """
    stop exit open sale food taxi bank park cafe shop hotel pizza music water fire left
    right slow north south east west king bus gate help push pull book milk wine fish
    bread shoe radio tower beach club gold zone land view home free quiet metro dogs
    jazz lake road hill
"""
WORDS = tuple(_WORDS.split())

COLORS = {
    "red": (215, 35, 35),
    "green": (35, 150, 50),
    "blue": (35, 75, 215),
    "yellow": (240, 215, 40),
    "orange": (245, 135, 25),
    "purple": (130, 45, 160),
    "pink": (250, 150, 190),
    "black": (30, 30, 30),
}

SHAPES = ("rectangle", "circle", "diamond")


@dataclass(frozen=True, kw_only=True)
class SignFacts:
    """A sign: a coloured shape with a word and, below it, a two-digit number."""

    word: str
    number: str
    color: str
    shape: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart; its value (1 to 9) is printed above it."""

    color: str
    value: int


@dataclass(frozen=True, kw_only=True)
class ChartFacts:
    """A bar chart, from left to right. No two bars share a colour or a value."""

    bars: tuple[Bar, ...]


Facts = SignFacts | ChartFacts


def draw_sign_facts(rng: Random) -> SignFacts:
    return SignFacts(
        word=rng.choice(WORDS),
        number=str(rng.randint(10, 99)),
        color=rng.choice(tuple(COLORS)),
        shape=rng.choice(SHAPES),
    )


def draw_chart_facts(rng: Random) -> ChartFacts:
    count = rng.randint(2, 4)
    colors = rng.sample(tuple(COLORS), count)
    values = rng.sample(range(1, 10), count)
    return ChartFacts(
        bars=tuple(
            Bar(color=color, value=value) for color, value in zip(colors, values, strict=True)
        )
    )
