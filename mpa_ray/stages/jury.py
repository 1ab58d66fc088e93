"""Several L-VLMs as a jury: an annotation counts as consistent only where every one of them answers
as the annotation does.

Eq. 1 asks the L-VLM that wrote an annotation whether it answers the same again, and a model may
repeat its own mistakes. Here others are asked the same question, each by an engine pool of its own
between the Pseudo Annotator and the Parity Identifier, and only where all before them agreed:

    S = E(L-VLM) and E(juror 1) and ... and E(juror n) and not E(S-VLM)

What they said is kept in `jury_answers`, in their order, so that stored rows can be judged again
with another matcher. Where a juror cannot continue (a wrong key), parts that are not committed are
annotated again by the next call.
"""

from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.schema import JURY_ROW, Stage
from mpa_ray.stages.row_worker import Ask, Row, RowStage, map_rows_with_model, spent
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tasks.matchers import MATCHERS, is_consistent

if TYPE_CHECKING:
    from ray.data import Dataset


async def jury_row(
    row: Row, ask: Ask, *, matcher: str, answering: Sampling, exhaustive: bool
) -> list[Row]:
    """The row with one more answer in `jury_answers`; a row that somebody disagreed about stays as
    it is, unless `exhaustive`.
    """
    said = row.get("jury_answers") or []
    if not exhaustive and not is_consistent(
        row["answer"], [row["lvlm_answer"], *said], MATCHERS[matcher]
    ):
        return [row]
    reply = await ask(prompts.ANSWERING.format(question=row["question"]), answering)
    tokens = {
        name: (row.get(name) or 0) + (count or 0) for name, count in spent("jury", reply).items()
    }
    return [row | tokens | {"jury_answers": [*said, reply.text.strip()]}]


def ask_jury(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """ANNOTATED_ROW parts in, JURY_ROW parts out; without a jury, the dataset as it is. `output` is
    explained at `map_rows_with_model`.
    """
    work = partial(
        jury_row,
        matcher=config.matcher,
        answering=Sampling(max_tokens=config.identify.max_tokens),
        exhaustive=config.identify.exhaustive,
    )
    for juror in config.jury:
        stage = RowStage(
            name="Juror", work=work, models=[juror], asks=[Stage.JURY], schema=JURY_ROW
        )
        dataset = map_rows_with_model(dataset, stage, config=config, output=output)
    return dataset


# The public name of earlier versions.
identify_jury = ask_jury
