"""What a training worker sets up: the samples, the S-VLM, the objective, and DeepSpeed ZeRO."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_ray.config import LocalModelSection, TrainingSection
from mpa_ray.models import checkpoint as models
from mpa_ray.models import families
from mpa_ray.models.chat_template import (
    end_tokens,
    image_arguments,
    load_processor,
    settle_generation,
)
from mpa_ray.models.patch_embedding import as_matrix_products
from mpa_ray.storage.folder import Folder
from mpa_ray.training.batches import Batches
from mpa_ray.training.collator import Collator
from mpa_ray.training.mfu import Flops, flops_of
from mpa_ray.training.objective import LoadObjective, Loss
from mpa_ray.training.tracking import Tracking
from mpa_ray.training.training_data import TrainingSet

if TYPE_CHECKING:
    import torch


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

    svlm: LocalModelSection
    folders: list[Folder]
    target: Folder
    progress: Folder
    settings: TrainingSection
    objective: LoadObjective
    seed: int
    limits: dict[str, int]
    tracking: Tracking


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the S-VLM is.

    Attributes:
        parameters: all of them.
        trained: those that are trained.
        flops: of forward and backward passes.
    """

    parameters: int
    trained: int
    flops: Flops


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker trains with, the same from its first step to its last.

    Attributes:
        rank: of the worker.
        workers: how many there are.
        engine: DeepSpeed's, around the model.
        processor: the S-VLM's.
        loss: the objective's.
        batches: the worker's.
        size: of the model.
        published_dtype: the precision that the S-VLM was published in.
        gpu: the GPU's name, empty on the CPU.
    """

    rank: int
    workers: int
    engine: Any
    processor: Any
    loss: Loss
    batches: Batches
    size: Size
    published_dtype: "torch.dtype"
    gpu: str


def set_up(training: Training) -> Worker:
    """Return what this worker of Ray Train trains with. All workers must call it."""
    settings = training.settings
    _choose_device(settings)
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(training.seed)
    # Read before the model is loaded, so that what cannot be read is told early.
    samples = TrainingSet(training.folders, holdout=settings.holdout, **training.limits)
    orders = [samples.order(training.seed + epoch) for epoch in range(settings.epochs)]
    model, processor, published_dtype = load_svlm(training.svlm, settings.precision)
    collator = Collator(
        processor, end_tokens=end_tokens(model), image_arguments=image_arguments(training.svlm)
    )
    objective = training.objective(model, collator, settings)
    model = _with_settings(model, settings)
    return Worker(
        rank=rank,
        workers=workers,
        # Before DeepSpeed splits the weights over the workers.
        size=_size_of(model),
        engine=_deepspeed_engine(model, settings, workers),
        processor=processor,
        loss=objective.loss,
        batches=Batches(
            samples=samples,
            order=np.concatenate(orders),
            collate=objective.collate,
            settings=settings,
            rank=rank,
            workers=workers,
            dtype=model.dtype,
        ),
        published_dtype=published_dtype,
        gpu=torch.cuda.get_device_name() if settings.gpus_per_worker else "",
    )


def _choose_device(settings: TrainingSection) -> None:
    """Make DeepSpeed train on the CPU where `pl.gpus_per_worker` is 0. It reads the variable when
    it is imported.
    """
    if settings.gpus_per_worker:
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch

    # Compiling the shared-memory collectives takes minutes and pays only for large CPU jobs; gloo
    # does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(max(1, int(settings.cpus)))


def load_svlm(svlm: LocalModelSection, precision: str) -> tuple[Any, Any, "torch.dtype"]:
    """The S-VLM to train, in `precision`; its processor; and the precision its weights were
    published in.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    families.check_loaded("svlm.model", svlm, trained=True)
    source = {"pretrained_model_name_or_path": models.local(svlm.model), **models.arguments(svlm)}
    model = AutoModelForImageTextToText.from_pretrained(**source, dtype=getattr(torch, precision))
    as_matrix_products(model)
    processor = load_processor(svlm)
    settle_generation(model, processor)
    return model, processor, families.published_dtype(source) or model.dtype


def _with_settings(model: Any, settings: TrainingSection) -> Any:
    """Return the model with gradient checkpointing and LoRA as they are set."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return with_lora(model, settings.lora_rank) if settings.lora_rank else model


def _size_of(model: Any) -> Size:
    parameters = list(model.parameters())
    return Size(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        flops=flops_of(model),
    )


def _deepspeed_engine(model: Any, settings: TrainingSection, workers: int) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw(model, settings),
        config=deepspeed_config(settings, workers),
    )
    engine.train()
    return engine


def adamw(model: Any, settings: TrainingSection) -> "torch.optim.AdamW":
    """The optimizer of the weights that are trained."""
    import torch

    assert settings.learning_rate is not None
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        # Without it, a step holds up to 8 bytes a parameter more, which matters on a GPU, and where
        # a node's memory stands in for it.
        fused=bool(settings.gpus_per_worker or settings.offload),
    )


def with_lora(model: Any, rank: int) -> Any:
    """The model with adapters on all its linear layers, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )


def deepspeed_config(settings: TrainingSection, workers: int) -> dict[str, Any]:
    """DeepSpeed's settings. We set the accumulation's boundaries ourselves, because a last batch
    has fewer micro-batches.
    """
    # On GPUs, workers exchange gradients during the backward pass: without NVLink that takes
    # as long as the pass itself. Each of two buckets takes 0.4 GB.
    reduction = (
        {"overlap_comm": True, "reduce_bucket_size": 200_000_000}
        if settings.gpus_per_worker
        else {}
    )
    offload = (
        {"offload_optimizer": {"device": "cpu", "pin_memory": bool(settings.gpus_per_worker)}}
        if settings.offload
        else {}
    )
    return {
        "train_batch_size": settings.micro_batch_size * workers,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        # Gradients are summed over micro-batches and workers in the precision they are computed in,
        # as other trainers do (docs/placement.md has the reason).
        "data_types": {"grad_accum_dtype": settings.precision},
        "zero_optimization": {"stage": settings.zero_stage or 2} | reduction | offload,
        # The optimizer is torch's AdamW: DeepSpeed's own ones are compiled at first use, and it has
        # tested only those with ZeRO.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
    }
