"""PL on what an arm trains on."""

import time
from collections.abc import Callable
from typing import Any

from mpa_ray.config import Config
from mpa_ray.models import families
from mpa_ray.observability import logs, telemetry
from mpa_ray.observability.progress import Watch, not_yet, say, training_line
from mpa_ray.parity_leveler import level
from mpa_ray.placement import capacity, place
from mpa_ray.stages import step_times
from mpa_ray.steps.checks import warn_of_size
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease
from mpa_ray.training import tracking
from mpa_ray.training.arms import Arm, model_folder, settings_of, training_folders


def train_arm(arm: Arm, config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    """Trains an arm."""
    target = model_folder(output, arm.name)
    work = output.child("checkpoints")

    def training() -> dict[str, Any]:
        say(f"train {arm.name}: collecting rows")
        folders = training_folders(arm, output, config)
        watched = _training_line(work.child(arm.name), arm.name, logs.run_id(output.uri), config)
        own = config.model_copy(update={"pl": settings_of(arm, config)})
        curve = output.child(f"tensorboard/{arm.name}")
        tracked = tracking.Tracking(
            names=config.pl.tracking, folder=curve, run=f"{logs.run_id(output.uri)}-{arm.name}"
        )
        with Watch(watched, stage=f"train_{arm.name}"):
            result = level(own, folders, name=arm.name, target=target, work=work, tracking=tracked)
        work.child(arm.name).delete_folder()
        if families.count_parameters(config.svlm) is None:
            warn_of_size(config.svlm, result["parameters"])
        say(
            f"train {arm.name}: {result['samples']:,} samples, final loss {result['loss']:.3f},"
            f" {result['seconds']:.0f} s in the loop"
        )
        return {"loop_seconds" if key == "seconds" else key: value for key, value in result.items()}

    return step_times.once(output, f"train_{arm.name}", training, held)


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
