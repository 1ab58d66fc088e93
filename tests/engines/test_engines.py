"""Real engines on the CPU with the embedded L-VLM: both give the same replies, refuse what they
must, and count what they did.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.demo.inputs import BENCHMARK_SEED
from mpa_ray.demo.render import benchmark_rows
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.engines.vllm import VllmEngine, memory_options
from mpa_ray.images.decode import decode
from mpa_ray.models.size import GIB, size_of
from mpa_ray.tasks import prompts

QUESTIONS = 48


def settings(engine: str, **changes: Any) -> ModelSection:
    return ModelSection(
        **(
            {
                "model": str(demo.LVLM),
                "engine": engine,
                "gpus_per_replica": 0,
                "max_model_len": 512,
                "images_in_flight": 16,
            }
            | changes
        )
    )


def _ask_all(engine: str) -> dict[str, Any]:
    """In a process of its own: everything the tests want to know of one engine."""
    rows = list(benchmark_rows(kind="sign", count=QUESTIONS, seed=BENCHMARK_SEED + 1))
    pictures = [
        decode(row["image"]["bytes"], max_image_pixels=10**6, max_image_bytes=10**6) for row in rows
    ]
    loaded = engines.load(settings(engine))
    if engine == "transformers":
        import torch

        # Very slow in bfloat16 on GPUs, and never needed.
        torch.nn.functional.conv3d = None

    async def work() -> dict[str, Any]:
        async def ask(index: int, prompt: str, sampling: Sampling) -> Reply:
            return await loaded.ask(pictures[index], prompt, image_id=str(index), sampling=sampling)

        greedy = Sampling(max_tokens=16)
        answers = await asyncio.gather(
            *(
                ask(n, prompts.ANSWERING.format(question=row["question"]), greedy)
                for n, row in enumerate(rows)
            )
        )
        drawn = Sampling(max_tokens=48, temperature=1.0, seed=7)
        annotations = await asyncio.gather(*(ask(n, prompts.SCENE_TEXT, drawn) for n in range(8)))
        again = await asyncio.gather(*(ask(n, prompts.SCENE_TEXT, drawn) for n in range(8)))
        cut = await ask(0, prompts.SCENE_TEXT, Sampling(max_tokens=2))
        try:
            refused = str(await ask(0, "word " * 600, greedy))
        except RequestRejected as error:
            refused = f"rejected: {error}"
        after = await ask(0, prompts.ANSWERING.format(question=rows[0]["question"]), greedy)
        forms = [
            r"Answer: (yes|no)",
            prompts.annotation_form(()),
            prompts.annotation_form(("Yes", "No")),
        ]
        held = (
            [(form, await ask(0, prompts.SCENE_TEXT, replace(drawn, form=form))) for form in forms]
            if engine == "vllm"
            else []
        )
        return {
            "answers": answers,
            "truth": [row["answers"][0] for row in rows],
            "annotations": annotations,
            "again": again,
            "cut": cut,
            "refused": refused,
            "after": after,
            "held": held,
        }

    try:
        return asyncio.run(work())
    finally:
        loaded.close()


@pytest.fixture(scope="module")
def replies(ray_session: None) -> Iterator[dict[str, dict[str, Any]]]:
    import ray

    names = ["transformers", *(["vllm"] if engines.vllm_is_installed() else [])]
    task = ray.remote(num_cpus=1, max_calls=1)(_ask_all)
    yield dict(zip(names, ray.get([task.remote(name) for name in names]), strict=True))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_engine_answers_and_counts(replies: dict[str, dict[str, Any]], engine: str) -> None:
    if engine not in replies:
        pytest.skip("vLLM is not installed here")
    found = replies[engine]
    right = sum(
        reply.text.strip() == truth
        for reply, truth in zip(found["answers"], found["truth"], strict=True)
    )
    assert right >= 0.95 * QUESTIONS
    assert all(
        reply.finish_reason == "stop" and reply.prompt_tokens > 16 and reply.output_tokens > 0
        for reply in found["answers"]
    )
    assert all(reply.text.startswith("Question: ") for reply in found["annotations"])
    assert found["cut"].finish_reason == "length"
    assert found["cut"].output_tokens == 2
    assert found["refused"].startswith("rejected: ")
    assert found["after"].text == found["answers"][0].text, (
        "a refused request must leave the engine well"
    )


def test_vllm_holds_a_reply_to_a_form(replies: dict[str, dict[str, Any]]) -> None:
    if "vllm" not in replies:
        pytest.skip("vLLM is not installed here")
    for form, reply in replies["vllm"]["held"]:
        assert reply.finish_reason == "length" or re.fullmatch(form, reply.text), (form, reply.text)
    assert replies["vllm"]["held"][0][1].text in ("Answer: yes", "Answer: no"), (
        "what it would never say by itself"
    )


def test_a_seed_makes_a_drawn_reply_repeatable_in_vllm(replies: dict[str, dict[str, Any]]) -> None:
    if "vllm" not in replies:
        pytest.skip("vLLM is not installed here")
    texts = [reply.text for reply in replies["vllm"]["annotations"]]
    # Near-ties can turn with the batch a request lands in, so not all of them need be equal.
    assert (
        sum(reply.text == text for reply, text in zip(replies["vllm"]["again"], texts, strict=True))
        >= 6
    )
    assert len(set(texts)) > 1


def test_engines_agree(replies: dict[str, dict[str, Any]]) -> None:
    if "vllm" not in replies:
        pytest.skip("vLLM is not installed here")
    pairs = zip(replies["vllm"]["answers"], replies["transformers"]["answers"], strict=True)
    agreeing = [
        (ours.text.strip() == theirs.text.strip(), ours.prompt_tokens == theirs.prompt_tokens)
        for ours, theirs in pairs
    ]
    assert all(tokens for _, tokens in agreeing), "the prompts differ"
    assert sum(text for text, _ in agreeing) >= 0.95 * QUESTIONS


def _ask_with_a_bad_one() -> list[str]:
    """A picture of an impossible shape among good ones: what each request came to."""
    from PIL import Image

    loaded = engines.load(settings("transformers"))

    async def ask(size: tuple[int, int]) -> str:
        try:
            reply = await loaded.ask(
                Image.new("RGB", size),
                prompts.ANSWERING.format(question="?"),
                image_id="x",
                sampling=Sampling(max_tokens=2),
            )
        except RequestRejected as error:
            return f"rejected: {error}"
        return reply.finish_reason

    async def all_of_them() -> list[str]:
        return await asyncio.wait_for(
            asyncio.gather(*map(ask, [(96, 96), (4000, 8), (96, 96)])), 120
        )

    try:
        return asyncio.run(all_of_them())
    finally:
        loaded.close()


def test_an_image_the_processor_refuses_is_rejected_alone(ray_session: None) -> None:
    """transformers' processor takes no aspect ratio over 200; vLLM's own resizing takes this
    one.
    """
    import ray

    first, bad, last = ray.get(ray.remote(num_cpus=1, max_calls=1)(_ask_with_a_bad_one).remote())
    assert bad.startswith("rejected: ")
    assert not first.startswith("rejected")
    assert not last.startswith("rejected")


@pytest.mark.parametrize(
    "options", [{"gpu_memory_utilization": 0.5}, {"kv_cache_memory_bytes": 10**9}]
)
def test_memory_that_is_set_stays(options: dict[str, Any]) -> None:
    section = ModelSection(model="a/b-2B", gpus_per_replica=0.5, engine_options=options)
    assert memory_options(section, gpu_bytes=48 * GIB, size=size_of(section)).keys() == {
        "gpu_memory_utilization"
    }


def test_a_whole_gpu_is_measured_and_a_share_is_told() -> None:
    """A share's KV cache is what is left of it beside the weights and the engine's own."""
    whole = ModelSection(model="a/b-2B", gpus_per_replica=1)
    assert memory_options(whole, gpu_bytes=48 * GIB, size=size_of(whole)) == {
        "gpu_memory_utilization": 0.9
    }
    share = whole.model_copy(update={"gpus_per_replica": 0.25})
    found = memory_options(share, gpu_bytes=48 * GIB, size=size_of(share))
    assert found["gpu_memory_utilization"] == pytest.approx(0.225)
    assert found["kv_cache_memory_bytes"] == pytest.approx(0.225 * 48 * GIB - 4e9 - 4 * GIB, abs=2)
    too_large = ModelSection(model="a/b-7B", gpus_per_replica=0.25)
    assert memory_options(too_large, gpu_bytes=48 * GIB, size=size_of(too_large)).keys() == {
        "gpu_memory_utilization"
    }


def _second_calls(preamble: str) -> dict[str, int]:
    """Two questions about each of 24 images, 12 at a time, by an engine whose encoder cache holds
    8: encoder runs, and cached tokens of the second prompts up to the last one that they share with
    the first.
    """
    count = 24
    rows = list(benchmark_rows(kind="sign", count=count, seed=BENCHMARK_SEED + 1))
    pictures = [
        decode(row["image"]["bytes"], max_image_pixels=10**6, max_image_bytes=10**6) for row in rows
    ]
    loaded = engines.load(
        settings(
            "encoder_runs:load", images_in_flight=12, engine_options={"max_num_batched_tokens": 128}
        )
    )
    slots = asyncio.Semaphore(12)

    async def both(number: int) -> int:
        async with slots:
            for prompt in (
                prompts.SCENE_TEXT,
                prompts.ANSWERING.format(question=rows[number]["question"]),
            ):
                reply = await loaded.ask(
                    pictures[number],
                    preamble + prompt,
                    image_id=str(number),
                    sampling=Sampling(max_tokens=8),
                )
        return reply.cached_tokens

    async def work() -> dict[str, int]:
        cached = await asyncio.gather(*map(both, range(count)))
        return {
            "images": count,
            "least_cached": min(cached),
            "encoder_runs": await loaded.encoder_runs(),
        }

    try:
        return asyncio.run(work())
    finally:
        loaded.close()


def test_the_shared_text_after_the_image_spares_its_second_encoding(ray_session: None) -> None:
    """The last token of an image is seldom the last of a block; a block that is not whole is not
    cached, and for one token of an image all of it is encoded again.
    """
    import ray

    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    task = ray.remote(num_cpus=1, max_calls=1)(_second_calls)
    without, shared = ray.get([task.remote(""), task.remote(prompts.PREAMBLE)])
    assert without["encoder_runs"] > without["images"] and without["least_cached"] == 0
    assert shared["encoder_runs"] == shared["images"]
    assert shared["least_cached"] >= 32


def test_what_we_set_ourselves_is_refused_as_an_option_and_all_else_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An argument given twice would end the actor with a TypeError, `trust_remote_code` among
    them.
    """
    from vllm.engine import arg_utils

    class Given(Exception):
        pass

    def give(**arguments: Any) -> None:
        raise Given(arguments)

    monkeypatch.setattr(arg_utils, "AsyncEngineArgs", give)
    with pytest.raises(Given) as caught:
        VllmEngine(settings("vllm"))
    (arguments,) = caught.value.args
    assert {"trust_remote_code", "model", "max_num_seqs"} <= arguments.keys()
    refused = set()
    for name, value in arguments.items():
        try:
            section = settings("vllm", engine_options={name: value})
        except ValidationError as error:
            refused.add(name)
            assert f"engine_options={{{name}: ...}}" in str(error)
            continue
        with pytest.raises(Given):
            VllmEngine(section)
    assert "trust_remote_code" in refused and "max_num_seqs" not in refused


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trust_remote_code", "the setting trust_remote_code"),
        ("mm_processor_kwargs", "the setting processor_options"),
        ("enable_prefix_caching", "remove it"),
    ],
)
def test_an_option_that_is_ours_names_the_fix(name: str, said: str) -> None:
    with pytest.raises(
        ValidationError, match=re.escape(f"engine_options={{{name}: ...}}")
    ) as caught:
        ModelSection(model="a/b", engine_options={name: True})
    assert said in str(caught.value)
    assert ModelSection(model="a/b", engine="mine:load", engine_options={name: True}).engine_options
