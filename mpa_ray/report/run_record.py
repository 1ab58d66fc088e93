"""What run.json says: its keys, and what of them follows from the records of a run's steps."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from mpa_ray.schema import CHANGES, EVALUATE_STEP, HOLDOUT_STEP, TRAIN_STEP
from mpa_ray.stages.commits import Counts

Record = dict[str, Any]


class Training(TypedDict, total=False):
    """How one S-VLM was trained.

    Attributes:
        samples: trained on, over all epochs.
        loss: of the last step, a sample.
        seconds: of the step, over all calls. loop_seconds: of the optimizer steps in the weights.
        timed_samples: the samples of these optimizer steps.
        tokens_per_second: over all workers. mfu: model FLOPs utilization; None where the GPU's peak
            is not known.
        parameters: of the model.
        workers: for each time their group was made, its first step and how many they were.
        batch_size, learning_rate: as they were used.
        holdout: what became of the held-out rows, by `schema.CHANGES`.
    """

    samples: int
    loss: float
    seconds: float
    loop_seconds: float
    timed_samples: int
    tokens_per_second: float
    mfu: float | None
    parameters: int
    workers: list[list[int]]
    batch_size: int
    learning_rate: float
    holdout: dict[str, int]


class Score(TypedDict):
    """What one model scored by one metric: `evaluation/metrics.json` is a list of these.

    Attributes:
        model: "zero_shot", "mpa", a comparison, or "lvlm".
        benchmark: the name of its file. metric: one of `tasks.METRICS`.
        score: in percent. ci95: its interval, or None where the metric has no score a question.
        n: questions.
        by_kind: kind of question -> [percent, questions].
    """

    model: str
    benchmark: str
    metric: str
    score: float
    ci95: list[float] | None
    n: int
    by_kind: dict[str, list[Any]]


class RunRecord(Counts, total=False):
    """run.json: the counts, and

    Attributes:
        config: the configuration, with what the cluster decided. versions: of packages.
        placement: what ran where, and why.
        seconds: of annotating and identifying, over all calls.
        training: by arm. evaluation: the official metric of a model first.
        ledger: what was paid, by step. cost_usd: the same in dollars, where there are prices.
        stages: seconds of each step, in the order in which they ran. wall_seconds: of all, those at
            the same time counted once.
        rounds, kept_round, stopped: of a run of several rounds: a point a round, the round whose
            model was kept, and why there was no further one.
    """

    config: dict[str, Any]
    versions: dict[str, str]
    placement: dict[str, Any]
    seconds: float
    training: dict[str, Training]
    evaluation: list[Score]
    ledger: dict[str, dict[str, Any]]
    cost_usd: dict[str, float]
    stages: dict[str, float]
    wall_seconds: float
    rounds: list[dict[str, Any]]
    kept_round: int
    stopped: str


def training_of(steps: Mapping[str, Record]) -> dict[str, Training]:
    """How each S-VLM was trained, by its arm, with what it learned and forgot where that is known.

    Args:
        steps: the records of finished steps by their names.
    """
    found: dict[str, Training] = {}
    for name, step in steps.items():
        if not name.startswith(TRAIN_STEP):
            continue
        arm = name.removeprefix(TRAIN_STEP)
        record = {key: value for key, value in step.items() if key != "calls"}
        if change := steps.get(f"{HOLDOUT_STEP}{arm}"):
            # A record of an earlier version does not know of all of them.
            record["holdout"] = {key: change[key] for key in CHANGES if key in change}
        found[arm] = cast(Training, record)
    return found


def evaluation_of(steps: Mapping[str, Record]) -> list[Score]:
    """The scores of the models that were asked the benchmark's questions."""
    return [
        score
        for name, step in steps.items()
        if name.startswith(EVALUATE_STEP)
        for score in step["scores"]
    ]
