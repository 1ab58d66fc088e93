"""vLLM on CUDA GPUs, with the embedded L-VLM, whose answers are known. `pytest -m gpu` runs it; the
same functions run on the CPU too, so that they are known to work before there is a GPU.
"""

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.demo.inputs import BENCHMARK_SEED
from mpa_ray.demo.render import benchmark_rows
from mpa_ray.engines import EngineDied, Reply, Sampling
from mpa_ray.engines.served_model import ServedModel
from mpa_ray.images.decode import decode
from mpa_ray.schema import Stage
from mpa_ray.tasks import prompts

QUESTIONS = 24
GREEDY = Sampling(max_tokens=16)
ON_CPU = pytest.param(0, id="cpu", marks=pytest.mark.slow)
ON_GPU = pytest.param(1, id="gpu", marks=pytest.mark.gpu)
ON_TWO = pytest.param(2, id="two-gpus", marks=pytest.mark.gpu(count=2))

pytestmark = pytest.mark.skipif(not engines.vllm_is_installed(), reason="vLLM is not installed")


def section(gpus: float, **changes: Any) -> ModelSection:
    settings: dict[str, Any] = {
        "model": str(demo.LVLM),
        "engine": "vllm",
        "gpus_per_replica": gpus,
        "max_model_len": 512,
        "images_in_flight": 8,
    }
    return ModelSection(**settings | changes)


def signs() -> list[tuple[Any, str, str]]:
    """Pictures with a question each and its answer."""
    return [
        (
            decode(row["image"]["bytes"], max_image_pixels=10**6, max_image_bytes=10**6),
            prompts.ANSWERING.format(question=row["question"]),
            row["answers"][0],
        )
        for row in benchmark_rows(kind="sign", count=QUESTIONS, seed=BENCHMARK_SEED + 1)
    ]


async def right(model: Any) -> int:
    """How many of the signs' questions `model` answers rightly, all at once."""
    shown = signs()
    replies = await asyncio.gather(
        *(
            model.ask(picture, question, image_id=str(number), sampling=GREEDY)
            for number, (picture, question, _) in enumerate(shown)
        )
    )
    return sum(
        reply.text.strip() == answer for reply, (*_, answer) in zip(replies, shown, strict=True)
    )


def on_workers(work: Any, *arguments: Any, gpus: float) -> Any:
    """A task for each of `arguments`, all at once, in processes of their own with so much of the
    GPUs each; what they return.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1)(work)
    return ray.get([task.remote(argument) for argument in arguments])


def _annotated_and_answered(gpus: float) -> dict[str, Any]:
    """Each image is annotated, with a seed of its own, and asked a question at once: the encoder's
    runs until then. Then each annotation is drawn again, by the same seed and by another.
    """
    loaded = engines.load(section(gpus, engine="encoder_runs:load"))
    shown = signs()
    slots = asyncio.Semaphore(8)

    async def annotated(number: int, seed: int) -> Reply:
        return await loaded.ask(
            shown[number][0],
            prompts.PREAMBLE + prompts.SCENE_TEXT,
            image_id=str(number),
            sampling=Sampling(max_tokens=32, temperature=1.0, seed=seed),
        )

    async def both(number: int) -> tuple[str, int]:
        async with slots:
            first = await annotated(number, number)
            second = await loaded.ask(
                shown[number][0],
                prompts.PREAMBLE + shown[number][1],
                image_id=str(number),
                sampling=GREEDY,
            )
        return first.text, second.cached_tokens

    async def work() -> dict[str, Any]:
        numbers = range(len(shown))
        found = await asyncio.gather(*map(both, numbers))
        runs = await loaded.encoder_runs()
        again = await asyncio.gather(*(annotated(number, number) for number in numbers))
        other = await asyncio.gather(*(annotated(number, number + 1000) for number in numbers))
        texts = [text for text, _ in found]
        return {
            "encoder_runs": runs,
            "least_cached": min(cached for _, cached in found),
            "the same": sum(reply.text == text for reply, text in zip(again, texts, strict=True)),
            "another": sum(reply.text != text for reply, text in zip(other, texts, strict=True)),
        }

    try:
        return asyncio.run(work())
    finally:
        loaded.close()


@pytest.mark.parametrize("gpus", [ON_CPU, ON_GPU])
def test_annotating_and_then_answering_encodes_an_image_once(ray_session: None, gpus: int) -> None:
    [found] = on_workers(_annotated_and_answered, gpus, gpus=gpus)
    assert found["encoder_runs"] == QUESTIONS
    assert found["least_cached"] >= 16, "the image's tokens come from the KV cache"
    # Near-ties can turn with the batch that a request lands in.
    assert found["the same"] >= 0.75 * QUESTIONS, "a seed repeats what was drawn"
    assert found["another"] >= 0.25 * QUESTIONS, "and another one draws something else"


def _answers(gpus: float) -> int:
    """How many answers of an engine on so many GPUs are right."""
    loaded = engines.load(section(gpus))
    try:
        return asyncio.run(right(loaded))
    finally:
        loaded.close()


@pytest.mark.parametrize("gpus", [ON_CPU, pytest.param(0.45, id="gpu", marks=pytest.mark.gpu)])
def test_two_engines_load_and_answer_side_by_side_on_one_gpu(
    ray_session: None, gpus: float
) -> None:
    found = on_workers(_answers, gpus, gpus, gpus=gpus)
    assert all(count >= 0.95 * QUESTIONS - 1 for count in found), found


@pytest.mark.parametrize("gpus", [ON_CPU, ON_TWO])
def test_an_engine_over_two_gpus_answers_as_it_should(ray_session: None, gpus: int) -> None:
    [found] = on_workers(_answers, gpus, gpus=gpus)
    assert found >= 0.95 * QUESTIONS - 1


def _killed_and_loaded_again(gpus: float) -> dict[str, Any]:
    """The process in which vLLM runs the model is killed while it replies; then the same model is
    asked again.
    """
    import psutil

    # vLLM's CPU build runs the model in the same process otherwise.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    model = ServedModel(section(gpus), stage=Stage.EVALUATE, output=None)
    cores = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and "resource_tracker" not in " ".join(child.cmdline())
    ]

    async def work() -> dict[str, Any]:
        first = await right(model)
        long = Sampling(max_tokens=256, temperature=1.0, seed=1)
        picture, question, _ = signs()[0]
        asked = [
            asyncio.create_task(model.ask(picture, question, image_id="0", sampling=long))
            for _ in range(8)
        ]
        await asyncio.sleep(0)
        for core in cores:
            os.kill(core.pid, signal.SIGKILL)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        # What was asked just before may have been answered; what is asked of the dead is not.
        deadline = time.monotonic() + 60
        died = sum(isinstance(end, EngineDied) for end in ended)
        while not died and time.monotonic() < deadline:
            try:
                await model.ask(picture, question, image_id="0", sampling=GREEDY)
            except EngineDied:
                died += 1
        return {"before": first, "died": died, "killed": len(cores), "after": await right(model)}

    return asyncio.run(work())


@pytest.mark.parametrize("gpus", [ON_CPU, ON_GPU])
def test_an_engine_that_is_killed_is_loaded_again(ray_session: None, gpus: int) -> None:
    [found] = on_workers(_killed_and_loaded_again, gpus, gpus=gpus)
    assert found["killed"] and found["died"], "it was not killed"
    assert found["before"] == found["after"] >= 0.95 * QUESTIONS - 1, found
