"""A model on a labeled benchmark, outside the run that made it: how what was learned on one task
carries to another (Tables 3 and 10).
"""

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from mpa_ray.config import Config, LocalModelSection, changes, identity, of_identity
from mpa_ray.config.locations import is_model_folder
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import benchmark
from mpa_ray.models import node_cache
from mpa_ray.observability.progress import say
from mpa_ray.stages import early_stop
from mpa_ray.stages.evaluate import evaluate
from mpa_ray.storage.folder import Folder, is_remote
from mpa_ray.tasks.benchmarks import BENCHMARKS

# What older versions kept of what was asked, by the names of today.
_KEPT_BEFORE = {
    "model": "svlm.model",
    "benchmark": "evaluate.benchmark",
    "format": "evaluate.format",
}
# In a model's folder and without a say in its answers; a run writes the first again.
_NOT_THE_MODEL = ("README.md", "training_log.json")


def score_alone(
    model: LocalModelSection, *, name: str, config: Config, output: Folder
) -> list[Any]:
    """Score `model` on the benchmark of `config.evaluate`, once: its scores are kept in `output`,
    and its predictions.

    Args:
        model: what is asked.
        name: of the model in the scores and file names.
        config: `evaluate`, `task` and `seed` are used, and the bounds of images.
        output: evaluation/predictions/<name>.parquet and scores/<name>.json go there.

    Raises:
        ConfigurationError: `output` holds scores under the name that came about otherwise (another
            model, benchmark or setting, or files that have changed since), or the benchmark lacks
            something.
        RunError: an image of the benchmark cannot be read, or the model cannot continue.
    """
    asked, files = _asked(model, config), _files(model)
    kept = f"scores/{name}.json"
    if output.exists(kept):
        record = output.read_json(kept)
        if told := _differences(record, asked, files, config):
            raise ConfigurationError(
                f"output={output.uri!r} holds other scores as {name!r}: {'; '.join(told)}. Give"
                " another output or name"
            )
        return record["scores"]
    from mpa_ray.placement.ray_session import ray_session

    with ray_session():
        early_stop.begin_call(output)
        scores = evaluate(model, name=name, config=config, output=output)
    output.write_json(
        kept,
        {
            "asked": asked,
            "model_files": files,
            "benchmark": benchmark.record(output),
            "scores": scores,
        },
    )
    return scores


def _asked(model: LocalModelSection, config: Config) -> dict[str, Any]:
    """The settings that decide a score, as `identity` names them."""
    sections = [
        "svlm",
        "evaluate",
        "seed",
        *(["task"] if BENCHMARKS[config.evaluate.format].metrics is None else []),
    ]
    flat = identity(config.model_copy(update={"svlm": model}))
    return {
        name: value
        for name, value in flat.items()
        if name.partition(".")[0] in sections and name != "evaluate.lvlm"
    }


def _files(model: LocalModelSection) -> str | None:
    """A hash of a model's files by their names, sizes and times; None where they are elsewhere, or
    gone.
    """
    if model.kind.is_api or not (is_remote(model.model) or is_model_folder(model.model)):
        return None
    found = {
        name: entry
        for name, entry in node_cache.list_model(model.model).items()
        if name not in _NOT_THE_MODEL
    }
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _differences(
    record: dict[str, Any], asked: dict[str, Any], files: str | None, config: Config
) -> list[str]:
    """How the scores that are kept came about otherwise, for people."""
    is_old = "benchmark" not in record
    before = (
        {_KEPT_BEFORE[name]: value for name, value in record["asked"].items()}
        if is_old
        else record["asked"]
    )
    try:
        found = changes(of_identity(before), of_identity(asked))
    except ValidationError:
        return ["they are of another version of mpa_ray"]
    scores = (
        [score["metric"] for score in record["scores"]],
        list(benchmark.metrics_of(config.evaluate, config.task_spec.metric)),
    )
    told = [
        f"{name} was {was!r} and is {now!r}"
        for name, (was, now) in found.items()
        if not is_old or name in before
    ]
    told += (
        [f"the score was {scores[0][0]} and is {scores[1][0]}"]
        if is_old and scores[0] != scores[1]
        else []
    )
    told += (
        ["the model's files have changed"]
        if None not in (files, was := record.get("model_files")) and files != was
        else []
    )
    told += (
        ["the benchmark has changed"]
        if benchmark.changed(config.evaluate, record.get("benchmark", {}))
        else []
    )
    if is_old and not told:
        say(
            "these scores are of an older version, which did not keep the settings they were made"
            " with beside model and benchmark"
        )
    return told
