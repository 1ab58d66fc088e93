"""Figures of a GPU that need torch and transformers, and DeepSpeed where it is installed: the patch
embedding, the memory of activations, and a training step. On the CPU the same code measures tiny
models.

Each function yields rows for a table, the cheapest first, so that what was measured before a
failure is kept.
"""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import true_shapes

Row = dict[str, Any]

GIB = 2**30
_MICRO_BATCH = 4
_LONGEST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Where:
    """What is measured on.

    Attributes:
        device: "cuda" or "cpu".
        tiny: small models and inputs, which a CPU does in seconds.
    """

    device: str
    tiny: bool


def seconds_of(work: Callable[[], Any], where: Where, *, repeats: int = 10) -> float:
    """The median of up to `repeats` calls, after a first one that does not count; fewer where they
    take long.
    """

    def once() -> float:
        _wait(where)
        began = time.perf_counter()
        work()
        _wait(where)
        return time.perf_counter() - began

    once()
    found = [once()]
    while len(found) < repeats and sum(found) < _LONGEST_S:
        found.append(once())
    return median(found)


def peak_bytes(work: Callable[[], Any], where: Where) -> int:
    """What `work` holds at the most, beside what was there before it: by CUDA's allocator, and on
    the CPU by the profiler's record of allocations.
    """
    import torch

    gc.collect()
    if where.device == "cuda":
        _wait(where)
        there = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        _wait(where)
        return torch.cuda.max_memory_allocated() - there
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        work()
    now = most = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def _wait(where: Where) -> None:
    if where.device == "cuda":
        import torch

        torch.cuda.synchronize()


def matrix_product(where: Where) -> Iterator[Row]:
    """A large product in bf16: the most that this GPU computes, which other figures are a share
    of.
    """
    yield {"size": _width(where), "TFLOP/s": round(_reachable(where) / 1e12, 3)}


def _width(where: Where) -> int:
    return 256 if where.tiny else 8192


def _reachable(where: Where) -> float:
    """FLOP/s of that product."""
    import torch

    width = _width(where)
    left, right = (
        torch.randn(width, width, device=where.device, dtype=torch.bfloat16) for _ in range(2)
    )
    return 2 * width**3 / seconds_of(lambda: left @ right, where)


def patch_embedding(where: Where) -> Iterator[Row]:
    """Qwen2-VL's, of a micro-batch, forward and backward: as the library's convolution and as the
    matrix product that it is.
    """
    import torch

    shape = true_shapes.SHAPES["Qwen2-VL-2B"]
    width = 64 if where.tiny else shape.vision.hidden
    count = 64 if where.tiny else _MICRO_BATCH * shape.patches
    kernel = (2, shape.patch, shape.patch)
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(3, width, kernel, stride=kernel, bias=False)
    convolution = convolution.to(where.device, torch.bfloat16)
    pixels = torch.randn(count, 3, *kernel, device=where.device, dtype=torch.bfloat16)

    def as_product() -> Any:
        return torch.nn.functional.linear(pixels.flatten(1), convolution.weight.flatten(1))

    ways: dict[str, Callable[[], Any]] = {
        "matrix product": as_product,
        "convolution": lambda: convolution(pixels).flatten(1),
    }
    reference = as_product().detach().float()
    for way, embed in ways.items():

        def both(embed: Callable[[], Any] = embed) -> None:
            convolution.zero_grad()
            embed().float().pow(2).sum().backward()

        with torch.no_grad():
            forward = seconds_of(embed, where)
            difference = (embed().float() - reference).abs().max() / reference.abs().max()
        yield {
            "way": way,
            "patches": count,
            "forward, ms": round(1000 * forward, 4),
            "forward and backward, ms": round(1000 * seconds_of(both, where), 4),
            "largest difference, relative": round(float(difference), 6),
        }


def activations(where: Where) -> Iterator[Row]:
    """What a forward and backward pass of one sample holds beside weights and gradients, of each
    family, by the tiles of its image, with gradient checkpointing and without.
    """
    import torch

    for name, shape in true_shapes.SHAPES.items():
        made = true_shapes.tiny(shape) if where.tiny else shape
        model = true_shapes.build(made, device=where.device, dtype=torch.bfloat16)
        # Gradients are there before anything is measured.
        _pass(model, made, 1, where)()
        for checkpointing in (True, False):
            if checkpointing:
                model.gradient_checkpointing_enable()
            else:
                model.gradient_checkpointing_disable()
            for tiles in shape.tiles:
                row = {
                    "model": name,
                    "tiles": tiles,
                    "image tokens": tiles * made.tile_tokens,
                    "checkpointing": "on" if checkpointing else "off",
                }
                try:
                    held = peak_bytes(_pass(model, made, tiles, where), where)
                except torch.OutOfMemoryError:
                    yield row | {"MiB a sample": "out of memory"}
                    _free(where)
                    continue
                yield row | {"MiB a sample": round(held / 2**20, 2)}
        del model
        _free(where)


