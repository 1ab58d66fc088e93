"""The Parity Identifier (PI): which self-consistent annotations the S-VLM gets wrong (Eq. 2).

    S = E(L-VLM's answer) and not E(S-VLM's answer),    E(X) = [X = A]  (Eq. 1)

Eq. 2 is a conjunction, so the S-VLM is asked only where the L-VLM agrees with itself.
`identify.exhaustive` asks it everywhere; the verdicts are the same, and a test holds us to it.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.schema import JUDGED_ROW, Stage, Verdict
from mpa_ray.stages.row_worker import Ask, Row, RowStage, RowWork, map_rows_with_model, spent
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tasks.matchers import MATCHERS, Matcher, is_consistent

if TYPE_CHECKING:
    from ray.data import Dataset


async def identify_row(
    row: Row, ask: Ask, *, matcher: str, answering: Sampling, exhaustive: bool
) -> list[Row]:
    """The row with the S-VLM's answer, where it was asked, and the verdict."""
    matches = MATCHERS[matcher]
    answered: Row = {"svlm_answer": None}
    jury_answers = row.get("jury_answers") or []
    if exhaustive or is_consistent(row["answer"], [row["lvlm_answer"], *jury_answers], matches):
        reply = await ask(prompts.ANSWERING.format(question=row["question"]), answering)
        answered = {"svlm_answer": reply.text.strip()} | spent("svlm_answer", reply)
    said = {
        "lvlm_answer": row["lvlm_answer"],
        "jury_answers": jury_answers,
        "svlm_answer": answered["svlm_answer"],
    }
    verdict = judge(answer=row["answer"], matches=matches, **said)
    return [row | answered | {"verdict": verdict}]


def identifying(config: Config) -> RowWork:
    """The Parity Identifier's work of a row."""
    return partial(
        identify_row,
        matcher=config.matcher,
        answering=Sampling(max_tokens=config.identify.max_tokens),
        exhaustive=config.identify.exhaustive,
    )


def identifier(config: Config) -> RowStage:
    """The stage: ANNOTATED_ROW in (after a jury, JURY_ROW), JUDGED_ROW out."""
    return RowStage(
        name="ParityIdentifier",
        work=identifying(config),
        models=[config.svlm],
        asks=[Stage.PARITY_IDENTIFIER],
        schema=JUDGED_ROW,
    )


def identify(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """ANNOTATED_ROW parts in (after a jury, JURY_ROW), JUDGED_ROW parts out. `output` is explained
    at `map_rows_with_model`.
    """
    return map_rows_with_model(dataset, identifier(config), config=config, output=output)


def judge(
    *,
    answer: str,
    lvlm_answer: str,
    svlm_answer: str | None,
    matches: Matcher,
    jury_answers: Sequence[str] = (),
) -> Verdict:
    """Eq. 2, S = E(L-VLM's answer) and not E(S-VLM's answer): "parity" where S holds, else why it
    does not.

    Args:
        answer: the annotation's answer, A.
        lvlm_answer: what the L-VLM said when asked its own question.
        svlm_answer: what the S-VLM said. None if it was not asked, which Eq. 2 permits where the
            L-VLM is inconsistent.
        matches: one of `MATCHERS`.
        jury_answers: what the jurors said who were asked.

    Raises:
        ValueError: the L-VLM is consistent and the S-VLM was never asked.
    """
    if not is_consistent(answer, [lvlm_answer, *jury_answers], matches):
        return Verdict.LVLM_INCONSISTENT
    if svlm_answer is None:
        raise ValueError(
            f"svlm_answer is None although the L-VLM agrees with the annotation {answer!r}; ask"
            " the S-VLM before judging"
        )
    return Verdict.SVLM_CORRECT if matches(svlm_answer, answer) else Verdict.PARITY
