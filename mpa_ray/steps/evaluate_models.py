"""The benchmark's questions for each model, and the held-out rows for MPA's."""

from functools import partial
from typing import Any

from mpa_ray.config import Config, ModelSection
from mpa_ray.observability.progress import say
from mpa_ray.observability.side_by_side import side_by_side
from mpa_ray.schema import CHANGES
from mpa_ray.stages import step_times
from mpa_ray.stages.evaluate import evaluate
from mpa_ray.stages.held_out import learned_and_forgotten
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease
from mpa_ray.training.arms import model_folder


def _svlm(config: Config, target: Folder) -> Any:
    return config.svlm.model_copy(update={"model": target.uri, "revision": None})


def ask_trained(
    config: Config, output: Folder, trained: dict[str, dict[str, Any]], held: Lease
) -> list[dict[str, Any]]:
    """Asks the models about the labeled benchmark, before and after, and MPA's own S-VLM about the
    held-out rows. Gives back the scores; what was learned and forgotten goes into `trained`.
    """
    contestants = {"zero_shot": config.svlm} | {
        name: _svlm(config, model_folder(output, name)) for name in trained
    }
    if config.evaluate.lvlm:
        contestants["lvlm"] = config.lvlm
    evaluations = {
        f"evaluate_{name}": partial(_evaluate, name, contestants[name], config, output)
        for name in contestants
    }
    work = evaluations if config.evaluate.benchmark else {}
    if config.pl.holdout:
        work["holdout_mpa"] = partial(_ask_held_out, contestants["mpa"], config, output)
    asked = side_by_side(
        lambda name: step_times.once(output, name, work[name], held),
        work,
        at_once=config.evaluate.models_at_once,
    )
    done = dict(zip(work, asked, strict=True))
    if config.pl.holdout:
        change = done.pop("holdout_mpa")
        # A record of an earlier version does not know of all of them.
        trained["mpa"]["holdout"] = {name: change[name] for name in CHANGES if name in change}
        if change["forgotten"] > change["learned"]:
            say(
                f"held out: MPA forgot more than it learned ({change['forgotten']:,} against"
                f" {change['learned']:,} of the held-out rows)."
                f" The S-VLM it came from, {config.svlm.model}, is the better one there; try"
                " --pl.replay 0.5 in a new output"
            )
    scores = [score for found in done.values() for score in found["scores"]]
    if scores:
        output.write_json("evaluation/metrics.json", scores)
    return scores


def _evaluate(name: str, model: ModelSection, config: Config, output: Folder) -> dict[str, Any]:
    say(f"evaluate {name}: asking {model.model}")
    return {"scores": evaluate(model, name=name, config=config, output=output)}


def _ask_held_out(model: ModelSection, config: Config, output: Folder) -> dict[str, Any]:
    say("held out: asking MPA's S-VLM again")
    return learned_and_forgotten(model, name="mpa", config=config, output=output)