def _pass(model: Any, shape: true_shapes.Shape, tiles: int, where: Where) -> Callable[[], None]:
    import torch

    given = true_shapes.batch(
        shape, samples=1, tiles=tiles, device=where.device, dtype=torch.bfloat16
    )
    return lambda: true_shapes.loss(model, given).backward()


def _free(where: Where) -> None:
    gc.collect()
    if where.device == "cuda":
        import torch

        torch.cuda.empty_cache()


def training_step(where: Where, *, stage: int) -> Iterator[Row]:
    """Optimizer steps of Qwen2-VL-2B, one micro-batch each, with checkpointing: time, arithmetic,
    and memory at its peaks. By DeepSpeed at a ZeRO stage, and at stage 0 by plain AdamW without
    float32 copies, which takes less.
    """
    import torch

    shape = true_shapes.SHAPES["Qwen2-VL-2B"]
    made = true_shapes.tiny(shape) if where.tiny else shape
    reachable = _reachable(where)
    model = true_shapes.build(made, device=where.device, dtype=torch.bfloat16)
    parameters = sum(weight.numel() for weight in model.parameters())
    flops = _MICRO_BATCH * _flops_of_a_sample(model, made, where)
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_enable()
    trained, backward, step = _deepspeed(model, stage, where) if stage else _plain(model, where)
    given = true_shapes.batch(
        made, samples=_MICRO_BATCH, tiles=1, device=where.device, dtype=torch.bfloat16
    )

    def passes() -> None:
        backward(true_shapes.loss(trained, given))

    def both() -> None:
        passes()
        step()

    both()
    between = _held(where)
    in_passes = peak_bytes(passes, where)
    after_passes = _held(where)
    in_step = peak_bytes(step, where)
    seconds = seconds_of(both, where)
    row = {
        "way": f"DeepSpeed, ZeRO {stage}" if stage else "AdamW",
        "billion parameters": round(parameters / 1e9, 4),
        "seconds": round(seconds, 4),
        "tokens/s": round(given["input_ids"].numel() / seconds, 1),
        "TFLOP/s": round(flops / seconds / 1e12, 4),
        "of a matrix product's": round(flops / seconds / reachable, 4),
        "passes add, bytes a parameter": round(in_passes / parameters, 2),
        "the step adds, bytes a parameter": round(in_step / parameters, 2),
    }
    if where.device == "cuda":
        row |= {
            "between steps, GiB": round(between / GIB, 2),
            "peak, GiB": round(max(between + in_passes, after_passes + in_step) / GIB, 2),
            "peak of the step, bytes a parameter": round((after_passes + in_step) / parameters, 2),
        }
    yield row


def _held(where: Where) -> int:
    """Bytes of the GPU that tensors take now; on the CPU nobody counts them."""
    import torch

    return torch.cuda.memory_allocated() if where.device == "cuda" else 0


def _flops_of_a_sample(model: Any, shape: true_shapes.Shape, where: Where) -> int:
    """Of a forward and backward pass, attention counted, without what checkpointing computes
    again.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _pass(model, shape, 1, where)()
    return counter.get_total_flops()


Stepping = tuple[Any, Callable[[Any], Any], Callable[[], Any]]


def _plain(model: Any, where: Where) -> Stepping:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=where.device == "cuda")

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return model, lambda loss: loss.backward(), step


def _deepspeed(model: Any, stage: int, where: Where) -> Stepping:
    if where.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed
    import torch

    if where.device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=where.device == "cuda")
    config = deepspeed_config(micro=_MICRO_BATCH, batch=_MICRO_BATCH, bf16=True, stage=stage)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=config,
        dist_init_required=not torch.distributed.is_initialized(),
    )
    engine.train()
    return engine, engine.backward, engine.step


def deepspeed_config(*, micro: int, batch: int, bf16: bool, stage: int) -> dict[str, Any]:
    """A bare loop's: what DeepSpeed's own tutorials set, for a client's AdamW."""
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": batch // micro,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
