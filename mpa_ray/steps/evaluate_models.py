"""The benchmark's questions for each model, and the held-out rows for MPA's."""

from collections.abc import Iterator, Mapping, Sequence

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.observability.progress import say
from mpa_ray.schema import EVALUATE_STEP, HOLDOUT_STEP
from mpa_ray.stages.ask_in_turn import Questions, ask_in_turn
from mpa_ray.stages.evaluate import benchmark_questions, scores_of
from mpa_ray.stages.held_out import changes_of, held_out_questions
from mpa_ray.steps.step import InTurn, Record, Run, Step
from mpa_ray.storage.folder import Folder
from mpa_ray.training.arms import arms, model_folder

_ZERO_SHOT, _LVLM = "zero_shot", "lvlm"
_HOLDOUT = f"{HOLDOUT_STEP}mpa"


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
        work=_ASKING,
    )


def held_out_step() -> Step:
    """Asking MPA's S-VLM about the rows that were held out of its training."""
    return Step(
        name=_HOLDOUT,
        reads=("judgements", "model"),
        writes=("holdout/mpa",),
        work=_ASKING,
    )


def lanes(run: Run, steps: Sequence[str]) -> list[list[str]]:
    """Which models one pool of engines is asked in turn: the S-VLM before and after training, in as
    many pools as may be asked at once, and the L-VLM by itself.
    """
    lvlm = f"{EVALUATE_STEP}{_LVLM}"
    svlms = [name for name in steps if name != lvlm]
    at_once = run.config.evaluate.models_at_once
    found = [svlms[first::at_once] for first in range(at_once)] + [[lvlm] if lvlm in steps else []]
    return [lane for lane in found if lane]


def ask(run: Run, steps: Sequence[str]) -> Iterator[Record]:
    """Ask the models of a lane, and give the record of each step."""
    config, output = run.placement.config, run.output
    sets = [_questions(step, config, output) for step in steps]
    answered = ask_in_turn(sets, config=config, output=output)
    for step, asked, parts in zip(steps, sets, answered, strict=True):
        name = _model_name(step)
        if step == _HOLDOUT:
            say("held out: asking MPA's S-VLM again")
            found = changes_of(parts, asked, name=name, config=config, output=output)
            _say_forgotten(found, config)
            yield dict(found)
        else:
            say(f"evaluate {name}: asking {asked.model.model}")
            scores = scores_of(parts, asked, name=name, config=config, output=output)
            yield {"scores": scores}


_ASKING = InTurn(lanes=lanes, work=ask)


def _questions(step: str, config: Config, output: Folder) -> Questions:
    name = _model_name(step)
    model = _model(name, config, output)
    find = held_out_questions if step == _HOLDOUT else benchmark_questions
    return find(model, name=name, config=config, output=output)


def _model_name(step: str) -> str:
    return step.removeprefix(EVALUATE_STEP).removeprefix(HOLDOUT_STEP)


def _model(name: str, config: Config, output: Folder) -> LocalModelSection:
    if name in (_ZERO_SHOT, _LVLM):
        return config.svlm if name == _ZERO_SHOT else config.lvlm
    trained = {"model": model_folder(output, name).uri, "revision": None}
    return config.svlm.model_copy(update=trained)


def _say_forgotten(change: Mapping[str, int], config: Config) -> None:
    if change["forgotten"] > change["learned"]:
        say(
            f"held out: MPA forgot more than it learned ({change['forgotten']:,} against"
            f" {change['learned']:,} of the held-out rows). The S-VLM it came from,"
            f" {config.svlm.model}, is the better one there; try --pl.replay 0.5 in a new output"
        )
