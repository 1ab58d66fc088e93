"""What a run starts from: its inputs, and where its models are placed."""

from functools import partial
from typing import Any

from mpa_ray.config import LABELED_ARMS, Config
from mpa_ray.images.sources import Source
from mpa_ray.observability.progress import say
from mpa_ray.placement import capacity, place
from mpa_ray.schema import Verdict
from mpa_ray.stages import commits, step_times
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease


def without_holdout(config: Config) -> Config:
    """A parity set holds nothing that the S-VLM had right, so no row held out of it could tell what
    was forgotten.
    """
    return config.model_copy(update={"pl": config.pl.model_copy(update={"holdout": 0.0})})


def counts_of_parity_set(rows: int) -> dict[str, Any]:
    """The counts of a run that starts from a parity set: each row is an annotation, and what it was
    found in is not known.
    """
    nothing = commits.add_up([])
    return nothing | {
        "seconds": 0.0,
        "annotations": rows,
        "verdicts": nothing["verdicts"] | {str(Verdict.PARITY): rows},
    }


def with_placement(config: Config, source: Source | None) -> tuple[Config, dict[str, Any]]:
    """The configuration with what the cluster decides filled in, and the record of it for
    run.json.
    """
    placed = capacity.placed(config, asked_models(config, source))
    for line in placed.lines:
        say(line)
    return placed.config, placed.record


def asked_models(config: Config, source: Source | None) -> list[str]:
    """The models that are asked while images are annotated and identified."""
    return (
        [name for name in place.models_of(config) if name != "lvlm" or source.needs_lvlm]
        if source
        else []
    )


def with_demo_inputs(config: Config, output: Folder, held: Lease) -> Config:
    """The demo renders its images and its benchmark into the output; every other run has its
    own.
    """
    if not config.demo.images:
        return config
    from mpa_ray.demo import inputs

    inputs_folder = output.child("inputs")
    images, questions = config.demo.images, config.demo.questions
    rendered = partial(
        inputs.write,
        inputs_folder,
        task=config.task,
        images=images,
        questions=questions,
        seed=config.seed,
    )
    found = step_times.once(output, "demo_inputs", rendered, held)
    if LABELED_ARMS & set(config.ablations):
        labels = partial(
            inputs.write_labels, inputs_folder, task=config.task, count=images, seed=config.seed
        )
        found |= step_times.once(output, "demo_labels", labels, held)
    say(
        f"demo: {images:,} unlabeled images and a benchmark of {questions:,} questions in"
        f" {inputs_folder.uri}"
    )
    labeled = config.evaluate.model_copy(update={"benchmark": found["benchmark"]})
    labels_section = config.labels.model_copy(update={"benchmark": found.get("labels")})
    return config.model_copy(
        update={"images": found["images"], "evaluate": labeled, "labels": labels_section}
    )
