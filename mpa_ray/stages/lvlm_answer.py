"""The L-VLM answers questions that came from elsewhere: the other half of Eq. 1 for annotations it
has not checked yet.

What follows is the Parity Identifier, as after the Pseudo Annotator. `parts.read_annotations` reads
what is answered here.
"""

from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.schema import ANNOTATED_ROW, Stage
from mpa_ray.stages.row_worker import Ask, Row, RowStage, map_rows_with_model, spent
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts

if TYPE_CHECKING:
    from ray.data import Dataset


async def answer_own_row(row: Row, ask: Ask, *, answering: Sampling) -> list[Row]:
    """The row with the L-VLM's answer to its question; one that has it already stays as it is."""
    if row["lvlm_answer"] is not None:
        return [row]
    own = await ask(prompts.ANSWERING.format(question=row["question"]), answering)
    return [row | {"lvlm_answer": own.text.strip()} | spent("lvlm_answer", own)]


def answer_own(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """ANNOTATED_ROW parts in and out, in place of the Pseudo Annotator. `output` is explained at
    `map_rows_with_model`.
    """
    stage = RowStage(
        name="OwnAnswerer",
        work=partial(answer_own_row, answering=Sampling(max_tokens=config.identify.max_tokens)),
        models=[config.lvlm],
        asks=[Stage.PSEUDO_ANNOTATOR],
        schema=ANNOTATED_ROW,
        keeps_rows=True,
    )
    return map_rows_with_model(dataset, stage, config=config, output=output)
