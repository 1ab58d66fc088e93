"""The demo's images: 96x96 signs and bar charts, each a pure function of (kind, seed, index,
domain).

The plain domain is clean. The shifted domain is what the demo's S-VLM never saw: low contrast,
sometimes blur, stronger noise. Nothing here depends on the fonts of the machine: five faces lie in
fonts/, and the sixth is built into Pillow.
"""

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mpa_ray.demo.facts import (
    COLORS,
    ChartFacts,
    Facts,
    SignFacts,
    draw_chart_facts,
    draw_sign_facts,
)
from mpa_ray.demo.questions import ask, open_kinds, yes_no_kind

SIDE = 96  # pixels

# Glyphs stand in cells as wide as the models' vision patches, and stray by one pixel at most: with
# glyphs placed freely, a model of this size did not learn to read.
CELL = 12  # pixels

KINDS = ("sign", "chart", "mixed")
DOMAINS = ("plain", "shifted")

# The benchmark's images are counted from here on, so that it shares none with a folder of unlabeled
# images of the same seed.
BENCHMARK_FIRST_INDEX = 1_000_000_000

FONTS = Path(__file__).parent / "fonts"
FACES = (
    "DejaVuSans-Bold",
    "DejaVuSansCondensed-Bold",
    "DejaVuSerifCondensed-Bold",
    "DejaVuSansMono-Bold",
    "DejaVuSans",
    "pillow",
)

SIGN_BACKGROUNDS = ((235, 235, 235), (200, 220, 235), (215, 230, 200), (225, 215, 195))
CHART_BACKGROUNDS = ((245, 245, 245), (235, 240, 250), (250, 245, 230))

Rgb = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def render(
    kind: str, *, seed: int, index: int, domain: str = "shifted"
) -> tuple[Image.Image, Facts]:
    """One image and what it shows. `kind` "mixed" gives signs at even and charts at odd indices.

    The two domains show the same facts at the same (kind, seed, index).

    Raises:
        ValueError: `kind` or `domain` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain!r}: choose one of {', '.join(DOMAINS)}")
    if kind == "mixed":
        kind = ("sign", "chart")[index % 2]
    rng = Random(f"{kind} {seed} {index}")
    image, facts = _sign(rng) if kind == "sign" else _chart(rng)
    pixels = _grain(np.asarray(image), rng)
    if domain == "shifted":
        pixels = _degrade(pixels, rng)
    return Image.fromarray(pixels), facts


def write_images(folder: Path, *, kind: str, count: int, seed: int) -> None:
    """Write `count` unlabeled images of the shifted domain as 000000.png, 000001.png, ... Nothing
    in them tells what they show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, _ = render(kind, seed=seed, index=index)
        image.save(folder / f"{index:06d}.png")


def benchmark_rows(
    *, kind: str, count: int, seed: int, question_kinds: Sequence[str] | None = None
) -> Iterator[dict]:
    """Yield labeled rows of the shifted domain, one question an image, in all four wordings.

    A row is {"question_id", "image": {"bytes", "path"}, "question", "answers": [one string],
    "question_kind"}. `question_kinds` narrows or widens what is asked (kinds that an image does not
    have are passed over); without it every kind is asked but yes/no.
    """
    for index in range(BENCHMARK_FIRST_INDEX, BENCHMARK_FIRST_INDEX + count):
        image, facts = render(kind, seed=seed, index=index)
        rng = Random(f"question {kind} {seed} {index}")
        question = ask(facts, rng.choice(_kinds_to_ask(facts, question_kinds)), rng)
        number = index - BENCHMARK_FIRST_INDEX
        yield {
            "question_id": f"{kind}-{number:06d}",
            "image": {"bytes": _png(image), "path": f"{number:06d}.png"},
            "question": question.text,
            "answers": [question.answer],
            "question_kind": question.kind,
        }


