"""The benchmark's questions for each model, and the held-out rows for MPA's."""

from functools import partial

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.observability.progress import say
from mpa_ray.schema import EVALUATE_STEP, HOLDOUT_STEP
from mpa_ray.stages.evaluate import evaluate
from mpa_ray.stages.held_out import compare_on_held_out
from mpa_ray.steps.step import Record, Run, Step
from mpa_ray.storage.folder import Folder
from mpa_ray.training.arms import arms, model_folder

_ZERO_SHOT, _LVLM = "zero_shot", "lvlm"
_BESIDE = "evaluate"


def contestants(config: Config) -> list[str]:
    """The names of the models that are asked the benchmark's questions: the S-VLM before and after,
    and the L-VLM where that is asked for.
    """
    if not config.evaluate.benchmark:
        return []
    return [
        _ZERO_SHOT,
        *(arm.name for arm in arms(config)),
        *([_LVLM] if config.evaluate.lvlm else []),
    ]


def evaluate_step(name: str) -> Step:
    """Asking one model the benchmark's questions."""
    models = {_ZERO_SHOT: ("svlm.model",), _LVLM: ("lvlm.model",), "mpa": ("model",)}
    return Step(
        name=f"{EVALUATE_STEP}{name}",
        reads=("evaluation/questions", *models.get(name, (f"models/{name}",))),
        writes=(f"evaluation/predictions/{name}.parquet",),
        work=partial(evaluate_model, name),
        beside=_BESIDE,
    )


def held_out_step() -> Step:
    """Asking MPA's S-VLM about the rows that were held out of its training."""
    return Step(
        name=f"{HOLDOUT_STEP}mpa",
        reads=("judgements", "model"),
        writes=("holdout/mpa",),
        work=ask_held_out,
        beside=_BESIDE,
    )


def _model(name: str, config: Config, output: Folder) -> LocalModelSection:
    if name in (_ZERO_SHOT, _LVLM):
        return config.svlm if name == _ZERO_SHOT else config.lvlm
    trained = {"model": model_folder(output, name).uri, "revision": None}
    return config.svlm.model_copy(update=trained)


def evaluate_model(name: str, run: Run) -> Record:
    """Ask a model the benchmark's questions. Return its scores."""
    config = run.placement.config
    model = _model(name, config, run.output)
    say(f"evaluate {name}: asking {model.model}")
    return {"scores": evaluate(model, name=name, config=config, output=run.output)}


def ask_held_out(run: Run) -> Record:
    """Ask MPA's S-VLM about the held-out rows. Return what it learned and forgot."""
    say("held out: asking MPA's S-VLM again")
    config = run.placement.config
    model = _model("mpa", config, run.output)
    change = compare_on_held_out(model, name="mpa", config=config, output=run.output)
    if change["forgotten"] > change["learned"]:
        say(
            f"held out: MPA forgot more than it learned ({change['forgotten']:,} against"
            f" {change['learned']:,} of the held-out rows). The S-VLM it came from,"
            f" {config.svlm.model}, is the better one there; try --pl.replay 0.5 in a new output"
        )
    return change
