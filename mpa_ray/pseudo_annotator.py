"""The Pseudo Annotator (PA): the L-VLM writes a question and an answer for an image, and at once
answers its own question.

The second call follows the first on the same actor, while the image is still in the engine's
caches. It is the L-VLM's half of the Parity Identifier (Eq. 1); asking here saves a second pass
over the images.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Config
from mpa_ray.engines import RequestRejected, Sampling
from mpa_ray.schema import ANNOTATED_ROW, Reason, Stage
from mpa_ray.stages.row_worker import (
    Ask,
    Row,
    RowStage,
    RowWork,
    map_rows_with_model,
    quarantined,
    seed_for,
    spent,
)
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tasks.annotation_parser import UnparsableAnnotation
from mpa_ray.tasks.usable_annotation import RepeatedQuestion, usable_annotation

if TYPE_CHECKING:
    from ray.data import Dataset


# The first that fits.
_REASONS = {
    RequestRejected: Reason.ENGINE_REJECTED,
    RepeatedQuestion: Reason.REPEATED_QUESTION,
    UnparsableAnnotation: Reason.UNPARSABLE_ANNOTATION,
}


async def annotate_row(
    row: Row,
    ask: Ask,
    *,
    prompt: str,
    annotating: Sampling,
    answering: Sampling,
    questions: int,
    seed: int,
    answers: tuple[str, ...] = (),
    preamble: str = "",
) -> list[Row]:
    """One row per question that was asked for: an annotation with the L-VLM's own answer, or the
    question's quarantined row.

    A question that cannot be parsed, that the engine rejects, or that the image already has costs
    itself alone.

    Args:
        row: a row of SOURCE_ROW.
        ask: asks the L-VLM about the row's image.
        prompt: the Pseudo Annotator's prompt.
        annotating: how annotations are drawn; its seed is replaced by one of the row's own.
        answering: how the own answer is drawn.
        questions: annotations asked for.
        seed: of the run.
        answers: the only answers the task has; none: any.
        preamble: what both prompts begin with.
    """
    key = row.get("draw_key") or row["image_id"]
    rows: list[Row] = []
    had: set[str] = set()
    for number in range(questions):
        sample = row | {"sample_id": f"{key}-{number}"}
        drawn = replace(annotating, seed=seed_for(seed, key, number))
        try:
            annotation = await ask(preamble + prompt, drawn)
            parsed = usable_annotation(annotation.text, answers=answers, had=had)
            own = await ask(
                preamble + prompts.ANSWERING.format(question=parsed.question), answering
            )
        except (RequestRejected, UnparsableAnnotation) as error:
            reason = next(reason for kind, reason in _REASONS.items() if isinstance(error, kind))
            rows.append(quarantined(sample, Stage.PSEUDO_ANNOTATOR, reason, str(error)))
            continue
        had.add(parsed.question.casefold())
        rows.append(
            sample
            | {
                "question": parsed.question,
                "answer": parsed.answer,
                "annotation_text": annotation.text,
                "lvlm_answer": own.text.strip(),
            }
            | spent("annotation", annotation)
            | spent("lvlm_answer", own)
        )
    return rows


def annotating(config: Config) -> RowWork:
    """The Pseudo Annotator's work of a row."""
    task = config.task_spec
    drawing = Sampling(
        max_tokens=config.annotate.max_tokens,
        temperature=config.annotate.temperature,
        top_p=config.annotate.top_p,
        form=prompts.annotation_form(task.answers) if config.annotate.constrained else None,
    )
    return partial(
        annotate_row,
        prompt=config.prompt or task.prompt,
        annotating=drawing,
        answering=Sampling(max_tokens=config.identify.max_tokens),
        questions=config.annotate.questions_per_image,
        seed=config.seed,
        answers=task.answers,
        preamble=config.annotate.preamble,
    )


def annotator(config: Config) -> RowStage:
    """The stage: SOURCE_ROW in, ANNOTATED_ROW out."""
    return RowStage(
        name="PseudoAnnotator",
        work=annotating(config),
        models=[config.lvlm],
        asks=[Stage.PSEUDO_ANNOTATOR],
        schema=ANNOTATED_ROW,
        keeps_rows=True,
    )


def annotate(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """SOURCE_ROW parts in, ANNOTATED_ROW parts out. Lazy, like every stage. `output` is explained
    at `map_rows_with_model`.
    """
    return map_rows_with_model(dataset, annotator(config), config=config, output=output)
