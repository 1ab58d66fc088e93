"""What DeepSpeed allocates in a training step, counted on the CPU, against the arithmetic that
placement goes by.
"""

import socket
from typing import Any

import pytest

from mpa_ray.config import TrainingSection
from mpa_ray.models.gpu_memory import bytes_in_the_step, gathered_bytes, offloaded_bytes
from mpa_ray.training.set_up import adamw

# Wide enough that ZeRO stage 3 splits each layer: it keeps small ones whole.
WIDTH, LAYERS = 512, 16


def _peak(stage: int, workers: int, rank: int, port: int, accumulated: int, offload: bool) -> float:
    """Bytes a parameter, of GPU and node together, at the peak of a worker's second step, with the
    optimizer that GPUs have.
    """
    import os

    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed
    import torch

    from mpa_ray.training.set_up import deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = TrainingSection(
        zero_stage=stage, micro_batch_size=1, learning_rate=1e-3, offload=offload
    )
    model = torch.nn.Sequential(
        *(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
    ).bfloat16()
    parameters = WIDTH * WIDTH * LAYERS
    config = deepspeed_config(settings, workers)
    config["zero_optimization"].get("offload_optimizer", {}).pop("pin_memory", None)
    # As small against this model as the true sizes are against one that fills a GPU.
    config["zero_optimization"] |= {
        "reduce_bucket_size": WIDTH * WIDTH,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": WIDTH * WIDTH,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model, settings), config=config)
    pixels = torch.randn(1, WIDTH, dtype=torch.bfloat16)

    def step() -> None:
        for number in range(accumulated):
            loss = engine(pixels).float().pow(2).sum()
            engine.set_gradient_accumulation_boundary(number == accumulated - 1)
            engine.backward(loss)
            engine.step()

    step()
    there = _living()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = most = there
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / parameters


def _living() -> int:
    """Bytes of all tensors there are."""
    import gc

    import torch

    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("workers", "stage", "accumulated", "offload"),
    [
        (1, 1, 1, False),
        (1, 2, 3, False),
        (1, 3, 1, False),
        (2, 1, 1, False),
        (2, 2, 3, False),
        (2, 3, 3, False),
        (1, 2, 3, True),
    ],
)
def test_a_step_takes_what_placement_counts(
    ray_session: None, workers: int, stage: int, accumulated: int, offload: bool
) -> None:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    remote: Any = ray.remote(num_cpus=1, max_calls=1)(_peak)
    found = ray.get(
        [remote.remote(stage, workers, rank, port, accumulated, offload) for rank in range(workers)]
    )
    counted = bytes_in_the_step(stage=stage, workers=workers, offload=offload)
    counted += offloaded_bytes(workers=workers) if offload else 0
    # Of so small a model all weights may be gathered.
    gathered = gathered_bytes(1, stage=stage, workers=workers)
    most = 1.05 * (counted + gathered)
    assert all(counted * 0.95 <= peak <= most for peak in found), (found, counted, gathered)


def test_adam_is_fused_where_memory_is_short() -> None:
    import torch

    model = torch.nn.Linear(4, 4)
    for gpus in (0, 1):
        optimizer = adamw(model, TrainingSection(gpus_per_worker=gpus, learning_rate=1.0))
        assert optimizer.defaults["fused"] is bool(gpus)
