"""PL on what an arm trains on."""

import time
from collections.abc import Callable
from functools import partial

from mpa_ray.config import Config
from mpa_ray.models import families
from mpa_ray.observability import logs, telemetry
from mpa_ray.observability.progress import Watch, not_yet, say, training_line
from mpa_ray.parity_leveler import level
from mpa_ray.placement import capacity, place
from mpa_ray.schema import TRAIN_STEP
from mpa_ray.steps.annotate_and_identify import refuse_nothing
from mpa_ray.steps.checks import warn_of_size
from mpa_ray.steps.record import counts_of
from mpa_ray.steps.step import Record, Run, Step
from mpa_ray.storage.folder import Folder
from mpa_ray.training import tracking
from mpa_ray.training.arms import Arm, model_folder, reads_of, settings_of, training_folders


def train_step(arm: Arm) -> Step:
    """Training on an arm's rows."""
    model = "model" if arm.name == "mpa" else f"models/{arm.name}"
    return Step(
        name=f"{TRAIN_STEP}{arm.name}",
        reads=reads_of(arm),
        writes=(model, f"tensorboard/{arm.name}"),
        work=partial(train_arm, arm),
    )


def train_arm(arm: Arm, run: Run) -> Record:
    """Train the S-VLM on the arm's rows. Return what `level` tells of it.

    Raises:
        NothingToTeach: there is no row to train on.
    """
    config, output = run.placement.config, run.output
    refuse_nothing(counts_of(run), output)
    name, work, run_id = arm.name, output.child("checkpoints"), logs.run_id(output.uri)
    say(f"train {name}: collecting rows")
    folders = training_folders(arm, output, config)
    own = config.model_copy(update={"pl": settings_of(arm, config)})
    tracked = tracking.Tracking(
        names=config.pl.tracking, folder=output.child(f"tensorboard/{name}"), run=f"{run_id}-{name}"
    )
    with Watch(_training_line(work.child(name), name, run_id, config), stage=f"train_{name}"):
        result = level(
            own,
            folders,
            name=name,
            target=model_folder(output, name),
            work=work,
            tracking=tracked,
        )
    work.child(name).delete_folder()
    if families.count_parameters(config.svlm) is None:
        warn_of_size(config.svlm, result["parameters"])
    say(
        f"train {name}: {result['samples']:,} samples, final loss {result['loss']:.3f},"
        f" {result['seconds']:.0f} s in the loop"
    )
    return {"loop_seconds" if key == "seconds" else key: value for key, value in result.items()}


def _training_line(work: Folder, name: str, run: str, config: Config) -> Callable[[], str | None]:
    """What tells how far a training is that begins now."""
    began = time.monotonic()
    # A call that was interrupted has left its own.
    earlier = work.read_json("progress.json") if work.exists("progress.json") else None

    def line() -> str | None:
        state = work.read_json("progress.json") if work.exists("progress.json") else None
        if state is None:
            return not_yet(f"train {name}: starting", began)
        fewest = place.training_bundles(config.pl, config.pl.min_workers or config.pl.workers or 1)
        lost = capacity.shortage(fewest, what=f"train {name}", labels=config.pl.node_labels)
        if lost:
            return lost
        if state == earlier:
            return not_yet(f"train {name}: starting", began)
        telemetry.show_training(run, name, state)
        return f"train {name}: {training_line(state)}"

    return line
