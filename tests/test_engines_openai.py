"""The API engine against a server that follows a script of faults: what each does to the request, the run, the ledger and the waiting."""

import asyncio
import base64
import io
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scripted_api import OUTPUT_TOKENS, PROMPT_TOKENS, ScriptedApi, Step, body, completion, cut, hang, raw, says, status

from mpa_ray import engines, ledger, summary
from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.engines import openai as api
from mpa_ray.engines import pace as pacing
from mpa_ray.engines.pace import Pace
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.ledger import BudgetSpent, Ledger, Tokens, usd
from mpa_ray.models import check_api
from mpa_ray.storage import Folder

KEY_NAME = "MPA_TEST_API_KEY"
KEY = "sk-planted-0123456789abcdef"
PICTURE = Image.new("RGB", (28, 28), "red")
GREEDY = Sampling(max_tokens=16)
USED = Tokens(prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Waiting takes no time: a clock of its own goes on by what is slept. The list has every wait that was asked for."""
    now, asked = time.monotonic(), []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async def nap(seconds: float, look: Callable[[], None]) -> None:
        asked.append(seconds)
        await real_nap(seconds, look)

    real_nap = api.nap
    monkeypatch.setattr(pacing, "monotonic", lambda: now)
    monkeypatch.setattr(pacing, "sleep", sleep)
    monkeypatch.setattr(api, "nap", nap)
    yield asked


def settings(server: ScriptedApi, **changes: Any) -> ModelSection:
    return ModelSection(**({"model": "guide-1", "engine": "openai", "base_url": server.url, "api_key_env": KEY_NAME} | changes))


def ask(server: ScriptedApi, count: int = 1, *, output: Folder | None = None, sampling: Sampling = GREEDY, **changes: Any) -> list[Any]:
    """`count` requests at once; an error takes the place of its reply."""
    engine = engines.load(settings(server, **changes), stage="pseudo_annotator", output=output)

    async def work() -> list[Any]:
        asked = (engine.ask(PICTURE, f"question {n}", image_id=str(n), sampling=sampling) for n in range(count))
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(work())


def account(output: Folder) -> dict[str, Any]:
    """What the only ledger file says, without names."""
    (name,) = output.child("ledger").names(".json")
    return {key: value for key, value in output.read_json(f"ledger/{name}").items() if isinstance(value, int) and value}


def test_a_request_says_what_it_must_and_a_reply_what_it_cost() -> None:
    usage = {"prompt_tokens": 120, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}
    with ScriptedApi(says("a red square", usage=usage)) as server:
        (reply,) = ask(server, sampling=Sampling(max_tokens=48, temperature=0.7, top_p=0.9, seed=11))
    assert reply == Reply(text="a red square", prompt_tokens=120, cached_tokens=64, output_tokens=7, finish_reason="stop")
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions" and request["headers"]["authorization"] == f"Bearer {KEY}"
    (message,) = request["messages"]
    image, text = message["content"]
    assert message["role"] == "user" and image["type"] == "image_url" and text == {"type": "text", "text": "question 0"}
    data = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").tobytes() == PICTURE.tobytes()
    rest = {name: value for name, value in request.items() if name not in ("messages", "path", "headers", "at")}
    assert rest == {"model": "guide-1", "max_tokens": 48, "temperature": 0.7, "top_p": 0.9, "seed": 11}


def test_options_go_over_our_fields_and_null_takes_one_out() -> None:
    options = {"temperature": None, "max_tokens": None, "max_completion_tokens": 300, "reasoning_effort": "low"}
    with ScriptedApi(says("yes")) as server:
        ask(server, engine_options=options)
    (request,) = server.requests
    assert "temperature" not in request and "max_tokens" not in request
    assert (request["max_completion_tokens"], request["reasoning_effort"]) == (300, "low")


def test_the_newer_name_of_max_tokens_is_found_out_once() -> None:
    refusal = status(400, message="Use 'max_completion_tokens' instead.", code="unsupported_parameter", param="max_tokens")
    with ScriptedApi(refusal) as server:
        replies = ask(server, 3)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert ["max_tokens" in request for request in server.requests] == [True, False, False, False]
    assert all(request["max_completion_tokens"] == 16 for request in server.requests[1:])


def test_another_refused_setting_ends_the_run_and_names_it() -> None:
    with ScriptedApi(status(400, message="Only the default (1) is supported.", code="unsupported_value", param="temperature")) as server:
        (error,) = ask(server)
    assert type(error) is RunError
    assert "refuses 'temperature'" in str(error) and "engine_options={temperature: null}" in str(error)


@pytest.mark.parametrize("size", [(256, 256), (1000, 700)])
def test_small_and_drawn_images_are_sent_without_loss(size: tuple[int, int]) -> None:
    drawn = Image.new("RGB", size, "white")
    drawn.paste("navy", (10, 10, 100, 100))
    url = api.data_url(drawn)
    assert url.startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).tobytes() == drawn.tobytes()


def test_large_photographs_are_sent_as_jpeg_with_full_colour() -> None:
    smooth = np.linspace(0, 255, 600 * 500 * 3).reshape(500, 600, 3) + np.random.default_rng(0).normal(0, 6, (500, 600, 3))
    photograph = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    url = api.data_url(photograph)
    assert url.startswith("data:image/jpeg;base64,")
    data = base64.b64decode(url.partition(",")[2])
    again = np.asarray(Image.open(io.BytesIO(data)), np.float64)
    assert len(data) < photograph.width * photograph.height * 3 / 3
    assert np.abs(again - np.asarray(photograph, np.float64)).mean() < 4
    lines = Image.new("RGB", (700, 700))
    lines.putdata([(255, x % 256, y % 256) if x % 2 else (0, y % 256, x % 256) for y in range(700) for x in range(700)])
    red = np.asarray(Image.open(io.BytesIO(base64.b64decode(api.data_url(lines).partition(",")[2]))), np.float64)[..., 0]
    assert red[:, 1::2].mean() - red[:, ::2].mean() > 150, "columns one pixel wide keep their colour"


REJECTIONS = {
    "bad image": (status(400, message="cannot identify image file"), "cannot identify image file"),
    "too large": (status(413, message="request too large"), "HTTP 413"),
    "too long": (status(400, message="maximum context length", code="context_length_exceeded"), "maximum context length"),
    "policy": (status(400, message="filtered", code="content_policy_violation"), "filtered"),
    "unprocessable": (status(422, message="bad field"), "bad field"),
    "refusal": (says(None, refusal="I can't help with that."), "the model refused: I can't help with that."),
    "content filter": (says(None, finish_reason="content_filter"), "content filter took the reply"),
    "no choices": (body({"choices": [], "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS}}), "no choices"),
}


@pytest.mark.parametrize("kind", REJECTIONS)
def test_a_request_at_fault_is_rejected_at_once_and_others_go_on(kind: str) -> None:
    step, said = REJECTIONS[kind]
    with ScriptedApi(says("fine"), step) as server:
        results = ask(server, 4)
    assert sum(isinstance(result, Reply) for result in results) == 3
    (error,) = [result for result in results if isinstance(result, Exception)]
    assert type(error) is RequestRejected and said in str(error)
    assert len(server.requests) == 4


@pytest.mark.parametrize("kind", ["refusal", "content filter", "no choices"])
def test_a_reply_that_is_rejected_is_paid_for(kind: str, tmp_path: Path) -> None:
    with ScriptedApi(REJECTIONS[kind][0]) as server:
        ask(server, output=Folder.at(tmp_path))
    assert account(Folder.at(tmp_path)) == {"requests": 1, "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}


def test_when_nothing_at_all_is_accepted_the_rows_are_not_at_fault(tmp_path: Path) -> None:
    with ScriptedApi(otherwise=status(400, message="this model takes no images")) as server:
        results = ask(server, 60)
        assert len(server.requests) == 24
        assert {type(result) for result in results} == {RequestRejected, RunError}
        assert "Does model='guide-1' take images?" in str(results[-1])


def test_on_a_resume_a_long_row_of_rejections_is_believed(tmp_path: Path) -> None:
    with ScriptedApi(says("fine"), otherwise=status(400, message="a policy")) as server:
        ask(server, output=Folder.at(tmp_path))
        results = ask(server, 60, output=Folder.at(tmp_path))
    assert {type(result) for result in results} == {RequestRejected}


ENDS = {
    "no key": (status(401, message="Incorrect API key"), ["HTTP 401", f"environment variable {KEY_NAME}", "it is set"]),
    "not allowed": (status(403, message="not for you"), ["HTTP 403", f"environment variable {KEY_NAME}"]),
    "no such model": (status(404, message="no model guide-1"), ["HTTP 404", "model='guide-1'", "base_url='http://127.0.0.1"]),
    "not a chat API": (status(405), ["HTTP 405"]),
    "quota": (status(429, message="You exceeded", code="insufficient_quota"), ["quota is exhausted", "the same command"]),
    "quota by type": (status(429, message="You exceeded", type="insufficient_quota"), ["quota is exhausted"]),
    "billing": (status(400, message="hard limit", code="billing_hard_limit_reached"), ["quota is exhausted"]),
    "no credit": (status(402, message="add credit"), ["quota is exhausted (add credit)"]),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_no_request_can_survive_ends_the_run_with_one_request(kind: str, tmp_path: Path) -> None:
    step, words = ENDS[kind]
    with ScriptedApi(otherwise=step) as server:
        results = ask(server, 5, output=Folder.at(tmp_path))
        assert {type(result) for result in results} == {RunError}
        assert all(word in str(result) for word in words for result in results)
        assert f"127.0.0.1:{server.server_address[1]}" in str(results[0])
        assert len(server.requests) == 1, "the others do not try for themselves"
    assert account(Folder.at(tmp_path)) == {}, "what is refused costs nothing"


FAULTS: dict[str, tuple[Step, bool]] = {
    "500": (status(500), False),
    "502 in HTML": (lambda handler, _: handler.send(502, b"<html>Bad Gateway</html>", content_type="text/html"), False),
    "503": (status(503), False),
    "408": (status(408), False),
    "cut": (cut, True),
    "hang": (hang(30), True),
    "malformed": (raw(b'{"choices": [{"mess'), True),
    "text": (raw(b"upstream error", "text/plain"), True),
    "empty": (raw(b""), True),
    "not UTF-8": (raw(b"\xff\xfe\xfa"), True),
    "another JSON": (body({"error": {"message": "overloaded", "code": 529}}), True),
    "a list": (body([1, 2]), True),
    "no message": (body({"choices": [{"finish_reason": "stop"}]}), True),
    "content in parts": (body({"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]}), True),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_passing_fault_is_tried_again_and_counted_where_it_may_have_been_billed(kind: str, tmp_path: Path, waits: list[float]) -> None:
    step, may_cost = FAULTS[kind]
    with ScriptedApi(step, step) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path), request_timeout_s=2 if kind == "hang" else 60)
    assert reply.text.startswith("Question:")
    assert len(server.requests) == 3
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2, "exponential, with jitter"
    said = account(Folder.at(tmp_path))
    assert (said["requests"], said["prompt_tokens"], said["output_tokens"]) == (1, PROMPT_TOKENS, OUTPUT_TOKENS)
    assert said.get("unsure_output_tokens", 0) == (2 * 16 if may_cost else 0)
    assert (said.get("unsure_prompt_tokens", 0) > 0) == may_cost


@pytest.mark.parametrize("kind", ["500", "cut", "malformed"])
def test_a_server_that_does_not_recover_ends_the_run(kind: str, waits: list[float]) -> None:
    with ScriptedApi(otherwise=FAULTS[kind][0]) as server:
        results = ask(server, 3)
    assert {type(result) for result in results} == {RunError}
    assert "8 tries failed" in str(results[0]) and "the same command" in str(results[0])
    assert len(server.requests) == 8
    assert sum(waits) < 240


def test_no_server_at_all_ends_the_run_and_costs_nothing(tmp_path: Path, waits: list[float]) -> None:
    with ScriptedApi() as server:
        pass
    (error,) = ask(server, output=Folder.at(tmp_path))
    assert type(error) is RunError and "no connection (ConnectError)" in str(error)
    assert account(Folder.at(tmp_path)) == {}


def test_one_image_that_brings_the_server_down_is_quarantined(waits: list[float]) -> None:
    def poisoned(handler: Any, request: dict[str, Any]) -> None:
        bad = request["messages"][0]["content"][1]["text"] == "question 3"
        (status(500, message="crashed") if bad else says("fine"))(handler, request)

    with ScriptedApi(otherwise=poisoned) as server:
        results = ask(server, 24)
    assert type(results[3]) is RequestRejected and "8 tries failed, the last with: HTTP 500: crashed" in str(results[3])
    assert all(reply.text == "fine" for reply in results[:3] + results[4:])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "600"}, 600),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
    ],
)
def test_retry_after_is_honoured(headers: dict[str, str], seconds: float, waits: list[float], tmp_path: Path) -> None:
    with ScriptedApi(status(429, headers=headers)) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path))
    assert isinstance(reply, Reply)
    assert waits == [pytest.approx(seconds)]
    assert account(Folder.at(tmp_path))["requests"] == 1


@pytest.mark.parametrize(("seconds_from_now", "wait"), [(900, 900), (-900, 0)])
def test_retry_after_may_be_a_date(seconds_from_now: float, wait: float) -> None:
    date = datetime.now(UTC) + timedelta(seconds=seconds_from_now)
    assert api.retry_after({"retry-after": format_datetime(date, usegmt=True)}) == pytest.approx(wait, abs=60)


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "", "Mon, 99 Foo 2026"])
def test_a_retry_after_that_says_nothing_is_none(value: str, waits: list[float]) -> None:
    with ScriptedApi(status(429, headers={"Retry-After": value})) as server:
        (reply,) = ask(server)
    assert isinstance(reply, Reply) and 0.5 <= waits[0] <= 1


def test_throttled_without_retry_after_waits_longer_each_time_and_does_not_count_as_a_fault(waits: list[float]) -> None:
    with ScriptedApi(*[status(429)] * 12) as server:
        (reply,) = ask(server)
    assert isinstance(reply, Reply)
    assert all(2**n / 2 <= wait <= min(60, 2**n) for n, wait in enumerate(waits[:6]))
    assert all(30 <= wait <= 60 for wait in waits[6:])


def test_throttled_by_one_request_all_wait(waits: list[float]) -> None:
    paused = Pace(None, lambda: None)

    async def work() -> float:
        before = pacing.monotonic()
        paused.pause(300)
        await paused.take(1)
        return pacing.monotonic() - before

    assert asyncio.run(work()) == pytest.approx(300)


@pytest.mark.parametrize("step", [status(429, headers={"Retry-After": "90000"}), status(503, headers={"Retry-After": "1800"}), status(429)])
def test_throttled_for_more_than_an_hour_ends_the_run(step: Step, waits: list[float]) -> None:
    with ScriptedApi(otherwise=step) as server:
        (error,) = ask(server)
    assert type(error) is RunError and "asks to wait" in str(error) and "requests_per_minute" in str(error)


def test_missing_usage_counts_at_what_was_set_aside(tmp_path: Path) -> None:
    with ScriptedApi(body({**completion("yes"), "usage": None})) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path))
    assert reply == Reply(text="yes", prompt_tokens=0, cached_tokens=0, output_tokens=0, finish_reason="stop")
    said = account(Folder.at(tmp_path))
    assert set(said) == {"unsure_prompt_tokens", "unsure_output_tokens"} and said["unsure_output_tokens"] == 16


def test_no_content_is_an_empty_reply_cut_by_length() -> None:
    with ScriptedApi(says(None, finish_reason="length")) as server:
        (reply,) = ask(server)
    assert (reply.text, reply.finish_reason) == ("", "length")


def test_the_first_request_goes_alone_and_the_others_together() -> None:
    def slow(handler: Any, request: dict[str, Any]) -> None:
        time.sleep(0.2)
        says("fine")(handler, request)

    with ScriptedApi(otherwise=slow) as server:
        ask(server, 9)
    first, *rest = sorted(request["at"] for request in server.requests)
    assert rest[0] - first >= 0.2
    assert server.most_at_once > 4


# Rate limits


def test_no_minute_has_more_requests_than_the_limit(waits: list[float]) -> None:
    """Over three simulated minutes, every window of 60 s, the first one too."""
    limit = Pace(90, lambda: None)
    went: list[float] = []

    async def one() -> None:
        await limit.take(1)
        went.append(pacing.monotonic())

    async def work() -> None:
        await asyncio.gather(*(one() for _ in range(270)))

    asyncio.run(work())
    assert max(sum(start <= at < start + 60 - 1e-6 for at in went) for start in went) == 90
    assert went[-1] - went[0] == pytest.approx(269 / 90 * 60, rel=0.01), "and no slower than it may"


def test_tokens_are_limited_by_what_replies_say_not_by_the_estimate(waits: list[float]) -> None:
    async def work(actual: int) -> float:
        limit = Pace(60_000, lambda: None)
        before = pacing.monotonic()
        for _ in range(100):
            await limit.take(3000)
            limit.correct(actual - 3000)
        return pacing.monotonic() - before

    assert asyncio.run(work(600)) == pytest.approx(99 * 600 / 1000, rel=0.01)
    assert asyncio.run(work(6000)) == pytest.approx(99 * 6000 / 1000, rel=0.01)


def test_unused_time_is_not_saved_up(waits: list[float]) -> None:
    limit = Pace(60, lambda: None)

    async def work() -> float:
        await limit.take(1)
        await pacing.sleep(600)
        before = pacing.monotonic()
        for _ in range(30):
            await limit.take(1)
        return pacing.monotonic() - before

    assert asyncio.run(work()) == pytest.approx(29)


def test_the_engine_keeps_the_rate_over_all_its_requests() -> None:
    with ScriptedApi(otherwise=says("fine")) as server:
        ask(server, 21, requests_per_minute=1200)
    times = sorted(request["at"] for request in server.requests)
    assert times[-1] - times[0] > 0.9, "20 intervals of 50 ms"


def test_a_waiter_wakes_when_the_run_has_ended(waits: list[float]) -> None:
    ended = []

    def look() -> None:
        if ended:
            raise RunError("over")

    async def work() -> None:
        limit = Pace(None, look)
        limit.pause(3000)
        waiting = asyncio.create_task(limit.take(1))
        await asyncio.sleep(0)
        ended.append(True)
        with pytest.raises(RunError, match="over"):
            await waiting

    asyncio.run(work())


# The ledger and the budget

PRICES = {"usd_per_million_input_tokens": 2.5, "usd_per_million_cached_tokens": 1.25, "usd_per_million_output_tokens": 10.0}
# What a reply of the scripted server costs.
EACH = (PROMPT_TOKENS * 2.5 + OUTPUT_TOKENS * 10) / 1e6


def test_money_is_tokens_times_prices() -> None:
    priced = ModelSection(engine="openai", **PRICES)
    assert usd(Tokens(prompt=1_000_000, cached=400_000, output=100_000), priced) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 0.1 * 10)
    uncached = ModelSection(engine="openai", **PRICES | {"usd_per_million_cached_tokens": None})
    assert usd(Tokens(prompt=1_000_000, cached=400_000), uncached) == pytest.approx(2.5)


def test_totals_say_what_each_step_cost(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    with ScriptedApi() as server:
        ask(server, 3, output=output, **PRICES)
        ask(server, 4, output=output, **PRICES)
        totals = ledger.totals(output, settings(server, **PRICES))
        assert "cost_usd" not in ledger.totals(output, settings(server))["annotate_and_identify"], "without prices nobody knows"
    assert set(totals) == {"annotate_and_identify"}
    step = totals["annotate_and_identify"]
    assert (step["requests"], step["prompt_tokens"], step["output_tokens"]) == (7, 700, 70)
    assert step["cost_usd"] == pytest.approx(7 * EACH) == step["at_most_usd"]
    assert ledger.totals(Folder.at(tmp_path / "none"), settings(server)) == {}


@pytest.mark.parametrize("in_flight", [1, 30])
def test_the_budget_is_never_passed_and_nearly_used(in_flight: int, tmp_path: Path) -> None:
    output, bound = Folder.at(tmp_path), 40.5 * EACH
    with ScriptedApi() as server:
        engine = engines.load(settings(server, max_cost_usd=bound, **PRICES), stage="pseudo_annotator", output=output)

        async def work() -> list[Any]:
            slots = asyncio.Semaphore(in_flight)

            async def one(n: int) -> Any:
                async with slots:
                    return await engine.ask(PICTURE, f"question {n}", image_id=str(n), sampling=GREEDY)

            return await asyncio.gather(*(one(n) for n in range(100)), return_exceptions=True)

        results = asyncio.run(work())
        totals = ledger.totals(output, settings(server, **PRICES))["annotate_and_identify"]
    errors = [result for result in results if isinstance(result, Exception)]
    assert {type(error) for error in errors} <= {BudgetSpent, RunError}
    assert "the budget is spent: $0.0" in str(errors[0]) and "Raise it (--lvlm.max_cost_usd" in str(errors[0])
    assert totals["requests"] == len(server.requests) == 100 - len(errors)
    assert totals["at_most_usd"] == totals["cost_usd"] <= bound
    assert totals["requests"] >= 38, "only the last reservation is left unused"


def test_earlier_calls_count(tmp_path: Path) -> None:
    output, bound = Folder.at(tmp_path), 10.5 * EACH
    with ScriptedApi() as server:
        ask(server, 6, output=output, **PRICES)
        results = ask(server, 20, output=output, max_cost_usd=bound, **PRICES)
        assert 1 <= sum(isinstance(result, Reply) for result in results) <= 4
        assert len(server.requests) <= 10
        ledger.require_budget(output, settings(server, max_cost_usd=bound, **PRICES))
        with pytest.raises(BudgetSpent, match=r"Raise it \(--lvlm\.max_cost_usd"):
            ledger.require_budget(output, settings(server, max_cost_usd=5 * EACH, **PRICES))
        more = ask(server, 4, output=output, max_cost_usd=2 * bound, **PRICES)
        assert all(isinstance(result, Reply) for result in more)


def test_lost_replies_count_against_the_budget(tmp_path: Path, waits: list[float]) -> None:
    output = Folder.at(tmp_path)
    with ScriptedApi(otherwise=cut) as server:
        bound = 0.002
        (error,) = ask(server, output=output, max_cost_usd=bound, **PRICES)
        assert type(error) is BudgetSpent
        totals = ledger.totals(output, settings(server, **PRICES))["annotate_and_identify"]
    assert 1 <= len(server.requests) < 8
    assert totals["cost_usd"] == 0 and 0 < totals["at_most_usd"] <= bound


def test_a_killed_process_leaves_a_ledger_that_is_not_too_low(tmp_path: Path) -> None:
    """Whatever the server has served by the time of the kill, the file already allows for it; and not for more than the budget."""
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import asyncio\nfrom PIL import Image\nfrom mpa_ray import engines\nfrom mpa_ray.config import ModelSection\n"
        "from mpa_ray.engines import Sampling\nfrom mpa_ray.storage import Folder\n"
        "model = ModelSection.model_validate_json(sys.argv[1])\n"
        "engine = engines.load(model, stage='pseudo_annotator', output=Folder.at(sys.argv[2]))\n"
        "async def work():\n"
        "    asks = (engine.ask(Image.new('RGB', (28, 28)), 'q', image_id='i', sampling=Sampling(max_tokens=16)) for _ in range(20000))\n"
        "    await asyncio.gather(*asks)\n"
        "asyncio.run(work())\n"
    )
    with ScriptedApi() as server:
        model = settings(server, max_cost_usd=10.0, **PRICES)
        process = subprocess.Popen([sys.executable, "-c", program, model.model_dump_json(), str(tmp_path)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 300
            while len(server.requests) < 150 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        time.sleep(0.3)
        served = len(server.requests)
        totals = ledger.totals(Folder.at(tmp_path), model)["annotate_and_identify"]
    assert served >= 150
    assert served * EACH <= totals["at_most_usd"] + 1e-9 <= 10.0
    assert totals["requests"] <= served


def test_a_reservation_waits_for_others_rather_than_fail() -> None:
    async def work() -> None:
        most = Tokens(prompt=100, output=10)
        account = Ledger(ModelSection(engine="openai", max_cost_usd=1.5 * EACH, **PRICES), stage="pseudo_annotator", output=None)
        await account.reserve(most)
        second = asyncio.create_task(account.reserve(most))
        await asyncio.sleep(0.01)
        assert not second.done()
        await account.answered(most, Tokens(prompt=40, output=4))
        await second
        assert account.at_most_usd == pytest.approx(1.4 * EACH)
        await account.answered(most, most)
        with pytest.raises(BudgetSpent):
            await account.reserve(most)

    asyncio.run(work())


# The key


def every_file(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_key_is_in_no_message_log_or_file_even_when_the_server_repeats_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    told = f"Incorrect API key provided: {KEY}. Bearer {KEY}"
    steps = [
        says(f"Your key is {KEY}"),
        says(None, refusal=told),
        status(400, message=told),
        status(429, message=told),
        status(500, message=told),
        lambda handler, _: handler.send(502, told.encode(), content_type="text/plain"),
        raw(told.encode()),
        status(401, message=told),
    ]
    caplog.set_level(logging.DEBUG)
    results = []
    with ScriptedApi(*steps) as server:
        for _ in range(4):
            results += ask(server, output=Folder.at(tmp_path), **PRICES)
    assert [type(result) for result in results] == [Reply, RequestRejected, RequestRejected, RunError]
    assert len(server.requests) == len(steps)
    said = "".join(f"{result!r} {result}" for result in results)
    said += "".join(line for result in results if isinstance(result, Exception) for line in traceback.format_exception(result))
    assert "***" in said
    captured = capfd.readouterr()
    for text in (said, caplog.text, captured.out, captured.err, every_file(tmp_path).decode()):
        assert KEY not in text


def test_the_key_is_no_part_of_a_configuration() -> None:
    config = Config(lvlm=ModelSection(model="guide-1", engine="openai", api_key_env=KEY_NAME))
    assert KEY not in config.model_dump_json() and KEY not in repr(config) and KEY not in json.dumps(identity(config))


def test_without_a_key_openai_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_NAME)
    model = ModelSection(model="gpt-4o", engine="openai", api_key_env=KEY_NAME)
    with pytest.raises(ConfigurationError, match=f"variable {KEY_NAME} is not set"):
        check_api("lvlm", model)
    engine = engines.load(model)
    with pytest.raises(RunError, match=f"variable {KEY_NAME} is not set"):
        asyncio.run(engine.ask(PICTURE, "q", image_id="0", sampling=GREEDY))


def test_a_server_of_ones_own_may_need_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_NAME)
    with ScriptedApi(says("fine"), status(401)) as server:
        check_api("lvlm", settings(server))
        (reply,) = ask(server)
        (error,) = ask(server)
    assert reply.text == "fine"
    assert f"environment variable {KEY_NAME}" in str(error) and "it is not set" in str(error)


# The configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_replicas": 2}, "max_replicas=2 and engine='openai' exclude each other"),
        ({"max_cost_usd": 5.0}, "max_cost_usd=5.0 cannot be kept without prices"),
        ({"usd_per_million_input_tokens": 1.0}, "needs the prices of input and of output"),
        ({"usd_per_million_cached_tokens": 1.0}, "needs the prices of input and of output"),
        ({"revision": "main"}, "revision='main' cannot be asked of an API"),
        ({"dtype": "float16"}, "dtype='float16' cannot be asked of an API"),
        ({"engine_options": {"n": 4}}, "this field of a request is set by mpa_ray"),
        ({"engine_options": {"max_tokens": None}, "max_cost_usd": 1.0, **PRICES}, "the cost of a reply would have no bound"),
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000' is no address"),
        ({"engine": "vllm", "base_url": "http://h/v1"}, "base_url='http://h/v1' is for models behind an API"),
        ({"engine": "vllm", "max_cost_usd": 1.0}, "max_cost_usd=1.0 is for models behind an API"),
        ({"engine": "transformers", "requests_per_minute": 9}, "requests_per_minute=9.0 is for models behind an API"),
        ({"engine": "transformers", "engine_options": {"a": 1}}, "takes no engine_options"),
    ],
)
def test_combinations_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSection(**{"model": "m", "engine": "openai"} | changes)
    (problem,) = caught.value.errors()
    assert words in problem["msg"]


@pytest.mark.parametrize(
    "changes", [{"base_url": f"https://user:{KEY}@host/v1"}, {"base_url": f"https://host/v1?key={KEY}"}, {"api_key_env": KEY}]
)
def test_a_key_where_it_does_not_belong_is_refused_without_repeating_it(changes: dict[str, Any]) -> None:
    from mpa_ray.cli import validate

    with pytest.raises(ConfigurationError) as caught:
        validate({"lvlm": {"model": "m", "engine": "openai"} | changes})
    assert KEY not in str(caught.value)


def test_the_small_model_is_not_behind_an_api() -> None:
    with pytest.raises(ValidationError, match="the S-VLM is trained here"):
        Config(svlm=ModelSection(model="m", engine="openai"))


def test_rates_prices_and_address_may_change_between_calls() -> None:
    before = Config(lvlm=ModelSection(model="m", engine="openai"))
    changes = {"base_url": "http://h/v1", "requests_per_minute": 9, "max_cost_usd": 1, "request_timeout_s": 9} | PRICES
    assert identity(before) == identity(Config(lvlm=ModelSection(model="m", engine="openai", **changes)))
    assert identity(before) != identity(Config(lvlm=ModelSection(model="other", engine="openai")))


def test_the_client_is_imported_only_by_the_engine() -> None:
    program = "import sys, mpa_ray.pipeline, mpa_ray.engines.openai, mpa_ray.ledger; print({'openai', 'httpx2'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": "."}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "set()"


def test_the_summary_says_what_was_paid_and_what_may_have_been() -> None:
    paid = {"requests": 1200, "prompt_tokens": 120_000, "output_tokens": 9_000, "cost_usd": 0.39, "at_most_usd": 0.41}
    free = {"requests": 4, "prompt_tokens": 400, "output_tokens": 40}
    record = {
        "images": 600,
        "annotations": 600,
        "quarantined": {},
        "verdicts": {},
        "tokens": Counter(),
        "training": {},
        "evaluation": [],
        "stages": {"annotate_and_identify": 60.0, "evaluate_lvlm": 1.0},
        "ledger": {"annotate_and_identify": paid, "evaluate_lvlm": free},
    }
    text = summary.table(record)
    assert "API: 1,200 requests, 120,000 tokens in, 9,000 out, $0.3900 (at most $0.4100, with requests that had no reply)" in text
    assert "API: 4 requests, 400 tokens in, 40 out\n" in text
