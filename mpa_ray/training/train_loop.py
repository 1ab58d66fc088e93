"""What each training worker does: set up, train the S-VLM step by step, keep checkpoints, and save
the model as a Hugging Face checkpoint.

The loss is that of `pl.objective`, summed over a batch and divided by its samples.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from mpa_ray.config import TrainingSection
from mpa_ray.training.batches import Share
from mpa_ray.training.collator import IGNORED
from mpa_ray.training.mfu import mfu
from mpa_ray.training.objective import Batch, Loss
from mpa_ray.training.set_up import Training, Worker, set_up
from mpa_ray.training.tracking import Tracker, trackers
from mpa_ray.training.training_data import read_ahead
from mpa_ray.training.training_state import load_state, require_room, save_model, save_state

_BATCHES_AHEAD = 4
_TIMES_SHOWN = 20
CURVE = ["step", "loss_per_sample", "nats_per_token"]


def train(loop_config: dict[str, Training]) -> None:
    """The `train_loop_per_worker` of Ray Train."""
    training = loop_config["training"]
    trainer = Trainer(training, set_up(training))
    trainer.start()
    for share, micro_batches in trainer.batches_to_come():
        trainer.step(share, micro_batches)
        if trainer.checkpoint_is_due:
            trainer.checkpoint()
    trainer.finish()


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What steps took: their samples, the tokens and pixel values of these, and the seconds, those
    of writing checkpoints included.
    """

    samples: int = 0
    tokens: int = 0
    pixel_values: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Timed") -> "Timed":
        return Timed(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            pixel_values=self.pixel_values + other.pixel_values,
            seconds=self.seconds + other.seconds,
        )


@dataclass(kw_only=True)
class Progress:
    """How far a training is. A checkpoint keeps it.

    Attributes:
        samples: those that were learned.
        curve: a row of `CURVE` for each step.
        checkpoints: how many were made.
        groups: for each time the group of workers was made, its first step and how many they were.
        timed: all steps that are in the weights.
    """

    samples: int = 0
    curve: list[list[float]] = field(default_factory=list)
    checkpoints: int = 0
    groups: list[list[int]] = field(default_factory=list)
    timed: Timed = Timed()

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Self:
        """Return what `to_json` gave, also of a version that kept less."""
        return cls(
            samples=kept["samples"],
            curve=kept["curve"],
            checkpoints=kept.get("checkpoints", 1),
            groups=kept.get("workers", []),
            timed=Timed(**kept.get("timed", {})),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "samples": self.samples,
            "curve": self.curve,
            "checkpoints": self.checkpoints,
            "workers": self.groups,
            "timed": asdict(self.timed),
        }

    @property
    def steps(self) -> int:
        """The optimizer steps that were taken."""
        return len(self.curve)