def contact_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """The images side by side, `columns` to a row, on white."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for position, image in enumerate(images):
        sheet.paste(image, (position % columns * SIDE, position // columns * SIDE))
    return sheet


def _kinds_to_ask(facts: Facts, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None:
        return open_kinds(facts)
    kinds = tuple(kind for kind in wanted if kind in (*open_kinds(facts), yes_no_kind(facts)))
    if not kinds:
        raise ValueError(f"question_kinds={list(wanted)}: none of them can be asked about {facts}")
    return kinds


def _sign(rng: Random) -> tuple[Image.Image, SignFacts]:
    facts = draw_sign_facts(rng)
    image = Image.new("RGB", (SIDE, SIDE), _vary(rng.choice(SIGN_BACKGROUNDS), rng, spread=12))
    draw = ImageDraw.Draw(image)
    _draw_board(draw, facts.shape, _vary(COLORS[facts.color], rng), rng)
    ink = (20, 20, 20) if facts.color in ("yellow", "pink", "orange") else (250, 250, 250)
    font = _font(rng.choice(FACES), 19)
    dx, dy = rng.randint(-1, 1), rng.randint(-1, 1)
    _draw_cells(
        draw,
        facts.word.upper(),
        column=(8 - len(facts.word)) // 2,
        row=3,
        offset=(dx, dy),
        font=font,
        ink=ink,
    )
    _draw_cells(draw, facts.number, column=3, row=5, offset=(dx, dy), font=font, ink=ink)
    return image, facts


def _draw_board(draw: ImageDraw.ImageDraw, shape: str, fill: Rgb, rng: Random) -> None:
    x, y = SIDE // 2 + rng.randint(-3, 3), SIDE // 2 + rng.randint(-4, 4)
    match shape:
        case "rectangle":
            half_width, half_height = rng.randint(38, 44), rng.randint(26, 38)
            draw.rectangle(
                [x - half_width, y - half_height, x + half_width, y + half_height], fill=fill
            )
        case "circle":
            radius = rng.randint(40, 45)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
        case "diamond":
            radius = rng.randint(50, 58)
            draw.polygon(
                [(x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius)], fill=fill
            )


def _draw_cells(
    draw: ImageDraw.ImageDraw,
    text: str,
    *,
    column: int,
    row: int,
    offset: tuple[int, int],
    font: Font,
    ink: Rgb,
) -> None:
    """One glyph a cell, from (column, row) to the right; glyphs are centred on the line above their
    row's middle.
    """
    for place, glyph in enumerate(text):
        center = (CELL * (column + place) + CELL // 2 + offset[0], CELL * row + offset[1])
        draw.text(center, glyph, font=font, fill=ink, anchor="mm")


def _chart(rng: Random) -> tuple[Image.Image, ChartFacts]:
    facts = draw_chart_facts(rng)
    image = Image.new("RGB", (SIDE, SIDE), _vary(rng.choice(CHART_BACKGROUNDS), rng, spread=5))
    draw = ImageDraw.Draw(image)
    dx, dy = rng.randint(-1, 1), rng.randint(-1, 1)
    floor = SIDE - 4 + dy
    draw.line([2, floor, SIDE - 2, floor], fill=(60, 60, 60))
    font = _font(rng.choice(FACES), 15)
    for place, bar in enumerate(facts.bars):
        center, half_width = 18 + 2 * CELL * place + dx, rng.randint(14, 18) / 2
        top = floor - 2 - 8 * bar.value
        draw.rectangle(
            [center - half_width, top, center + half_width, floor],
            fill=_vary(COLORS[bar.color], rng),
        )
        draw.text((center, top - 2), str(bar.value), font=font, fill=(10, 10, 10), anchor="mb")
    return image, facts


def _vary(color: Rgb, rng: Random, *, spread: int = 14) -> Rgb:
    red, green, blue = (
        max(0, min(255, channel + rng.randint(-spread, spread))) for channel in color
    )
    return red, green, blue


def _grain(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Uniform noise of up to 10 levels. uint8 [height, width, 3] in and out, like `_degrade`."""
    noise = np.random.default_rng(rng.getrandbits(64)).integers(
        -10, 11, pixels.shape, dtype=np.int16
    )
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _degrade(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Blur half of the images; press each into a narrow band of brightness; add Gaussian noise."""
    if rng.random() < 0.5:
        pixels = np.asarray(
            Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.0)))
        )
    contrast = rng.uniform(0.4, 0.65)
    brightness = rng.uniform(0, 255 * (1 - contrast))
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        pixels.shape, dtype=np.float32
    )
    return np.clip(
        pixels * np.float32(contrast) + brightness + noise * rng.uniform(8, 18), 0, 255
    ).astype(np.uint8)


@cache
def _font(face: str, size: int) -> Font:
    return (
        ImageFont.load_default(size)
        if face == "pillow"
        else ImageFont.truetype(FONTS / f"{face}.ttf", size)
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
