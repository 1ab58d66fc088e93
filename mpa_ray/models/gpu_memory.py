"""What fits on a GPU: weights and KV cache while a model is served, Adam's state while it is
trained. Arithmetic alone.
"""

import math
from collections.abc import Sequence

from mpa_ray.config import LocalModelSection
from mpa_ray.models.size import GIB, ModelSize

# The share of a GPU that an engine takes; the rest is the driver's and what fragments.
USED = 0.9
# Of a GPU, beside weights and KV cache: the CUDA context, graphs, and the activations of a prefill
# and of the vision tower, of up to 16,384 tokens at a time (the MLP of a model of 7 billion
# parameters: 18,944 x 2 numbers a token, 1.2 GB).
ENGINE_GIB = 4.0
# The share of a GPU that a training fills; the rest is the driver's, and what fragments though
# segments can grow.
TRAINED_IN = 0.95
# Of a GPU in training: the contexts of CUDA and NCCL, and two buckets to reduce gradients in.
_BESIDE_GIB = 1.75
# DeepSpeed's default.
_LIVE_PARAMETERS = 1_000_000_000
# The activations of a sample with gradient checkpointing.
_ACTIVATIONS_GIB = 1.25
TEXT_TOKENS = 384
_MOST_IN_FLIGHT = 128

# Memory by Ray's accelerator types, as the driver reports it. An A100 of unknown size is taken for
# the small one.
_GPU_GIB = {
    "T4": 15.0,
    "V100": 16.0,
    "P100": 16.0,
    "A10G": 22.5,
    "A10": 22.5,
    "L4": 22.5,
    "A100-40G": 39.5,
    "A100": 39.5,
    "L40": 45.0,
    "L40S": 45.0,
    "RTX-A6000": 48.0,
    "A6000": 48.0,
    "RTX-6000": 48.0,
    "A100-80G": 79.2,
    "H100": 79.6,
    "H20": 95.6,
    "RTX-PRO-6000": 95.6,
    "H200": 140.4,
    "B200": 179.0,
}


def smallest_gpu_gib(accelerator_types: Sequence[str], otherwise: float) -> float:
    """GiB of the smallest GPU among `accelerator_types`, by Ray's names; `otherwise` where one of
    them is unknown or there is none.
    """
    known = [_GPU_GIB.get(name, otherwise) for name in accelerator_types]
    return min(known, default=otherwise)


def _kv_bytes_of_image(size: ModelSize, model: LocalModelSection) -> int:
    return min(model.max_model_len, size.image.tokens + TEXT_TOKENS) * size.kv_bytes


def images_in_flight(size: ModelSize, model: LocalModelSection, *, gpu_gib: float) -> int:
    """As many as fill half of the KV cache that the GPUs of a replica (`model.gpus`) leave, so
    that an image's blocks outlast the moment between its two questions; at least what placement
    counts on, and no more than keeps a GPU busy.
    """
    kv_bytes = (
        USED * model.gpus * gpu_gib - ENGINE_GIB * max(1, int(model.gpus))
    ) * GIB - size.weight_bytes
    return min(
        _MOST_IN_FLIGHT, max(model.in_flight, int(kv_bytes / 2 / _kv_bytes_of_image(size, model)))
    )


def kv_gib(size: ModelSize, model: LocalModelSection) -> float:
    """GiB of KV cache that hold the images in flight, prompt and reply included."""
    return model.in_flight * _kv_bytes_of_image(size, model) / GIB


def serving_gib(size: ModelSize, model: LocalModelSection, gpus: int = 1) -> float:
    """GiB that a replica needs on each of its GPUs: its part of the weights and of the KV cache,
    and the engine's own.
    """
    return (size.weight_bytes / GIB + kv_gib(size, model)) / gpus + ENGINE_GIB


def tensor_parallel_size(
    size: ModelSize, model: LocalModelSection, *, gpu_gib: float, most: int
) -> int | None:
    """The fewest GPUs that hold a replica: a power of two up to `most` that divides its attention
    heads. None where even those do not.
    """
    for gpus in (1, 2, 4, 8):
        divides = size.heads is None or size.heads % gpus == 0
        if gpus <= most and divides and serving_gib(size, model, gpus) <= USED * gpu_gib:
            return gpus
    return None


