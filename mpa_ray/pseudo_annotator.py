"""The Pseudo Annotator (PA): the L-VLM writes a question and an answer for an image, and at once answers its own question.

The second call follows the first on the same actor, while the image is still in the engine's caches. It is the L-VLM's half of the Parity
Identifier (Eq. 1); asking here saves a second pass over the images.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mpa_ray import prompts
from mpa_ray.annotation_parser import Annotation, UnparsableAnnotation, parse_annotations
from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.inference import Ask, Row, RowWork, RowWorker, ask_model, quarantined, seed_for
from mpa_ray.matchers import matches_exactly
from mpa_ray.schema import ANNOTATED_ROW, Reason, Stage
from mpa_ray.storage import Folder
from mpa_ray.tasks import task_of

if TYPE_CHECKING:
    from ray.data import Dataset


class PseudoAnnotator(RowWorker):
    """The actor."""

    stage = Stage.PSEUDO_ANNOTATOR
    keeps_rows = True


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
    """One row per annotation of the image, each with the L-VLM's own answer; one quarantined row where no annotation can be parsed.

    Args:
        row: a row of SOURCE_ROW.
        ask: asks the L-VLM about the row's image.
        prompt: the Pseudo Annotator's prompt.
        annotating: how annotations are drawn; its seed is replaced by one of the row's own.
        answering: how the own answer is drawn.
        questions: annotations asked for; a question the image already has is dropped.
        seed: of the run.
        answers: the only answers the task has; none: any.
        preamble: what both prompts begin with.
    """
    rows: list[Row] = []
    asked: set[str] = set()
    failure = ""
    for number in range(questions):
        drawn = replace(annotating, seed=seed_for(seed, row["image_id"], number))
        annotation = await ask(preamble + prompt, drawn)
        try:
            parsed = _parse(annotation.text, answers)
        except UnparsableAnnotation as error:
            failure = failure or f"{error}: {annotation.text}"
            continue
        if parsed.question.casefold() in asked:
            continue
        asked.add(parsed.question.casefold())
        own = await ask(preamble + prompts.ANSWERING.format(question=parsed.question), answering)
        rows.append(
            row
            | {
                "sample_id": f"{row['image_id']}-{number}",
                "question": parsed.question,
                "answer": parsed.answer,
                "annotation_text": annotation.text,
                "lvlm_answer": own.text.strip(),
                "annotation_prompt_tokens": annotation.prompt_tokens,
                "annotation_cached_tokens": annotation.cached_tokens,
                "annotation_output_tokens": annotation.output_tokens,
                "lvlm_answer_prompt_tokens": own.prompt_tokens,
                "lvlm_answer_cached_tokens": own.cached_tokens,
                "lvlm_answer_output_tokens": own.output_tokens,
            }
        )
    return rows or [quarantined(row, Stage.PSEUDO_ANNOTATOR, Reason.UNPARSABLE_ANNOTATION, failure)]


def _parse(text: str, answers: tuple[str, ...]) -> Annotation:
    parsed = parse_annotations(text)[0]
    if answers and not any(matches_exactly(parsed.answer, answer) for answer in answers):
        raise UnparsableAnnotation(f"the answer is none of {', '.join(answers)}")
    return parsed


def annotating(config: Config) -> RowWork:
    """The Pseudo Annotator's work of a row."""
    task = task_of(config)
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


def annotate(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """SOURCE_ROW parts in, ANNOTATED_ROW parts out. Lazy, like every stage. `output` is explained at `ask_model`."""
    return ask_model(dataset, PseudoAnnotator, annotating(config), models=[config.lvlm], schema=ANNOTATED_ROW, config=config, output=output)
