"""What a training worker sets up, on real DeepSpeed."""

from pathlib import Path
from typing import Any

import pytest

from mpa_ray import demo
from mpa_ray.config import ModelSection, TrainingSection

RATE = 1e-3


def _trained(folder: Path, stage: int) -> list[tuple[list[float], dict[str, Any]]]:
    """Losses and weights of three steps: the S-VLM as it is loaded, which may call no convolution,
    and with its patch embedding as a convolution again.
    """
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.set_up import deepspeed_config, load_svlm
    from mpa_ray.training.train_loop import take_step
    from tests.training.test_training_state import SETTINGS, _batches, process_group_of_one

    process_group_of_one()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = TrainingSection(**SETTINGS, zero_stage=stage)
    convolve, found = torch.nn.functional.conv3d, []
    for as_loaded in (True, False):
        model, processor, _ = load_svlm(ModelSection(model=str(demo.SVLM)), "float32")
        torch.nn.functional.conv3d = None if as_loaded else convolve
        if not as_loaded:
            del model.model.visual.patch_embed.proj.forward
        batches = _batches(folder, processor, model)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=RATE),
            config=deepspeed_config(settings, 1),
            dist_init_required=not torch.distributed.is_initialized(),
        )
        engine.train()
        losses = [
            take_step(engine, answer_loss, micro_batches, scale=1 / 4, rate=RATE)[0]
            for micro_batches in batches[:3]
        ]
        weights = {
            name: safe_get_full_fp32_param(weight).cpu().clone()
            for name, weight in engine.module.named_parameters()
        }
        found.append((losses, weights))
    return found


def _curve(folder: Path, stage: int, offload: bool) -> list[float]:
    """Losses of four steps, gradients summed over two micro-batches each."""
    import deepspeed
    import torch

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.set_up import adamw, deepspeed_config, load_svlm
    from mpa_ray.training.train_loop import take_step
    from tests.training.test_training_state import SETTINGS, _batches, process_group_of_one

    process_group_of_one()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = TrainingSection(**SETTINGS, zero_stage=stage, offload=offload)
    model, processor, _ = load_svlm(ModelSection(model=str(demo.SVLM)), "float32")
    batches = _batches(folder, processor, model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw(model, settings),
        config=deepspeed_config(settings, 1),
        dist_init_required=not torch.distributed.is_initialized(),
    )
    engine.train()
    return [
        take_step(engine, answer_loss, micro_batches, scale=1 / 4, rate=RATE)[0]
        for micro_batches in batches[:4]
    ]


@pytest.mark.parametrize("stage", [2, 3])
def test_adam_s_state_in_the_node_s_memory_learns_the_same(
    ray_session: None, parity_folder: Path, stage: int
) -> None:
    import ray

    curve: Any = ray.remote(num_cpus=1, max_calls=1)(_curve)
    usual, offloaded = ray.get(
        [curve.remote(parity_folder, stage, offload) for offload in (False, True)]
    )
    assert offloaded == pytest.approx(usual, rel=1e-3)
    assert usual[3] < 0.9 * usual[0], "it learned"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_patch_embedding_learns_as_a_convolution_does(
    ray_session: None, parity_folder: Path, stage: int
) -> None:
    import ray
    import torch
    from safetensors.torch import load_file

    (losses, weights), (expected, convolved) = ray.get(
        ray.remote(num_cpus=1, max_calls=1)(_trained).remote(parity_folder, stage)
    )
    assert losses == pytest.approx(expected, rel=1e-3)
    assert weights.keys() == convolved.keys()
    before = load_file(demo.SVLM / "model.safetensors")["visual.patch_embed.proj.weight"]
    name = "model.visual.patch_embed.proj.weight"
    assert (weights[name] - before.float()).abs().max() > RATE, "it learned"
    torch.testing.assert_close(weights[name], convolved[name], rtol=0, atol=RATE / 10)
