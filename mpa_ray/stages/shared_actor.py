"""The Pseudo Annotator and the Parity Identifier in one actor: both models share a GPU and, where
they are shown as many pixels, the decoded image.
"""

from collections.abc import Awaitable, Callable

from mpa_ray.engines import RequestRejected
from mpa_ray.schema import Reason, Stage
from mpa_ray.stages.row_worker import Ask, Row, quarantined

Work = Callable[[Row, Ask], Awaitable[list[Row]]]


async def both_rows(
    row: Row, ask_lvlm: Ask, ask_svlm: Ask, *, annotate: Work, identify: Work
) -> list[Row]:
    """`annotate` with the L-VLM, and `identify` with the S-VLM for each annotation that came of
    it.
    """
    found: list[Row] = []
    for annotated in await annotate(row, ask_lvlm):
        if annotated["reason"] is not None:
            found.append(annotated)
            continue
        try:
            found += await identify(annotated, ask_svlm)
        except RequestRejected as error:
            # Of several annotations of an image, this one alone.
            found.append(
                quarantined(annotated, Stage.PARITY_IDENTIFIER, Reason.ENGINE_REJECTED, str(error))
            )
    return found
