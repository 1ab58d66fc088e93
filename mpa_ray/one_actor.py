"""The Pseudo Annotator and the Parity Identifier in one actor: both models share a card and, where they are
shown as many pixels, the decoded image."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Config
from mpa_ray.engines import RequestRejected
from mpa_ray.inference import Ask, Row, RowWorker, ask_model, quarantined
from mpa_ray.parity_identifier import identifying
from mpa_ray.pseudo_annotator import annotating
from mpa_ray.schema import JUDGED_ROW, Reason, Stage
from mpa_ray.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

Work = Callable[[Row, Ask], Awaitable[list[Row]]]


class AnnotatorAndIdentifier(RowWorker):
    """The actor."""

    stage = Stage.PSEUDO_ANNOTATOR
    further_stages = (Stage.PARITY_IDENTIFIER,)


async def both_rows(row: Row, ask_lvlm: Ask, ask_svlm: Ask, *, annotate: Work, identify: Work) -> list[Row]:
    """`annotate` with the L-VLM, and `identify` with the S-VLM for each annotation that came of it."""
    found: list[Row] = []
    for annotated in await annotate(row, ask_lvlm):
        if annotated["reason"] is not None:
            found.append(annotated)
            continue
        try:
            found += await identify(annotated, ask_svlm)
        except RequestRejected as error:
            # Of several annotations of an image, this one alone.
            found.append(quarantined(annotated, Stage.PARITY_IDENTIFIER, Reason.ENGINE_REJECTED, str(error)))
    return found


def annotate_and_identify(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """SOURCE_ROW parts in, JUDGED_ROW parts out: what `annotate` and then `identify` give. `output` is explained at `ask_model`."""
    return ask_model(
        dataset,
        AnnotatorAndIdentifier,
        partial(both_rows, annotate=annotating(config), identify=identifying(config)),
        models=[config.lvlm, config.svlm],
        schema=JUDGED_ROW,
        config=config,
        output=output,
    )
