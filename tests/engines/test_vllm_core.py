"""vLLM in this process: what becomes of requests when it breaks, and who has the process."""

import asyncio
from typing import Any

import pytest
from PIL import Image

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.engines import EngineDied, RequestRejected, Sampling
from mpa_ray.tasks import prompts

PICTURE = Image.new("RGB", (112, 112), "white")
GREEDY = Sampling(max_tokens=4)


def _broken_and_loaded_again() -> dict[str, Any]:
    """In a process of its own: an engine that breaks over three requests, and the next one."""
    section = ModelSection(
        model=str(demo.SVLM),
        engine="vllm",
        gpus_per_replica=0,
        max_model_len=512,
        images_in_flight=4,
    )
    first = engines.load(section)
    beside = engines.load(section)

    async def ask(engine: engines.Engine, prompt: str) -> str:
        try:
            return (await engine.ask(PICTURE, prompt, image_id="i", sampling=GREEDY)).text
        except (EngineDied, RequestRejected) as error:
            return f"{type(error).__name__}: {error}"

    async def asked(engine: engines.Engine, count: int) -> list[str]:
        return await asyncio.gather(*(ask(engine, prompts.SCENE_TEXT) for _ in range(count)))

    found: dict[str, Any] = {"before": asyncio.run(asked(first, 3))}
    found["cores"] = [type(engine._core).__name__ for engine in (first, beside)]
    found["beside"] = asyncio.run(asked(beside, 1))
    beside.close()
    found["refused"] = asyncio.run(ask(first, "word " * 600))
    found["after_refused"] = asyncio.run(asked(first, 1))
    engine, step = first._core._engine, first._core._engine.step

    def breaking() -> Any:
        if engine.get_num_unfinished_requests() == 3:
            raise MemoryError("no memory")
        return step()

    engine.step = breaking
    found["broken"] = asyncio.run(asked(first, 3))
    found["still_broken"] = asyncio.run(asked(first, 1))
    first.close()
    again = engines.load(section)
    found["again"] = asyncio.run(asked(again, 3))
    found["core_again"] = type(again._core).__name__
    again.close()
    return found


@pytest.mark.skipif(not engines.vllm_is_installed(), reason="vLLM is not installed here")
def test_a_broken_engine_says_so_to_all_who_wait_and_another_can_be_loaded(
    ray_session: None,
) -> None:
    import ray

    task = ray.remote(num_cpus=1, max_calls=1)(_broken_and_loaded_again)
    found = ray.get(task.remote())
    assert found["cores"] == ["ThisProcess", "OwnProcess"], "a process has room for one"
    assert found["before"] == found["again"] and len(set(found["before"])) == 1
    assert found["beside"] == found["after_refused"] == found["before"][:1]
    assert found["refused"].startswith("RequestRejected: ")
    assert found["broken"] == ["EngineDied: vLLM's engine died: MemoryError('no memory')"] * 3
    assert found["still_broken"] == found["broken"][:1]
    assert found["core_again"] == "ThisProcess"
