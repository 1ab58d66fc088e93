"""The Parity Leveler (PL): full fine-tuning of the S-VLM on what it lacks, with Ray Train and
DeepSpeed ZeRO.

What is trained on is an arm (`mpa_ray.training.arms`): the parity set, which is MPA itself, or one
of the paper's comparisons. Every arm leaves out the same held-out rows.
"""

import os
from typing import TYPE_CHECKING, Any

from mpa_ray.config import Config, TrainingSection
from mpa_ray.config.hyperparameters import with_hyperparameters
from mpa_ray.errors import NothingToTeach
from mpa_ray.placement import capacity, place
from mpa_ray.storage.folder import Folder
from mpa_ray.training.arms import count_rows
from mpa_ray.training.objective import objective_loader
from mpa_ray.training.set_up import Training
from mpa_ray.training.tracking import Tracking
from mpa_ray.training.train_loop import train
from mpa_ray.training.trainer import trainer_type
from mpa_ray.training.training_state import KEPT

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# Of training_log.json.
_RETURNED = (
    *("samples", "loss", "seconds", "timed_samples", "tokens_per_second"),
    *("mfu", "parameters", "workers"),
)
# Growing again costs the steps since the newest checkpoint.
_RESIZE_EVERY_S = 300.0
# What torch's allocator is set by, today and in earlier versions.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def level(
    config: Config,
    folders: list[Folder],
    *,
    name: str,
    target: Folder,
    work: Folder,
    tracking: Tracking | None = None,
) -> dict[str, Any]:
    """Train the S-VLM on `folders` and write the model to `target`. Return samples, loss, the
    seconds of the steps that are in the model (in `timed_samples` of its samples), and the workers
    that trained: for each time their group was made, its first step and how many they were.

    A lost worker costs the steps since the newest checkpoint; so does a call that is killed, when
    the same call is made again.

    Args:
        config: `svlm`, `pl` and `seed` are used.
        folders: of PARITY rows; those that hash into the held-out share are left out.
        name: of the training, unique in `work`.
        target: where the Hugging Face checkpoint goes.
        work: where checkpoints are kept until the model is written.
        tracking: where the curve is shown; nowhere, where it is not given.

    Raises:
        NothingToTeach: no row is left to train on.
        RunError: the training failed: workers were lost more often than `pl.max_failures`, or for a
            reason that stays.
        ConfigurationError: the workers refused the configuration.
    """
    settings = with_hyperparameters(config.pl, config.svlm.model)
    if not count_rows(folders, settings.holdout):
        raise NothingToTeach(
            f"{name}: no row to train on in {', '.join(folder.uri for folder in folders)}"
        )
    training = Training(
        svlm=config.svlm,
        folders=folders,
        target=target,
        progress=work.child(name),
        settings=settings,
        objective=objective_loader(settings.objective),
        seed=config.seed,
        limits={
            "max_pixels": config.svlm.max_pixels,
            "max_image_pixels": config.max_image_pixels,
            "max_image_bytes": config.max_image_bytes,
        },
        tracking=tracking or Tracking(),
    )
    capacity.wait_for(
        place.training_bundles(settings, settings.workers or 1),
        what=f"train {name}",
        fix="Set pl.workers to fewer",
        patience_s=config.cluster.patience_s,
        enough=settings.min_workers,
        labels=settings.node_labels,
    )
    capacity.refresh()
    _trainer(training, name, work).fit()
    log = target.read_json("training_log.json")
    used = {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
    return {key: log[key] for key in _RETURNED} | used


def _trainer(training: Training, name: str, work: Folder) -> "TorchTrainer":
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    settings = training.settings
    return trainer_type()(
        train,
        train_loop_config={"training": training},
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        scaling_config=_scaling(settings, ScalingConfig),
        # mypy sees the RunConfig of Ray Train 1, which Ray replaces as it is imported.
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=work.path,
            storage_filesystem=work.filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            worker_runtime_env=_runtime_env(settings),
        ),
    )


def _runtime_env(settings: TrainingSection) -> dict[str, Any]:
    """What workers on GPUs find in their environment before torch is there: memory is cut into
    segments that grow, or a GPU fragments by micro-batches of different lengths. Who sets the
    variable keeps what is set.
    """
    named = {name: os.environ[name] for name in _ALLOCATOR if name in os.environ}
    grown = named or {_ALLOCATOR[0]: "expandable_segments:True"}
    return {"env_vars": grown} if settings.gpus_per_worker else {}


def _scaling(settings: TrainingSection, scaling_config: Any) -> Any:
    workers = settings.workers or 1
    fewest = settings.min_workers or workers
    return scaling_config(
        # A pair makes the group elastic: it starts with as many workers as there is room for, and
        # is made again when nodes go or come.
        num_workers=(fewest, workers) if fewest < workers else workers,
        use_gpu=bool(settings.gpus_per_worker),
        resources_per_worker=place.bundle(cpus=settings.cpus, gpus=settings.gpus_per_worker),
        label_selector=settings.node_labels or None,
        elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
    )
