"""A model on a labeled benchmark, outside the run that made it: how what was learned on one task carries to another (Tables 3 and 10)."""

from typing import Any

from mpa_ray import stopping
from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.evaluate import evaluate
from mpa_ray.storage import Folder


def score_alone(model: ModelSection, *, name: str, config: Config, output: Folder) -> list[dict[str, Any]]:
    """Scores `model` on the benchmark of `config.evaluate`, once: its scores are kept in `output`, and its predictions.

    Args:
        model: what is asked.
        name: of the model in the scores and file names.
        config: `evaluate`, `task` and `seed` are used, and the bounds of images.
        output: evaluation/predictions/<name>.parquet and scores/<name>.json go there.

    Raises:
        ConfigurationError: `output` holds the scores of another model or benchmark under the name, or the benchmark lacks something.
        RunError: an image of the benchmark cannot be read, or the model cannot go on.
    """
    asked = {"model": model.model, "benchmark": config.evaluate.benchmark, "format": config.evaluate.format}
    kept = f"scores/{name}.json"
    if output.exists(kept):
        record = output.read_json(kept)
        if record["asked"] != asked:
            raise ConfigurationError(f"output={output.uri!r} holds scores of {record['asked']} as {name!r}; give another output or name")
        return record["scores"]
    from mpa_ray.ray_session import ray_session

    stopping.go_on(output)
    with ray_session():
        scores = evaluate(model, name=name, config=config, output=output)
    output.write_json(kept, {"asked": asked, "scores": scores})
    return scores
