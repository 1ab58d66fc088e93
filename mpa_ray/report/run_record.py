"""What run.json says of training and evaluation, from the records of a run's steps."""

from collections.abc import Mapping
from typing import Any

from mpa_ray.schema import CHANGES, EVALUATE_STEP, HOLDOUT_STEP, TRAIN_STEP

Record = dict[str, Any]


def training_of(steps: Mapping[str, Record]) -> dict[str, Record]:
    """How each S-VLM was trained, by its arm, with what it learned and forgot where that is known.

    Args:
        steps: the records of finished steps by their names.
    """
    found = {
        name.removeprefix(TRAIN_STEP): {key: step[key] for key in step if key != "calls"}
        for name, step in steps.items()
        if name.startswith(TRAIN_STEP)
    }
    for arm, record in found.items():
        if change := steps.get(f"{HOLDOUT_STEP}{arm}"):
            # A record of an earlier version does not know of all of them.
            record["holdout"] = {name: change[name] for name in CHANGES if name in change}
    return found


def evaluation_of(steps: Mapping[str, Record]) -> list[Record]:
    """The scores of the models that were asked the benchmark's questions."""
    return [
        score
        for name, step in steps.items()
        if name.startswith(EVALUATE_STEP)
        for score in step["scores"]
    ]
