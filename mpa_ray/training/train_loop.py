"""What each training worker does: load the S-VLM, train all of it with DeepSpeed ZeRO, save it as a
Hugging Face checkpoint.

The loss is that of `pl.objective`, summed over a batch and divided by its samples.
"""

import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_ray.config import LevelSection, ModelSection
from mpa_ray.models import checkpoint as models
from mpa_ray.models import families
from mpa_ray.models.chat_template import (
    end_tokens,
    image_arguments,
    load_processor,
    settle_generation,
)
from mpa_ray.storage.folder import Folder
from mpa_ray.training.collator import IGNORED, Collator
from mpa_ray.training.mfu import flops_per_token, mfu
from mpa_ray.training.objective import Batch, LoadObjective, Loss
from mpa_ray.training.tracking import Tracking, trackers
from mpa_ray.training.training_data import Sample, TrainingSet, read_ahead
from mpa_ray.training.training_state import load_state, require_room, save_model, save_state

if TYPE_CHECKING:
    import torch

_BATCHES_AHEAD = 4
_TIMES_SHOWN = 20
CURVE = ["step", "loss_per_sample", "nats_per_token"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a worker gets.

    Attributes:
        svlm: the S-VLM to start from.
        folders: PARITY folders to train on.
        target: where the trained model goes.
        progress: where the first worker writes progress.json for those who watch.
        limits: of decoding: max_pixels, max_image_pixels, max_image_bytes.
        objective: makes what training minimizes.
        tracking: where the first worker shows the curve.
    """

    svlm: ModelSection
    folders: list[Folder]
    target: Folder
    progress: Folder
    settings: LevelSection
    objective: LoadObjective
    seed: int
    limits: dict[str, int]
    tracking: Tracking


@dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's part of one optimizer step: micro-batches of (indices, how many of them are
    learned), the same number for all workers.
    """

    micro_batches: list[tuple[list[int], int]]
    batch_size: int

    @property
    def learned(self) -> int:
        return sum(learned for _, learned in self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What steps took: their samples, the tokens of these, and the seconds, those of writing
    checkpoints included.
    """

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Timed") -> "Timed":
        return Timed(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
        )


def shares(
    order: np.ndarray,
    *,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    workers: int,
    start: int = 0,
) -> Iterator[Share]:
    """The worker's share of every step from sample `start` of `order` on. Every sample is learned
    exactly once, by one worker.

    A last batch that is not full is trained on as it is. Where a batch does not divide evenly,
    workers repeat a sample without learning it, so that all of them make the same calls: ZeRO waits
    for each.
    """
    for first in range(start, len(order), batch_size):
        batch = order[first : first + batch_size]
        per_worker = -(-len(batch) // workers)
        own = batch[rank * per_worker : (rank + 1) * per_worker].tolist()
        learned = len(own)
        own += [int(batch[0])] * (per_worker - learned)
        micro = [
            (own[begin : begin + micro_batch_size], max(0, min(micro_batch_size, learned - begin)))
            for begin in range(0, per_worker, micro_batch_size)
        ]
        yield Share(micro_batches=micro, batch_size=len(batch))


def of_like_length(
    micro_batches: list[list[Sample]], *, learned: int
) -> list[tuple[list[Sample], int]]:
    """The samples of a step in micro-batches of the same sizes, short ones with short ones, so that
    little of a batch is padding. Gradients add up over the step, so nothing else changes. With each
    comes how many of it are learned: the first `learned` samples of all.

    How long a sample is for the model is estimated, alike for all families: pixels by 28 x 28, and
    characters by four.
    """

    def length(sample: Sample) -> float:
        return (
            sample.image.width * sample.image.height / 784
            + (len(sample.question) + len(sample.answer)) / 4
        )

    samples = [sample for micro_batch in micro_batches for sample in micro_batch]
    ordered = iter(sorted(samples[:learned], key=length) + samples[learned:])
    found, begun = [], 0
    for micro_batch in micro_batches:
        size = len(micro_batch)
        found.append(([next(ordered) for _ in range(size)], max(0, min(size, learned - begun))))
        begun += size
    return found


def learning_rate(step: int, steps: int, settings: LevelSection) -> float:
    """Of the optimizer step `step` (from 0): a linear warm-up, then a cosine down to a tenth of the
    peak.
    """
    assert settings.learning_rate is not None
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def load_svlm(svlm: ModelSection, precision: str) -> tuple[Any, Any, "torch.dtype"]:
    """The S-VLM to train, in `precision`; its processor; and the precision its weights were
    published in.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    families.check_loaded("svlm.model", svlm, trained=True)
    source = {"pretrained_model_name_or_path": models.local(svlm.model), **models.arguments(svlm)}
    model = AutoModelForImageTextToText.from_pretrained(**source, dtype=getattr(torch, precision))
    processor = load_processor(svlm)
    settle_generation(model, processor)
    return model, processor, families.published_dtype(source) or model.dtype


def train(loop_config: dict[str, Training]) -> None:
    """The `train_loop_per_worker` of Ray Train."""
    training = loop_config["training"]
    settings = training.settings
    batch_size = settings.batch_size
    assert batch_size is not None and settings.learning_rate is not None
    on_cpu = settings.gpus_per_worker == 0
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import ray.train
    import torch

    if on_cpu:
        # Compiling the shared-memory collectives takes minutes and pays only for large CPU jobs;
        # gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(training.seed)

    samples = TrainingSet(training.folders, holdout=settings.holdout, **training.limits)
    order = np.concatenate(
        [samples.order(training.seed + epoch) for epoch in range(settings.epochs)]
    )
    steps = math.ceil(len(order) / batch_size)
    show_every = max(1, steps // _TIMES_SHOWN)

    model, processor, published_dtype = load_svlm(training.svlm, settings.precision)
    collator = Collator(
        processor, end_tokens=end_tokens(model), image_arguments=image_arguments(training.svlm)
    )
    objective = training.objective(model, collator, settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.lora_rank:
        model = with_lora(model, settings.lora_rank)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = flops_per_token(model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(settings, workers)
    )
    engine.train()
    card = "" if on_cpu else torch.cuda.get_device_name()

    def batches(start: int) -> Iterator[tuple[Share, list[Batch]]]:
        for share in shares(
            order,
            batch_size=batch_size,
            micro_batch_size=settings.micro_batch_size,
            rank=rank,
            workers=workers,
            start=start,
        ):
            drawn = of_like_length(
                [[samples[index] for index in indices] for indices, _ in share.micro_batches],
                learned=share.learned,
            )
            yield (
                share,
                [objective.collate(micro_batch, learned=count) for micro_batch, count in drawn],
            )

    done, curve, groups = 0, [], []
    before = Timed()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        # DeepSpeed makes Adam's state with the first step; what this one does to the weights is
        # overwritten.
        take_step(engine, objective.loss, next(batches(0))[1], scale=0.0, rate=0.0)
        progress = load_state(engine, checkpoint)
        done, curve, groups = progress["samples"], progress["curve"], progress.get("workers", [])
        before = Timed(**progress.get("timed", {}))
    groups = [*groups, [len(curve) + 1, workers]]
    if rank == 0:
        written, last = (
            len(curve) // settings.checkpoint_every,
            (steps - 1) // settings.checkpoint_every,
        )
        room = {"parameters": parameters, "trained": trained, "dtype": published_dtype}
        require_room(training.target, **room, written=written, to_come=last - written)

    shown = (
        trackers(training.tracking, settings=settings.model_dump(mode="json"), done=len(curve))
        if rank == 0
        else []
    )
    now, started, metrics = Timed(), time.monotonic(), {}
    for share, micro_batches in read_ahead(partial(batches, done), _BATCHES_AHEAD):
        # DeepSpeed averages gradients over the workers; the loss divides their sum by the samples
        # of the whole batch.
        rate = learning_rate(len(curve), steps, settings)
        loss, learned, seen = take_step(
            engine, objective.loss, micro_batches, scale=workers / share.batch_size, rate=rate
        )
        done += share.batch_size
        curve.append([len(curve) + 1, loss / share.batch_size, loss / learned])
        # This group's, which may have more workers than one before it or fewer; and those of all
        # steps that are in the weights.
        now = Timed(
            samples=now.samples + share.batch_size,
            tokens=now.tokens + int(seen),
            seconds=time.monotonic() - started,
        )
        timed = before + now
        metrics = {
            "samples": done,
            "of": len(order),
            "loss": curve[-1][1],
            "tokens_per_second": timed.tokens / timed.seconds,
            "mfu": mfu(
                tokens_per_second=now.tokens / now.seconds,
                flops_per_token=flops,
                workers=workers,
                card=card,
            ),
            "seconds_to_go": now.seconds * (len(order) - done) / now.samples,
            "workers": groups,
            "timed_samples": timed.samples,
            "seconds": timed.seconds,
            "written": time.time(),
        }
        values = dict(zip(CURVE[1:], curve[-1][1:], strict=True)) | {
            "learning_rate": rate,
            "tokens_per_second": metrics["tokens_per_second"],
        }
        if metrics["mfu"] is not None:
            values["mfu"] = metrics["mfu"]
        for tracker in shown:
            tracker.log(len(curve), values)
        if rank == 0 and (len(curve) % show_every == 0 or done >= len(order)):
            training.progress.write_json("progress.json", metrics)
            for tracker in shown:
                tracker.keep()
        # Only a checkpoint is reported to Ray: each report waits until the controller, which looks
        # every second or two, has seen it.
        if done < len(order) and len(curve) % settings.checkpoint_every == 0:
            with tempfile.TemporaryDirectory() as folder:
                kept = {"samples": done, "curve": curve, "workers": groups, "timed": asdict(timed)}
                save_state(engine, Path(folder), kept, rank=rank, workers=workers)
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    for tracker in shown:
        tracker.close()
    save_model(engine, processor, training.target, dtype=published_dtype, rank=rank)
    if rank == 0:
        log = {"columns": CURVE, "rows": curve}
        training.target.write_json("training_log.json", metrics | {"parameters": parameters} | log)


def taught_tokens(batch: Batch) -> int:
    """Tokens of the samples that teach something, prompts included; samples that only fill up a
    worker's share are left out.
    """
    return int(batch["attention_mask"][(batch["labels"] != IGNORED).any(1)].sum())


def take_step(
    engine: Any, loss_of: Loss, micro_batches: list[Batch], *, scale: float, rate: float
) -> tuple[float, float, float]:
    """One optimizer step. Gives back, summed over all workers: the loss, the answer tokens, the
    tokens of samples that are learned.
    """
    import torch

    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    losses, learned, tokens = [], 0, 0
    for number, batch in enumerate(micro_batches):
        moved = {
            name: value
            if name == "labels"
            else value.to(engine.device, engine.module.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }
        loss, answered = loss_of(engine, moved)
        engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
        engine.backward(loss * scale)
        engine.step()
        losses.append(loss.detach())
        learned += answered
        tokens += taught_tokens(batch)
    # The card is waited for once a step, here.
    total = torch.tensor(
        [float(torch.stack(losses).double().sum()), learned, tokens], dtype=torch.float64
    )
    if engine.world_size > 1:
        summed = total.to(engine.device)
        torch.distributed.all_reduce(summed)
        total = summed.cpu()
    return tuple(total.tolist())


def with_lora(model: Any, rank: int) -> Any:
    """The model with adapters on all its linear layers, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )


def deepspeed_config(settings: LevelSection, workers: int) -> dict[str, Any]:
    """DeepSpeed's settings. We set the accumulation's boundaries ourselves, because a last batch
    has fewer micro-batches.
    """
    return {
        "train_batch_size": settings.micro_batch_size * workers,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        "zero_optimization": {"stage": settings.zero_stage or 2},
        # The optimizer is torch's AdamW: DeepSpeed's own ones are compiled at first use, and it has
        # tested only those with ZeRO.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
    }
