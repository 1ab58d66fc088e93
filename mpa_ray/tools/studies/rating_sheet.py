"""A sheet for people to rate annotations, before and after the Parity Identifier, without knowing
which is which (Table 4 of the paper).

OUTPUT/for_raters/    sheet.csv, images/, instructions.md: all a rater gets
OUTPUT/key.csv        which item is which: stays with whoever runs the study
"""

import csv
import heapq
import io
import re
from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images import references
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.images.draw import draw
from mpa_ray.report.rating_questions import AFTER, BEFORE, HUMAN, QUESTIONS
from mpa_ray.report.run_folder import Place, drawn, max_image_bytes, require, require_new, rows_at
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange.image_files import named

ITEM_COLUMNS = ("item", "image", "question", "answer")
KEY_COLUMNS = ("item", "groups", "sample_id", "image_uri")

# Not printable to Python, and part of ordinary words in several scripts.
_JOINERS = "\u200c\u200d"
# Where a cell begins, or would where a semicolon is taken for the delimiter, as in many locales;
# quotes protect nothing there.
_BEFORE_A_FORMULA = re.compile(r"(?:^|;)[\s\"]*(?=[=+\-@＝＋－＠])")

INSTRUCTIONS = """# Rating questions and answers about images

Open `sheet.csv` in a spreadsheet. For each row look at the image in `images/`, read the question
and the answer, and put **1** (yes) or **0** (no) into each of the four columns. Leave a cell empty
where you cannot tell. Change nothing else; the order of rows may change.

{questions}

The task: {task}

An apostrophe in front of what would look like a formula to the spreadsheet (at the start of a
cell, or behind a semicolon) is not part of the text.
Save as CSV under a name of your own, and send back that one file. Rate alone: agreement between
raters is part of the result.
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of the sheet. An annotation that was drawn both before and after PI is rated once and
    counts in both groups.
    """

    groups: tuple[str, ...]
    sample_id: str
    image_uri: str
    question: str
    answer: str
    image: bytes | None = None
    """The encoded image, where it does not have to be fetched by its URI."""


def write_sheet(
    run: Folder, output: Folder, *, samples: int, seed: int, task: str, human: bool = False
) -> dict[str, int]:
    """Draw `samples` annotations before PI (of all) and as many after PI (of the parity set) and
    write sheet, images and key.

    Args:
        run: a run's output folder.
        output: a new folder.
        samples: of each group; all there are where they are fewer.
        seed: of what is drawn and of the order.
        task: what the questions are about, for the instructions.
        human: mix in as many questions of the run's labeled benchmark, which people wrote, so that
            human-likeness has a measure beside it.

    Returns:
        The number of items in each group, and "items" in all.

    Raises:
        ConfigurationError: no judgements, no parity sample, no benchmark although `human` asks for
            it, or the output holds files.
        RunError: an image cannot be read.
    """
    if samples < 1:
        raise ConfigurationError(f"--samples {samples}: give at least 1")
    judgements = require(run, "judgements")
    require_new(output)
    items = _annotations(judgements, samples, seed)
    if not any(AFTER in item.groups for item in items):
        raise ConfigurationError(
            f"--run {run.uri}: it has no parity sample, so there is nothing after PI to rate"
        )
    items += _human_items(run, samples, seed) if human else []
    items.sort(key=lambda item: draw(item.sample_id, f"order/{seed}"))
    sheet, key = [], []
    images = _images(items, max_image_bytes(run))
    for number, (item, image) in enumerate(zip(items, images, strict=True), start=1):
        name = f"item-{number:0{len(str(len(items)))}d}"
        file = f"images/{_named(name, image, item)}"
        output.write_bytes(f"for_raters/{file}", image)
        sheet.append([name, file, item.question, item.answer, *("" for _ in QUESTIONS)])
        key.append([name, " ".join(item.groups), item.sample_id, item.image_uri])
    output.write_bytes("for_raters/sheet.csv", csv_bytes([[*ITEM_COLUMNS, *QUESTIONS], *sheet]))
    questions = "\n".join(f"- `{name}`: {text}" for name, text in QUESTIONS.items())
    output.write_bytes(
        "for_raters/instructions.md", INSTRUCTIONS.format(questions=questions, task=task).encode()
    )
    output.write_bytes("key.csv", csv_bytes([list(KEY_COLUMNS), *key]))
    groups = (BEFORE, AFTER, *([HUMAN] if human else []))
    return {"items": len(items)} | {
        group: sum(group in item.groups for item in items) for group in groups
    }


def _images(items: list[Item], max_image_bytes: int) -> list[bytes | UnreadableImage]:
    missing = [item.image_uri for item in items if item.image is None]
    fetched = iter(references.fetch(missing, max_image_bytes=max_image_bytes))
    return [next(fetched) if item.image is None else item.image for item in items]


def _named(name: str, image: bytes | UnreadableImage, item: Item) -> str:
    try:
        if isinstance(image, UnreadableImage):
            raise image
        return named(name, image)
    except UnreadableImage as error:
        raise RunError(
            f"{item.image_uri}: cannot be read ({error}); put it back, or draw with another --seed"
        ) from None


def _annotations(judgements: Folder, samples: int, seed: int) -> list[Item]:
    before = drawn(judgements, samples, salt=f"{BEFORE}/{seed}")
    after = drawn(
        judgements, samples, salt=f"{AFTER}/{seed}", verdicts=frozenset({str(Verdict.PARITY)})
    )
    groups: dict[Place, tuple[str, ...]] = dict.fromkeys(before, (BEFORE,))
    for place in after:
        groups[place] = (*groups.get(place, ()), AFTER)
    rows = rows_at(list(groups), judgements, ["image_uri", "question", "answer"])
    return [Item(groups=groups[place], **row) for place, row in rows.items()]


def _human_items(run: Folder, samples: int, seed: int) -> list[Item]:
    """Questions of the run's labeled benchmark with their commonest answer (the first of
    equals).
    """
    questions = require(run, "evaluation/questions")
    draws = (
        (draw(question_id, f"{HUMAN}/{seed}"), name, number)
        for name in questions.names(".parquet")
        for number, question_id in enumerate(
            questions.read_table(name, ["question_id"]).column(0).to_pylist()
        )
    )
    items = []
    for _, name, number in heapq.nsmallest(samples, draws):
        row = questions.read_table(name).slice(number, 1).to_pylist()[0]
        items.append(
            Item(
                groups=(HUMAN,),
                sample_id=f"human-{row['question_id']}",
                image_uri=row["image_uri"],
                image=row["image"],
                question=row["question"],
                answer=max(row["answers"], key=row["answers"].count),
            )
        )
    return items


def csv_bytes(rows: list[list[Any]]) -> bytes:
    """Rows as CSV for any spreadsheet: every cell quoted and harmless, with the mark that tells
    Excel the text is UTF-8.
    """
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(
        [[harmless(str(cell)) for cell in row] for row in rows]
    )
    return b"\xef\xbb\xbf" + text.getvalue().encode("utf-8", "replace")


def harmless(cell: str) -> str:
    """A text that no spreadsheet takes for a formula, on one line and without a tab, whether the
    delimiter is a comma, a semicolon or a tab
    (https://owasp.org/www-community/attacks/CSV_Injection)."""
    line = " ".join(
        "".join(
            character if character.isprintable() or character in _JOINERS else " "
            for character in cell
        ).split()
    )
    return _BEFORE_A_FORMULA.sub(r"\g<0>'", line)
