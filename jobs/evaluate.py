"""Score a model on a labeled benchmark, outside the run that made it.

Examples:

    python jobs/evaluate.py --model runs/1/model --benchmark TextCaps_0.1_val.json \\
        --format textcaps --images images --output runs/caps
    python jobs/evaluate.py --model Qwen/Qwen2-VL-2B-Instruct --benchmark signs.parquet \\
        --task textvqa --output runs/signs --name zero_shot
"""

import sys
from collections.abc import Sequence

from pydantic import ValidationError

from mpa_ray.cli import parse_section
from mpa_ray.config import Config, EvaluateSection, LabeledSection, ModelSection, TaskName
from mpa_ray.config.locations import Location
from mpa_ray.config.parse import problems
from mpa_ray.errors import ConfigurationError
from mpa_ray.models import checkpoint, families
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.observability.text_table import aligned, interval
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables.transfer import score_alone


class Evaluation(LabeledSection):
    """A model on a labeled benchmark."""

    model: str = ""
    """A hub name, a folder in the Hugging Face layout (a run's model/), or s3://."""
    output: Location = ""
    """Where predictions and scores go. Models given the same one are asked the same questions. One
    that is scored is not asked again; scores of other settings, or of files that have changed, are
    refused under its name.
    """
    name: str = "model"
    """Of the model, in scores and file names."""
    task: TaskName = "textvqa"
    """The metric of a Parquet benchmark is that of this task; the other formats have their own."""
    max_tokens: int = 32
    """The longest answer, in tokens; captions need more than the default gives a word or phrase."""
    serve: ModelSection = ModelSection()
    """What the model runs on: engine, replicas, pixels."""


# What `--help` shows; `--help-all` has what is left of what the model runs on.
OFTEN = (
    *("model", "benchmark", "format", "images", "output", "name", "task", "max_tokens"),
    *(
        "serve.engine",
        "serve.max_pixels",
        "serve.max_replicas",
        "serve.gpus_per_replica",
        "serve.chat_template",
    ),
)


def parse(argv: Sequence[str]) -> tuple[Evaluation, Config]:
    """The job, and the configuration that follows from it."""
    try:
        job = parse_section(Evaluation(), argv, about=__doc__ or "", often=OFTEN)
        serve = ModelSection.model_validate(
            job.serve.model_dump(exclude_unset=True) | {"model": job.model}
        )
        evaluate = EvaluateSection(
            benchmark=job.benchmark, format=job.format, images=job.images, max_tokens=job.max_tokens
        )
        config = Config(task=job.task, output=job.output, svlm=serve, evaluate=evaluate)
    except ValidationError as error:
        raise ConfigurationError(*problems(error, Evaluation)) from error
    for flag, value in {
        "--model": job.model,
        "--benchmark": job.benchmark,
        "--output": job.output,
    }.items():
        if not value:
            raise ConfigurationError(f"{flag} is not set; give it on the command line")
    checkpoint.check("--model", serve.model)
    families.check("--model", config.svlm, trained=False)
    return job, config


if __name__ == "__main__":
    with exit_codes():
        given, settings = parse(sys.argv[1:])
        scores = score_alone(
            settings.svlm, name=given.name, config=settings, output=Folder.at(given.output)
        )
        rows = [["benchmark", "score", "percent", "95% interval", "questions"]]
        for score in scores:
            rows.append(
                [
                    score["benchmark"],
                    score["metric"],
                    f"{score['score']:.1f}",
                    interval(score["ci95"]),
                    f"{score['n']:,}",
                ]
            )
        print(aligned(rows))
