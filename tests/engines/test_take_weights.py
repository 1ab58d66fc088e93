"""A vLLM engine with the weights of another checkpoint: what it says is what a fresh engine of that
checkpoint says, token for token; in this process, and in one of its own as on GPUs.
"""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.demo.inputs import BENCHMARK_SEED
from mpa_ray.demo.render import benchmark_rows
from mpa_ray.engines import Reply, Sampling
from mpa_ray.engines.protocol import TakesWeights
from mpa_ray.images.decode import decode
from mpa_ray.tasks import prompts

QUESTIONS = 12
OTHER_ARCHITECTURE = demo.LVLM


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The S-VLM with other weights, in files of other names."""
    folder = tmp_path / "changed"
    shutil.copytree(demo.SVLM, folder)
    weights = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=drawn) * tensor.float().std().nan_to_num(0)
            weights[name] = (tensor.float() + 0.2 * noise).to(tensor.dtype)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    return folder


def section(model: Path) -> ModelSection:
    return ModelSection(
        model=str(model), engine="vllm", gpus_per_replica=0, max_model_len=512, images_in_flight=4
    )


def _asked(models: list[Path]) -> list[tuple[bool, list[Reply]]]:
    """In a process of its own: what an engine of the first model says when it has taken the weights
    of each in turn, and whether it took them.
    """
    rows = list(benchmark_rows(kind="sign", count=QUESTIONS, seed=BENCHMARK_SEED + 1))
    loaded = engines.load(section(models[0]))
    assert isinstance(loaded, TakesWeights)

    async def work() -> list[tuple[bool, list[Reply]]]:
        found = []
        for model in models:
            taken, said = await loaded.take_weights(section(model)), []
            # One at a time: near-ties turn with the batch that a request lands in.
            for number, row in enumerate(rows):
                picture = decode(
                    row["image"]["bytes"], max_image_pixels=10**6, max_image_bytes=10**6
                )
                prompt = prompts.ANSWERING.format(question=row["question"])
                sampling = Sampling(max_tokens=16)
                said.append(
                    await loaded.ask(picture, prompt, image_id=str(number), sampling=sampling)
                )
            found.append((taken, said))
        return found

    try:
        return asyncio.run(work())
    finally:
        loaded.close()


@pytest.mark.skipif(not engines.vllm_is_installed(), reason="vLLM is not installed here")
def test_an_engine_with_other_weights_says_what_a_fresh_one_says(
    ray_session: None, changed: Path
) -> None:
    import ray

    task = ray.remote(num_cpus=1, max_calls=1)(_asked)
    [(_, fresh)] = ray.get(task.remote([changed]))
    for own_process in ("0", "1"):
        env = {"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": own_process}}
        in_turn = ray.get(
            task.options(runtime_env=env).remote(
                [demo.SVLM, changed, OTHER_ARCHITECTURE, demo.SVLM]
            )
        )
        assert [taken for taken, _ in in_turn] == [True, True, False, True]
        before, after, refused, back = (said for _, said in in_turn)
        # The whole reply: its text, its tokens, and how many of them a cache served.
        assert after == fresh
        assert [reply.text for reply in before] != [reply.text for reply in after]
        texts = [[reply.text for reply in said] for said in (refused, back)]
        assert texts == [[reply.text for reply in after], [reply.text for reply in before]]
