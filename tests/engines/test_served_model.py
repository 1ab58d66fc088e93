"""A model in an engine actor: whose weights it has, and what becomes of a dead engine."""

import asyncio
import os
from typing import Any

import pytest
from PIL import Image

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.engines import EngineDied, Reply, Sampling, served_model
from mpa_ray.engines.served_model import ServedModel
from mpa_ray.errors import RunError
from mpa_ray.schema import Stage

PICTURE = Image.new("RGB", (64, 64))
GREEDY = Sampling(max_tokens=1)
loaded: list[str] = []
# What the next loads end in.
failures: list[Exception] = []
# Of a vLLM whose engine process found too little memory: the reason is in that process's log alone.
NO_MEMORY = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)


class Engine:
    """Says its weights; dies over the prompt "die", and over the weights "deadly"."""

    def __init__(self, name: str) -> None:
        self.weights = name

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        if prompt == "die":
            raise EngineDied("gone")
        await asyncio.sleep(0.01)
        return Reply(
            text=self.weights,
            prompt_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            finish_reason="stop",
        )

    async def take_weights(self, model: ModelSection) -> bool:
        await asyncio.sleep(0.01)
        if model.model == "deadly":
            raise EngineDied("gone")
        self.weights = model.model
        return model.model != "other"

    def close(self) -> None:
        self.weights = "closed"


def engine(model: ModelSection) -> Engine:
    if failures:
        raise failures.pop(0)
    loaded.append(model.model)
    return Engine(model.model)


def section(name: str) -> ModelSection:
    return ModelSection(model=name, engine="test_served_model:engine", gpus_per_replica=0)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    monkeypatch.setattr(served_model, "_PAUSE_S", 0.0)
    loaded.clear()
    failures.clear()
    return ServedModel(section("a"), stage=Stage.EVALUATE, output=None)


async def says(model: ServedModel, name: str) -> list[str]:
    async with model.serving(section(name)):
        asked = [model.ask(PICTURE, "?", image_id="i", sampling=GREEDY) for _ in range(3)]
        return [reply.text for reply in await asyncio.gather(*asked)]


def test_blocks_of_one_model_run_together_and_those_of_another_wait(model: ServedModel) -> None:
    async def work() -> list[list[str]]:
        return await asyncio.gather(*(says(model, name) for name in "abacbca"))

    assert asyncio.run(work()) == [[name] * 3 for name in "abacbca"]
    assert loaded == ["a"]


def test_what_does_not_fit_is_loaded(model: ServedModel) -> None:
    assert asyncio.run(says(model, "other")) == ["other"] * 3
    assert loaded == ["a", "other"]


def test_an_engine_that_dies_over_new_weights_is_loaded_with_them(model: ServedModel) -> None:
    assert asyncio.run(says(model, "deadly")) == ["deadly"] * 3
    assert loaded == ["a", "deadly"]


def test_a_dead_engine_is_loaded_again_with_the_weights_it_had(model: ServedModel) -> None:
    async def work() -> list[str]:
        await says(model, "b")
        async with model.serving(section("b")):
            with pytest.raises(EngineDied):
                await model.ask(PICTURE, "die", image_id="i", sampling=GREEDY)
        return await says(model, "b")

    assert asyncio.run(work()) == ["b"] * 3
    assert loaded == ["a", "b"]


async def says_after_a_death(model: ServedModel, *until: Exception) -> list[str]:
    async with model.serving(section("a")):
        with pytest.raises(EngineDied):
            await model.ask(PICTURE, "die", image_id="i", sampling=GREEDY)
    failures.extend(until)
    return await says(model, "a")


def test_a_load_is_tried_again_while_the_memory_of_the_dead_engine_is_not_back(
    model: ServedModel,
) -> None:
    assert asyncio.run(says_after_a_death(model, NO_MEMORY, NO_MEMORY)) == ["a"] * 3
    assert loaded == ["a", "a"] and not failures


def test_so_it_is_where_other_weights_need_another_engine(model: ServedModel) -> None:
    failures.append(NO_MEMORY)
    assert asyncio.run(says(model, "other")) == ["other"] * 3


def test_a_load_that_never_succeeds_ends_with_its_own_error(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "_MEMORY_IS_BACK_S", 0.0)
    with pytest.raises(RuntimeError, match="Engine core initialization failed"):
        asyncio.run(says_after_a_death(model, *[NO_MEMORY] * 3))


def test_what_waiting_does_not_help_is_not_waited_for(model: ServedModel) -> None:
    with pytest.raises(RunError, match="the key was refused"):
        asyncio.run(says_after_a_death(model, RunError("the key was refused")))


def _reload_without_memory() -> dict[str, Any]:
    """In a process of its own: vLLM's engine is given up, and the next one finds too little memory
    once.
    """
    real = ModelSection(model=str(demo.LVLM), gpus_per_replica=0, max_model_len=512)
    served: Any = ServedModel(real, stage=Stage.EVALUATE, output=None)
    failed, once = [], served._load

    def load(model: ModelSection) -> Any:
        try:
            return once(model)
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
            raise

    served._load, served._broken = load, served._engine
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "5000"
    reply = asyncio.run(served.ask(PICTURE, "What?", image_id="one", sampling=GREEDY))
    return {"failed": failed, "tokens": reply.output_tokens}


@pytest.mark.slow
def test_vllm_is_loaded_again_once_there_is_memory(ray_session: None) -> None:
    import ray

    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    # In a process of its own, as on GPUs.
    env = {"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}
    task = ray.remote(num_cpus=1, max_calls=1, runtime_env=env)(_reload_without_memory)
    found = ray.get(task.remote())
    (failure,) = found["failed"]
    assert failure.startswith("RuntimeError: Engine core initialization failed")
    assert found["tokens"] > 0
