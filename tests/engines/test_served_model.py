"""A model in an engine actor: whose weights it has, and what becomes of a dead engine."""

import asyncio

import pytest
from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import EngineDied, Reply, Sampling
from mpa_ray.engines.served_model import ServedModel
from mpa_ray.schema import Stage

PICTURE = Image.new("RGB", (64, 64))
GREEDY = Sampling(max_tokens=1)
loaded: list[str] = []


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
    loaded.append(model.model)
    return Engine(model.model)


def section(name: str) -> ModelSection:
    return ModelSection(model=name, engine="test_served_model:engine", gpus_per_replica=0)


@pytest.fixture
def model() -> ServedModel:
    loaded.clear()
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
