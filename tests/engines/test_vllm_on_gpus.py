"""What vLLM makes of our arguments on GPUs that are not here: its own defaults for them, with a
stand-in for the one thing that it asks of a GPU, its name and memory.
"""

from typing import Any

import pytest

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.models.size import GIB, ModelSize
from tests.models.test_gpu_memory import LARGE, TILED

if not engines.vllm_is_installed():
    pytest.skip("vLLM is not installed here", allow_module_level=True)

A6000 = ("NVIDIA RTX A6000", 48)
L40S = ("NVIDIA L40S", 45)
A100 = ("NVIDIA A100-SXM4-80GB", 79.2)
H100 = ("NVIDIA H100 80GB HBM3", 79.6)
H200 = ("NVIDIA H200", 140.4)


class Gpu:
    """A platform with this GPU; all else is as on this machine."""

    def __init__(self, name: str, gib: float) -> None:
        from vllm.platforms import current_platform

        self._name, self._gib, self._here = name, gib, current_platform

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._here, attribute)

    def is_cpu(self) -> bool:
        return False

    def get_device_name(self, device_id: int = 0) -> str:
        return self._name

    def get_device_total_memory(self, device_id: int = 0) -> int:
        return round(self._gib * GIB)


def engine_config(monkeypatch: pytest.MonkeyPatch, gpu: tuple[str, float], **settings: Any) -> Any:
    """The configuration that vLLM resolves for our engine on `gpu`; nothing is loaded."""
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from mpa_ray.engines.vllm import VllmEngine

    class Resolved(Exception):
        pass

    def resolve(arguments: Any, usage_context: Any = UsageContext.ENGINE_CONTEXT) -> None:
        raise Resolved(arguments.create_engine_config(usage_context))

    monkeypatch.setattr(arg_utils, "current_platform", Gpu(*gpu))
    monkeypatch.setattr(AsyncLLM, "from_engine_args", resolve)
    section = {"model": str(demo.LVLM), "gpus_per_replica": 1, "max_model_len": 512}
    with pytest.raises(Resolved) as caught:
        VllmEngine(ModelSection(**(section | settings)))
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("gpu", "tokens"),
    [(A6000, 8192), (L40S, 8192), (A100, 8192), (H100, 16384), (H200, 16384)],
)
def test_chunks_of_a_prefill_and_the_encoder_cache_follow_from_the_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: tuple[str, float], tokens: int
) -> None:
    found = engine_config(monkeypatch, gpu, images_in_flight=96).scheduler_config
    assert found.max_num_batched_tokens == found.encoder_cache_size == tokens
    assert found.max_num_seqs == 96


def test_a_chunk_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_num_batched_tokens": 4096}
    found = engine_config(monkeypatch, H100, engine_options=options).scheduler_config
    assert found.max_num_batched_tokens == found.encoder_cache_size == 4096


@pytest.mark.parametrize(
    ("size", "images", "gib"),
    [
        # 2.5 million numbers an image, in 16 bits, twice 128 of them.
        (LARGE, 128, 1.2),
        (LARGE, 32, 0.3),
        # 13 tiles: 7.8 million.
        (TILED, 58, 1.7),
        (TILED, 128, 3.7),
        (TILED, 256, 4.0),
        (None, 128, None),
    ],
)
def test_the_processor_s_cache_holds_what_is_in_flight(
    size: ModelSize | None, images: int, gib: float | None
) -> None:
    from mpa_ray.engines.vllm import processor_cache

    found = processor_cache(ModelSection(model="a/b", images_in_flight=images), size)
    assert found == ({} if gib is None else {"mm_processor_cache_gb": pytest.approx(gib, abs=0.05)})


@pytest.mark.parametrize(("options", "gib"), [({}, 0.25), ({"mm_processor_cache_gb": 2.0}, 2.0)])
def test_the_processor_s_cache_can_be_set(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], gib: float
) -> None:
    found = engine_config(monkeypatch, H100, engine_options=options).model_config
    assert found.multimodal_config.mm_processor_cache_gb == gib


def test_an_image_is_prepared_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads spin and are no faster. Ray gives an actor's processes as many as it has cores,
    and vLLM takes that for the user's wish.
    """
    import torch
    from vllm.utils.torch_utils import set_default_torch_num_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    engine_config(monkeypatch, H100, cpus_per_replica=8)
    # What vLLM calls around its processor.
    with set_default_torch_num_threads():
        assert torch.get_num_threads() == 1
