"""The API engine against a real server: vLLM's own OpenAI server with the embedded L-VLM, on the
CPU.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.demo.inputs import BENCHMARK_SEED
from mpa_ray.demo.render import benchmark_rows
from mpa_ray.engines import Reply, RequestRejected, Sampling, ledger, vllm_is_installed
from mpa_ray.errors import RunError
from mpa_ray.images.decode import decode
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tasks.annotation_parser import parse_annotations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
]

KEY_NAME, KEY = "MPA_TEST_SERVER_KEY", "sk-planted-for-the-server-7"
READY_WITHIN_S = 500
QUESTIONS = 48
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(demo.LVLM),
        "--served-model-name",
        "guide",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "32",
        "--enforce-eager",
    ]
    command += [
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
        "--enable-prompt-tokens-details",
    ]
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = os.environ | on_cpu | {"VLLM_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _wait(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(health, timeout=5)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    pytest.fail(f"the server is not up:\n{log.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


def settings(url: str, **changes: Any) -> ModelSection:
    return ModelSection(
        **(
            {"model": "guide", "engine": "openai", "base_url": url, "api_key_env": KEY_NAME}
            | changes
        )
    )


def ask(
    model: ModelSection, asked: list[tuple[Any, str, Sampling]], output: Folder | None = None
) -> list[Any]:
    engine = engines.load(model, stage="pseudo_annotator", output=output)

    async def work() -> list[Any]:
        coming = (
            engine.ask(picture, prompt, image_id=str(n), sampling=sampling)
            for n, (picture, prompt, sampling) in enumerate(asked)
        )
        return await asyncio.gather(*coming, return_exceptions=True)

    return asyncio.run(work())


@pytest.fixture(scope="module")
def signs() -> list[dict[str, Any]]:
    rows = benchmark_rows(kind="sign", count=QUESTIONS, seed=BENCHMARK_SEED + 1)
    return [
        row
        | {"picture": decode(row["image"]["bytes"], max_image_pixels=10**6, max_image_bytes=10**6)}
        for row in rows
    ]


def test_it_answers_as_the_embedded_model_does_and_says_what_it_used(
    url: str, signs: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = Folder.at(tmp_path)
    asked = [
        (row["picture"], prompts.ANSWERING.format(question=row["question"]), GREEDY)
        for row in signs
    ]
    first = ask(settings(url), asked, output)
    again = ask(settings(url), asked, output)
    assert all(isinstance(reply, Reply) for reply in first + again), [
        reply for reply in first + again if not isinstance(reply, Reply)
    ][:1]
    right = sum(
        reply.text.strip().casefold() == row["answers"][0].casefold()
        for reply, row in zip(first, signs, strict=True)
    )
    assert right >= 0.8 * QUESTIONS
    assert all(
        reply.prompt_tokens > 16 and reply.output_tokens >= 1 and reply.finish_reason == "stop"
        for reply in first
    )
    counted = ledger.totals(output, settings(url))["annotate_and_identify"]
    assert counted["requests"] == 2 * QUESTIONS
    assert counted["prompt_tokens"] == sum(reply.prompt_tokens for reply in first + again)
    assert counted["output_tokens"] == sum(reply.output_tokens for reply in first + again)
    assert counted["unsure_prompt_tokens"] == counted["unsure_output_tokens"] == 0


def test_a_drawn_annotation_is_one_and_its_seed_repeats_it(
    url: str, signs: list[dict[str, Any]]
) -> None:
    drawn = [
        (row["picture"], prompts.SCENE_TEXT, Sampling(max_tokens=48, temperature=1.0, seed=n))
        for n, row in enumerate(signs[:8])
    ]
    first, again = ask(settings(url), drawn), ask(settings(url), drawn)
    assert all(parse_annotations(reply.text)[0].answer for reply in first)
    # Drawing goes by the order of sums too, which depends on what else is in a batch.
    assert sum(one.text == other.text for one, other in zip(first, again, strict=True)) >= 6


def test_its_refusals_are_told_apart(
    url: str, signs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = signs[0]["picture"]
    question = prompts.ANSWERING.format(question=signs[0]["question"])
    well, too_long = ask(
        settings(url), [(picture, question, GREEDY), (picture, "word " * 600, GREEDY)]
    )
    assert isinstance(well, Reply)
    assert type(too_long) is RequestRejected and "HTTP 400" in str(too_long)
    (cut,) = ask(settings(url), [(picture, prompts.SCENE_TEXT, Sampling(max_tokens=2))])
    assert (cut.finish_reason, cut.output_tokens) == ("length", 2)
    (unknown,) = ask(settings(url, model="another"), [(picture, question, GREEDY)])
    assert (
        type(unknown) is RunError
        and "HTTP 404" in str(unknown)
        and "model='another'" in str(unknown)
    )
    monkeypatch.setenv(KEY_NAME, "sk-a-wrong-one")
    (wrong,) = ask(settings(url), [(picture, question, GREEDY)])
    assert (
        type(wrong) is RunError
        and f"environment variable {KEY_NAME}" in str(wrong)
        and "sk-a-wrong-one" not in str(wrong)
    )