class Trainer:
    """A worker's training: start it, step through it, finish it. All workers make the same calls.

    Args:
        training: what is trained.
        worker: what it is trained with.
    """

    def __init__(self, training: Training, worker: Worker) -> None:
        self._training = training
        self._worker = worker
        self._progress = Progress()
        # This group of workers alone; one before it may have had more or fewer.
        self._now = Timed()
        self._timed_before = Timed()
        self._started = 0.0
        # The step and the time of the newest checkpoint, and the folder that it is uploaded from.
        self._kept = (0, 0.0)
        self._local = Path(tempfile.gettempdir()) / (
            f"mpa-checkpoint-{sha256(training.progress.uri.encode()).hexdigest()[:16]}-{worker.rank}"
        )
        self._metrics: dict[str, Any] = {}
        self._trackers: list[Tracker] = []
        self._is_first = worker.rank == 0

    def start(self) -> None:
        """Resume from the newest checkpoint, where there is one.

        Raises:
            StorageError: the disk has no room for the model and its checkpoints.
        """
        self._resume()
        self._progress.groups.append([self._progress.steps + 1, self._worker.workers])
        if self._is_first:
            self._require_room()
            self._trackers = trackers(
                self._training.tracking,
                settings=self._training.settings.model_dump(mode="json"),
                done=self._progress.steps,
            )
        # A worker that was killed has left it.
        shutil.rmtree(self._local, ignore_errors=True)
        self._timed_before, self._started = self._progress.timed, time.monotonic()
        self._kept = (self._progress.steps, self._started)

    def _resume(self) -> None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        worker = self._worker
        # DeepSpeed makes Adam's state with the first step; what this one does to the weights is
        # overwritten.
        _, micro_batches = next(worker.batches.after(0))
        take_step(worker.engine, worker.loss, micro_batches, scale=0.0, rate=0.0)
        self._progress = Progress.of_json(load_state(worker.engine, checkpoint))

    def _require_room(self) -> None:
        size, settings = self._worker.size, self._training.settings
        to_go = self._worker.batches.steps - 1 - self._progress.steps
        if settings.checkpoint_every:
            to_come = to_go // settings.checkpoint_every
        else:
            # Before the first step nobody knows how long one takes.
            taken = self._progress.steps - self._kept[0]
            a_step = self._now.seconds / taken if taken else 0.0
            to_come = math.ceil(to_go * a_step / settings.checkpoint_every_s)
        require_room(
            self._training.target,
            parameters=size.parameters,
            trained=size.trained,
            dtype=self._worker.published_dtype,
            written=self._progress.checkpoints,
            to_come=to_come,
        )

    def batches_to_come(self) -> Iterator[tuple[Share, list[Batch]]]:
        """Return the worker's share of every step to come, read ahead."""
        batches = partial(self._worker.batches.after, self._progress.samples)
        return read_ahead(batches, _BATCHES_AHEAD)

    def step(self, share: Share, micro_batches: list[Batch]) -> None:
        """Learn one batch, and show how far the training is."""
        worker, progress = self._worker, self._progress
        rate = learning_rate(progress.steps, worker.batches.steps, self._training.settings)
        # DeepSpeed averages gradients over the workers; the loss divides their sum by the samples
        # of the whole batch.
        loss, learned, tokens, pixel_values = take_step(
            worker.engine,
            worker.loss,
            micro_batches,
            scale=worker.workers / share.batch_size,
            rate=rate,
        )
        progress.samples += share.batch_size
        progress.curve.append([progress.steps + 1, loss / share.batch_size, loss / learned])
        self._now = Timed(
            samples=self._now.samples + share.batch_size,
            tokens=self._now.tokens + int(tokens),
            pixel_values=self._now.pixel_values + int(pixel_values),
            seconds=time.monotonic() - self._started,
        )
        progress.timed = self._timed_before + self._now
        self._metrics = self._measured()
        self._show(rate)

    @property
    def _is_done(self) -> bool:
        return self._progress.samples >= len(self._worker.batches.order)

    def _measured(self) -> dict[str, Any]:
        """Return what progress.json and training_log.json say after a step."""
        worker, progress, now = self._worker, self._progress, self._now
        flops = worker.size.flops.of(tokens=now.tokens, pixel_values=now.pixel_values)
        to_come = len(worker.batches.order) - progress.samples
        return {
            "samples": progress.samples,
            "of": len(worker.batches.order),
            "loss": progress.curve[-1][1],
            "tokens_per_second": progress.timed.tokens / progress.timed.seconds,
            "mfu": mfu(
                flops_per_second=flops / now.seconds,
                workers=worker.workers,
                gpu=worker.gpu,
            ),
            "seconds_to_go": now.seconds * to_come / now.samples,
            "workers": progress.groups,
            "timed_samples": progress.timed.samples,
            "seconds": progress.timed.seconds,
            "written": time.time(),
        }

    def _show(self, rate: float) -> None:
        """Log a step to the trackers, and bring it to where people look some twenty times."""
        progress, metrics = self._progress, self._metrics
        values = dict(zip(CURVE[1:], progress.curve[-1][1:], strict=True)) | {
            "learning_rate": rate,
            "tokens_per_second": metrics["tokens_per_second"],
        }
        if metrics["mfu"] is not None:
            values["mfu"] = metrics["mfu"]
        for tracker in self._trackers:
            tracker.log(progress.steps, values)
        show_every = max(1, self._worker.batches.steps // _TIMES_SHOWN)
        if self._is_first and (progress.steps % show_every == 0 or self._is_done):
            self._training.progress.write_json("progress.json", metrics)
            for tracker in self._trackers:
                tracker.keep()

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint is to be made after the last step, the same on all workers: the
        first one's clock counts, and none is still uploading the one before.
        """
        if self._is_done:
            return False
        step, at = self._kept
        wanted = is_due(
            self._training.settings,
            steps=self._progress.steps - step,
            seconds=time.monotonic() - at,
        )
        wanting, uploading = over_workers(
            self._worker.engine, [self._is_first and wanted, self._local.exists()]
        )
        return bool(wanting) and not uploading

    def checkpoint(self) -> None:
        """Keep what a restart on any number of workers resumes from. It is uploaded while training
        goes on.
        """
        import ray.train
        from ray.train import CheckpointUploadMode

        worker = self._worker
        if self._is_first and not self._progress.checkpoints:
            self._require_room()
        self._progress.checkpoints += 1
        self._kept = (self._progress.steps, time.monotonic())
        self._local.mkdir(mode=0o700)
        save_state(worker.engine, self._local, self._progress.to_json(), rank=worker.rank)
        # Only a checkpoint is reported to Ray, which removes the folder when it is uploaded.
        ray.train.report(
            self._metrics,
            checkpoint=ray.train.Checkpoint.from_directory(self._local),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def finish(self) -> None:
        """Save the trained model and the log of its training."""
        worker, target = self._worker, self._training.target
        for tracker in self._trackers:
            tracker.close()
        save_model(
            worker.engine,
            worker.processor,
            target,
            dtype=worker.published_dtype,
            rank=worker.rank,
        )
        if self._is_first:
            log = {
                "parameters": worker.size.parameters,
                "columns": CURVE,
                "rows": self._progress.curve,
            }
            target.write_json("training_log.json", self._metrics | log)


def is_due(settings: TrainingSection, *, steps: int, seconds: float) -> bool:
    """Whether a checkpoint is to be made, so many steps and seconds after the one before."""
    if settings.checkpoint_every:
        return steps >= settings.checkpoint_every
    return seconds >= settings.checkpoint_every_s


def over_workers(engine: Any, values: Sequence[float]) -> list[float]:
    """Each of `values` summed over all workers, which must all call it."""
    import torch

    total = torch.tensor(values, dtype=torch.float64)
    if engine.world_size > 1:
        summed = total.to(engine.device)
        torch.distributed.all_reduce(summed)
        total = summed.cpu()
    found: list[float] = total.tolist()
    return found


def learning_rate(step: int, steps: int, settings: TrainingSection) -> float:
    """Of the optimizer step `step` (from 0): a linear warm-up, then a cosine down to a tenth of the
    peak.
    """
    assert settings.learning_rate is not None
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def taught_tokens(batch: Batch) -> int:
    """Tokens of the samples that teach something, prompts included; samples that only fill up a
    worker's share are left out.
    """
    return int(batch["attention_mask"][(batch["labels"] != IGNORED).any(1)].sum())


def taught_pixel_values(batch: Batch) -> int:
    """Numbers in `pixel_values` of the samples that teach something, the share that is theirs where
    images differ in size.
    """
    if "pixel_values" not in batch:
        return 0
    taught = (batch["labels"] != IGNORED).any(1).float().mean()
    return round(batch["pixel_values"].numel() * float(taught))


def take_step(
    engine: Any, loss_of: Loss, micro_batches: list[Batch], *, scale: float, rate: float
) -> tuple[float, float, float, float]:
    """Take one optimizer step with the loss `loss_of`. Return, summed over all workers: the loss,
    the answer tokens, and the tokens and pixel values of samples that are learned.
    """
    import torch

    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    losses, learned, tokens, pixel_values = [], 0, 0, 0
    for number, batch in enumerate(micro_batches):
        moved = {
            name: value
            if name == "labels"
            else value.to(
                engine.device,
                engine.module.dtype if value.is_floating_point() else None,
                # Held in pinned memory until the step is done, and copied beside its work.
                non_blocking=True,
            )
            for name, value in batch.items()
        }
        loss, answered = loss_of(engine, moved)
        engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
        engine.backward(loss * scale)
        engine.step()
        losses.append(loss.detach())
        learned += answered
        tokens += taught_tokens(batch)
        pixel_values += taught_pixel_values(batch)
    # The GPU is waited for once a step, here.
    loss_of_all = float(torch.stack(losses).double().sum())
    found = over_workers(engine, [loss_of_all, learned, tokens, pixel_values])
    return found[0], found[1], found[2], found[3]