def gpu_share(size: ModelSize, model: LocalModelSection, *, gpu_gib: float) -> float:
    """The share of one GPU that holds a replica, in twentieths, rounded up; above 1 where a GPU
    is too small.
    """
    return math.ceil(20 * serving_gib(size, model) / (USED * gpu_gib)) / 20


def bytes_in_the_passes(
    *, stage: int, workers: int, lora: bool = False, offload: bool = False
) -> float:
    """Bytes a parameter of a GPU when a backward pass ends, in mixed precision, as ZeRO splits
    them: weights 2, gradients 2, and what Adam keeps, 12, unless that is offloaded. Of LoRA's, the
    weights alone count.
    """
    weights, gradients, adam = (2, 0, 0) if lora else (2, 2, 0 if offload else 12)
    split = adam / workers
    split += gradients / (workers if stage >= 2 else 1)
    return split + weights / (workers if stage >= 3 else 1)


def bytes_in_the_step(
    *, stage: int, workers: int, lora: bool = False, offload: bool = False
) -> float:
    """Bytes a parameter of a GPU at the peak of the optimizer's step: of the worker's part there
    are then what Adam keeps, 12, the gradients, 2, in one piece, 2 more, and in float32, 4. Fused
    AdamW makes nothing else. Measured with DeepSpeed's allocations.
    """
    weights = 2 / (workers if stage >= 3 else 1)
    return weights if lora or offload else weights + 20 / workers


def gathered_bytes(parameters: int, *, stage: int, workers: int) -> float:
    """Bytes of a GPU for weights of others' parts that ZeRO stage 3 may still hold in the
    optimizer's step. How many they are depends on how far one worker is ahead of another: measured
    between none and all, at most DeepSpeed's `stage3_max_live_parameters`.
    """
    return 2 * min(parameters, _LIVE_PARAMETERS) * (1 - 1 / workers) if stage >= 3 else 0.0


def offloaded_bytes(*, workers: int) -> float:
    """Bytes a parameter of a node's memory that a worker with offload takes: what Adam keeps, 12,
    gradients in float32, 4, in the weights' precision, 2, weights to copy back, 2, and buffers as
    large as the largest tensor, some 2 with a vocabulary of 150,000. Measured as
    `bytes_in_the_step`.
    """
    return 22 / workers


def training_gib(
    parameters: int,
    *,
    stage: int,
    workers: int,
    micro_batch_size: int = 4,
    lora: bool = False,
    offload: bool = False,
) -> float:
    """GiB of a GPU at the peak of training: the larger of a backward pass with its activations and
    of the optimizer's step, which has none; CUDA's own comes with both.

    2.2 billion: 47 GiB on one GPU, 20 at stage 2 over 3, 15 on one with offload; 4.15 billion: 87
    GiB, 35, and 31 at stage 3.
    """
    passes = bytes_in_the_passes(stage=stage, workers=workers, lora=lora, offload=offload)
    step = bytes_in_the_step(stage=stage, workers=workers, lora=lora, offload=offload)
    activations = _ACTIVATIONS_GIB * micro_batch_size
    gathered = gathered_bytes(parameters, stage=stage, workers=workers) / GIB
    beside = _BESIDE_GIB + gathered
    return max(parameters * passes / GIB + activations, parameters * step / GIB) + beside


def fewest_workers(
    parameters: int,
    *,
    stage: int,
    gpu_gib: float,
    most: int,
    micro_batch_size: int = 4,
    lora: bool = False,
    offload: bool = False,
    node_gib: float | None = None,
) -> int | None:
    """The fewest workers, up to `most`, whose GPUs hold a training at its peak; None where none
    do.

    Args:
        parameters: of the model.
        stage: of ZeRO.
        gpu_gib: memory of a GPU.
        most: workers there can be.
        micro_batch_size: samples of a pass.
        lora: whether adapters alone are trained.
        offload: whether Adam's state is in the nodes' memory.
        node_gib: of that, what there is for each GPU; None where it is not known.
    """
    for n in range(1, most + 1):
        needed = training_gib(
            parameters,
            stage=stage,
            workers=n,
            micro_batch_size=micro_batch_size,
            lora=lora,
            offload=offload,
        )
        there = (
            not offload
            or node_gib is None
            or (parameters * offloaded_bytes(workers=n) / GIB <= node_gib)
        )
        if needed <= TRAINED_IN * gpu_gib and there:
            return n
    return None
