"""The L-VLM answers questions that came from elsewhere: the other half of Eq. 1 for annotations it has not checked yet.

What follows is the Parity Identifier: `identify(answer_own(dataset_of(numbers, read), config), config)`.
"""

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from mpa_ray import prompts, references
from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.images import UnreadableImage
from mpa_ray.inference import Ask, Row, RowWorker, ask_model
from mpa_ray.parts import part_name
from mpa_ray.schema import ANNOTATED_ROW, Stage
from mpa_ray.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset


class OwnAnswerer(RowWorker):
    """The actor."""

    stage = Stage.PSEUDO_ANNOTATOR
    keeps_rows = True


async def answer_own_row(row: Row, ask: Ask, *, answering: Sampling) -> list[Row]:
    """The row with the L-VLM's answer to its question; one that has it already stays as it is."""
    if row["lvlm_answer"] is not None:
        return [row]
    own = await ask(prompts.ANSWERING.format(question=row["question"]), answering)
    return [
        row
        | {
            "lvlm_answer": own.text.strip(),
            "lvlm_answer_prompt_tokens": own.prompt_tokens,
            "lvlm_answer_cached_tokens": own.cached_tokens,
            "lvlm_answer_output_tokens": own.output_tokens,
        }
    ]


def answer_own(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """ANNOTATED_ROW parts in and out, in place of the Pseudo Annotator. `output` is explained at `ask_model`."""
    work = partial(answer_own_row, answering=Sampling(max_tokens=config.identify.max_tokens))
    return ask_model(dataset, OwnAnswerer, work, model=config.lvlm, schema=ANNOTATED_ROW, config=config, output=output)


def read_annotations(number: int, *, annotations: Folder, max_image_bytes: int) -> pa.Table:
    """One part of an annotations folder, or of a re-judging's unasked/, as ANNOTATED_ROW; rows without a readable image are quarantined."""
    rows = annotations.read_table(part_name(number)).to_pylist()
    contents = references.fetch([row["image_uri"] for row in rows], max_image_bytes=max_image_bytes)
    for row, content in zip(rows, contents, strict=True):
        row["part"] = number
        if isinstance(content, UnreadableImage):
            row |= {"stage": str(Stage.IMAGES), "reason": str(content.reason), "detail": content.detail}
        else:
            row["image"] = content
    return pa.Table.from_pylist(rows, schema=ANNOTATED_ROW)


def has_unanswered(annotations: Folder) -> bool:
    """Whether any row still needs the L-VLM; where none does, `answer_own` can be left out and the L-VLM need not be loaded."""
    return any(table.column("lvlm_answer").null_count for table in annotations.tables(["lvlm_answer"]))
