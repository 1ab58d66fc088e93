"""The API engine against a server that follows a script of faults: what each does to the request,
the run, the ledger and the waiting.
"""

import asyncio
import base64
import contextlib
import gzip
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scripted_api import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    ScriptedApi,
    Step,
    body,
    completion,
    cut,
    hang,
    packed,
    raw,
    says,
    status,
)

from mpa_ray import engines
from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.engines import Reply, RequestRejected, Sampling, chat_completion, ledger
from mpa_ray.engines import openai as api
from mpa_ray.engines import pace as pacing
from mpa_ray.engines.api_key import check_api
from mpa_ray.engines.ledger import BudgetSpent, Tokens, usd
from mpa_ray.engines.pace import Pace
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.report import summary
from mpa_ray.storage.folder import Folder

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
    """Waiting takes no time: a clock of its own continues by what is slept. The list has every wait
    that was asked for.
    """
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
    return ModelSection(
        **(
            {
                "model": "guide-1",
                "engine": "openai",
                "base_url": server.url,
                "api_key_env": KEY_NAME,
            }
            | changes
        )
    )


def ask(
    server: ScriptedApi,
    count: int = 1,
    *,
    output: Folder | None = None,
    sampling: Sampling = GREEDY,
    **changes: Any,
) -> list[Any]:
    """`count` requests at once; an error takes the place of its reply."""
    engine = engines.load(settings(server, **changes), stage="pseudo_annotator", output=output)

    async def work() -> list[Any]:
        asked = (
            engine.ask(PICTURE, f"question {n}", image_id=str(n), sampling=sampling)
            for n in range(count)
        )
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(work())


def account(output: Folder) -> dict[str, Any]:
    """What the only ledger file says, without names."""
    (name,) = output.child("ledger").names(".json")
    return {
        key: value
        for key, value in output.read_json(f"ledger/{name}").items()
        if isinstance(value, int) and value
    }


def test_a_request_says_what_it_must_and_a_reply_what_it_cost() -> None:
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    with ScriptedApi(says("a red square", usage=usage)) as server:
        (reply,) = ask(
            server, sampling=Sampling(max_tokens=48, temperature=0.7, top_p=0.9, seed=11)
        )
    assert reply == Reply(
        text="a red square",
        prompt_tokens=120,
        cached_tokens=64,
        output_tokens=7,
        finish_reason="stop",
    )
    (request,) = server.requests
    assert (
        request["path"] == "/v1/chat/completions"
        and request["headers"]["authorization"] == f"Bearer {KEY}"
    )
    (message,) = request["messages"]
    image, text = message["content"]
    assert (
        message["role"] == "user"
        and image["type"] == "image_url"
        and text == {"type": "text", "text": "question 0"}
    )
    data = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert (
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").tobytes() == PICTURE.tobytes()
    )
    rest = {
        name: value
        for name, value in request.items()
        if name not in ("messages", "path", "headers", "at")
    }
    assert rest == {
        "model": "guide-1",
        "max_tokens": 48,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 11,
    }


def test_options_go_over_our_fields_and_null_takes_one_out() -> None:
    options = {
        "temperature": None,
        "max_tokens": None,
        "max_completion_tokens": 300,
        "reasoning_effort": "low",
    }
    with ScriptedApi(says("yes")) as server:
        ask(server, engine_options=options)
    (request,) = server.requests
    assert "temperature" not in request and "max_tokens" not in request
    assert (request["max_completion_tokens"], request["reasoning_effort"]) == (300, "low")


def test_the_newer_name_of_max_tokens_is_found_out_once() -> None:
    refusal = status(
        400,
        message="Use 'max_completion_tokens' instead.",
        code="unsupported_parameter",
        param="max_tokens",
    )
    with ScriptedApi(refusal) as server:
        replies = ask(server, 3)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert ["max_tokens" in request for request in server.requests] == [True, False, False, False]
    assert all(request["max_completion_tokens"] == 16 for request in server.requests[1:])


def test_another_refused_setting_ends_the_run_and_names_it() -> None:
    with ScriptedApi(
        status(
            400,
            message="Only the default (1) is supported.",
            code="unsupported_value",
            param="temperature",
        )
    ) as server:
        (error,) = ask(server)
    assert type(error) is RunError
    assert "refuses 'temperature'" in str(error) and "engine_options={temperature: null}" in str(
        error
    )


@pytest.mark.parametrize("size", [(256, 256), (1000, 700)])
def test_small_and_drawn_images_are_sent_without_loss(size: tuple[int, int]) -> None:
    drawn = Image.new("RGB", size, "white")
    drawn.paste("navy", (10, 10, 100, 100))
    url = chat_completion.data_url(drawn)
    assert url.startswith("data:image/png;base64,")
    assert (
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).tobytes() == drawn.tobytes()
    )


def test_large_photographs_are_sent_as_jpeg_with_full_colour() -> None:
    smooth = np.linspace(0, 255, 600 * 500 * 3).reshape(500, 600, 3) + np.random.default_rng(
        0
    ).normal(0, 6, (500, 600, 3))
    photograph = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    url = chat_completion.data_url(photograph)
    assert url.startswith("data:image/jpeg;base64,")
    data = base64.b64decode(url.partition(",")[2])
    again = np.asarray(Image.open(io.BytesIO(data)), np.float64)
    assert len(data) < photograph.width * photograph.height * 3 / 3
    assert np.abs(again - np.asarray(photograph, np.float64)).mean() < 4
    lines = Image.new("RGB", (700, 700))
    lines.putdata(
        [
            (255, x % 256, y % 256) if x % 2 else (0, y % 256, x % 256)
            for y in range(700)
            for x in range(700)
        ]
    )
    red = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(chat_completion.data_url(lines).partition(",")[2]))),
        np.float64,
    )[..., 0]
    assert red[:, 1::2].mean() - red[:, ::2].mean() > 150, (
        "columns one pixel wide keep their colour"
    )


REJECTIONS = {
    "bad image": (status(400, message="cannot identify image file"), "cannot identify image file"),
    "too large": (status(413, message="request too large"), "HTTP 413"),
    "too long": (
        status(400, message="maximum context length", code="context_length_exceeded"),
        "maximum context length",
    ),
    "policy": (status(400, message="filtered", code="content_policy_violation"), "filtered"),
    "unprocessable": (status(422, message="bad field"), "bad field"),
    "refusal": (
        says(None, refusal="I can't help with that."),
        "the model refused: I can't help with that.",
    ),
    "content filter": (says(None, finish_reason="content_filter"), "content filter took the reply"),
    "long refusal": (says(None, refusal="no\n" * 10_000), "the model refused: no no no"),
    "no choices": (body(completion("") | {"choices": []}), "no choices"),
    "null choices": (body(completion("") | {"choices": None}), "no choices"),
    "odd choices": (
        body(completion("") | {"choices": {"message": {"content": "x"}}}),
        "without a text",
    ),
    "odd choice": (body(completion("") | {"choices": ["x", None]}), "without a text"),
    "no message": (
        body(completion("") | {"choices": [{"finish_reason": "stop"}]}),
        "without a text",
    ),
    "odd message": (body(completion("") | {"choices": [{"message": "x"}]}), "without a text"),
    "content in parts": (body(completion([{"type": "text", "text": "x"}])), "without a text"),
    "a number": (body(completion(7)), "without a text"),
    "odd type": (status(400, message="no", type=["x"]), "HTTP 400: no"),
    "odd code": (status(422, message="no", code={"x": [1]}, param=["y"]), "HTTP 422: no"),
    "odd message of an error": (status(400, message={"x": ["y"]}), "HTTP 400"),
    "no object in an error": (
        lambda handler, _: handler.send(400, b'{"error": ["x", 7]}'),
        "HTTP 400",
    ),
    "a setting that we do not send": (
        status(400, message="no", code="unsupported_value", param="messages"),
        "HTTP 400: no",
    ),
    "surrogate": (status(400, message="no \ud83d", code="\ud83d"), "HTTP 400: no \ufffd"),
    "surrogate in a refusal": (says(None, refusal="no \ud83d"), "the model refused: no \ufffd"),
}


@pytest.mark.parametrize("kind", REJECTIONS)
def test_a_request_at_fault_is_rejected_at_once_and_others_continue(kind: str) -> None:
    step, said = REJECTIONS[kind]
    with ScriptedApi(says("fine"), step) as server:
        results = ask(server, 4)
    assert sum(isinstance(result, Reply) for result in results) == 3
    (error,) = [result for result in results if isinstance(result, Exception)]
    assert type(error) is RequestRejected and said in str(error)
    assert str(error).encode() and len(str(error)) < 1000
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "kind", ["refusal", "content filter", "no choices", "null choices", "content in parts"]
)
def test_a_reply_that_is_rejected_is_paid_for(kind: str, tmp_path: Path) -> None:
    with ScriptedApi(REJECTIONS[kind][0]) as server:
        ask(server, output=Folder.at(tmp_path))
    assert account(Folder.at(tmp_path)) == {
        "requests": 1,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }


def test_when_nothing_at_all_is_accepted_the_rows_are_not_at_fault(tmp_path: Path) -> None:
    with ScriptedApi(otherwise=status(400, message="this model takes no images")) as server:
        results = ask(server, 60)
        assert len(server.requests) == 24
        assert {type(result) for result in results} == {RequestRejected, RunError}
        assert "Does model='guide-1' take images?" in str(results[-1])


def test_when_no_reply_has_a_text_the_rows_are_not_at_fault() -> None:
    """Each of them is paid for."""
    with ScriptedApi(otherwise=REJECTIONS["content in parts"][0]) as server:
        results = ask(server, 60)
        assert len(server.requests) == 24
    assert "without a text" in str(results[-1]) and type(results[-1]) is RunError


def test_on_a_resume_a_long_row_of_rejections_is_believed(tmp_path: Path) -> None:
    with ScriptedApi(says("fine"), otherwise=status(400, message="a policy")) as server:
        ask(server, output=Folder.at(tmp_path))
        results = ask(server, 60, output=Folder.at(tmp_path))
    assert {type(result) for result in results} == {RequestRejected}


ENDS = {
    "no key": (
        status(401, message="Incorrect API key"),
        ["HTTP 401", f"environment variable {KEY_NAME}", "it is set"],
    ),
    "not allowed": (
        status(403, message="not for you"),
        ["HTTP 403", f"environment variable {KEY_NAME}"],
    ),
    "no place to go": (status(308), ["HTTP 308", "it redirects to elsewhere"]),
    "no such model": (
        status(404, message="no model guide-1"),
        ["HTTP 404", "model='guide-1'", "base_url='http://127.0.0.1"],
    ),
    "not a chat API": (status(405), ["HTTP 405"]),
    "quota": (
        status(429, message="You exceeded", code="insufficient_quota"),
        ["quota is exhausted", "the same command"],
    ),
    "quota by type": (
        status(429, message="You exceeded", type="insufficient_quota"),
        ["quota is exhausted"],
    ),
    "billing": (
        status(400, message="hard limit", code="billing_hard_limit_reached"),
        ["quota is exhausted"],
    ),
    "no credit": (status(402, message="add credit"), ["quota is exhausted (add credit)"]),
    "no type that is a text": (
        status(401, message="no", type=["insufficient_quota"], code=["x"]),
        ["HTTP 401: no"],
    ),
    "surrogate": (status(403, message="no \ud83d"), ["HTTP 403: no \ufffd"]),
    "redirect": (
        status(302, headers={"Location": "https://login.example/v1?token=x"}),
        [
            "HTTP 302",
            "it redirects to https://login.example/v1, ",
            "Set base_url to the address of the API itself; it is 'http://127",
        ],
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_no_request_can_survive_ends_the_run_with_one_request(
    kind: str, tmp_path: Path
) -> None:
    step, words = ENDS[kind]
    with ScriptedApi(otherwise=step) as server:
        results = ask(server, 5, output=Folder.at(tmp_path))
        assert {type(result) for result in results} == {RunError}
        assert all(word in str(result) for word in words for result in results)
        assert f"127.0.0.1:{server.server_address[1]}" in str(results[0])
        assert len(server.requests) == 1, "the others do not try for themselves"
    assert account(Folder.at(tmp_path)) == {}, "what is refused costs nothing"


FAULTS: dict[str, tuple[Step, bool]] = {
    "409": (status(409), False),
    "425": (status(425), False),
    "500": (status(500), True),
    "502 in HTML": (
        lambda handler, _: handler.send(502, b"<html>Bad Gateway</html>", content_type="text/html"),
        True,
    ),
    "503": (status(503), True),
    "504": (status(504), True),
    "524": (status(524), True),
    "408": (status(408), True),
    "cut": (cut, True),
    "hang": (hang(30), True),
    "malformed": (raw(b'{"choices": [{"mess'), True),
    "text": (raw(b"upstream error", "text/plain"), True),
    "empty": (raw(b""), True),
    "not UTF-8": (raw(b"\xff\xfe\xfa"), True),
    "another JSON": (body({"error": {"message": "overloaded", "code": 529}}), True),
    "a list": (body([1, 2]), True),
    "nested": (raw(b"[" * 1_000_000), True),
    "nested error": (
        lambda handler, _: handler.send(
            500, b'{"error": {"code": ' + b"[" * 900 + b"]" * 900 + b"}}"
        ),
        True,
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_passing_fault_is_tried_again_and_counted_where_it_may_have_been_billed(
    kind: str, tmp_path: Path, waits: list[float]
) -> None:
    step, may_cost = FAULTS[kind]
    with ScriptedApi(says("fine"), step, step) as server:
        replies = ask(
            server, 2, output=Folder.at(tmp_path), request_timeout_s=2 if kind == "hang" else 60
        )
    assert sorted(reply.text[:9] for reply in replies) == ["Question:", "fine"]
    assert len(server.requests) == 4
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2, "exponential, with jitter"
    said = account(Folder.at(tmp_path))
    assert (said["requests"], said["prompt_tokens"], said["output_tokens"]) == (
        2,
        2 * PROMPT_TOKENS,
        2 * OUTPUT_TOKENS,
    )
    assert said.get("unsure_output_tokens", 0) == (2 * 16 if may_cost else 0)
    assert (said.get("unsure_prompt_tokens", 0) > 0) == may_cost


@pytest.mark.parametrize("well", [0, 3])
@pytest.mark.parametrize("kind", ["500", "cut", "malformed"])
def test_a_server_that_does_not_recover_ends_the_run_and_blames_no_row(
    kind: str, well: int, waits: list[float], tmp_path: Path
) -> None:
    """At once down, or after it has answered: what it answered before blames nobody either."""
    with ScriptedApi(*[says("fine")] * well, otherwise=FAULTS[kind][0]) as server:
        results = ask(server, 20)
    assert [type(result) for result in results].count(Reply) == well
    assert {type(result) for result in results} - {Reply} == {RunError}
    assert "8 tries failed" in str(results[-1]) and "the same command" in str(results[-1])
    assert well or (len(server.requests) == 9 and sum(waits) < 240), (
        "one row, and the probe in place of the others"
    )


def test_no_server_at_all_ends_the_run_and_costs_nothing(
    tmp_path: Path, waits: list[float]
) -> None:
    with ScriptedApi() as server:
        pass
    (error,) = ask(server, output=Folder.at(tmp_path))
    assert type(error) is RunError and "no connection (ConnectError)" in str(error)
    assert account(Folder.at(tmp_path)) == {}


def asked_of(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"][1]["text"]


@pytest.mark.parametrize("kind", ["500", "cut", "malformed", "503"])
@pytest.mark.parametrize(("bad", "count"), [(0, 20), (7, 20), (19, 20), (0, 1)])
def test_an_image_on_which_the_server_fails_is_quarantined_wherever_it_stands(
    bad: int, count: int, kind: str, waits: list[float], tmp_path: Path
) -> None:
    """Asked first, in between, last, or alone, as by a call after one that did the others."""

    def poisoned(handler: Any, request: dict[str, Any]) -> None:
        (FAULTS[kind][0] if asked_of(request) == f"question {bad}" else says("fine"))(
            handler, request
        )

    with ScriptedApi(otherwise=poisoned) as server:
        results = ask(server, count, output=Folder.at(tmp_path))
    assert type(results[bad]) is RequestRejected and "8 tries failed, the last with: " in str(
        results[bad]
    )
    assert all(reply.text == "fine" for reply in results[:bad] + results[bad + 1 :])
    asked = Counter(map(asked_of, server.requests))
    assert asked.pop(f"question {bad}") == 8
    assert asked.pop(api._PROBE, 0) <= 2 and set(asked.values()) <= {1}
    said = account(Folder.at(tmp_path))
    assert said["requests"] == len(server.requests) - 8, "the probe is in the ledger"
    assert said["unsure_output_tokens"] == 8 * 16


def test_a_row_that_fails_first_lets_the_others_go_while_it_is_tried_again(
    waits: list[float],
) -> None:
    def poisoned(handler: Any, request: dict[str, Any]) -> None:
        (status(500) if asked_of(request) == asked_of(server.requests[0]) else says("fine"))(
            handler, request
        )

    with ScriptedApi(otherwise=poisoned) as server:
        results = ask(server, 5)
    first, probe, second = (asked_of(request) for request in server.requests[:3])
    assert probe == api._PROBE and second not in (first, probe)
    assert Counter(type(result) for result in results) == {Reply: 4, RequestRejected: 1}


def test_a_row_is_blamed_only_for_what_it_does_alone(waits: list[float]) -> None:
    """A server that loses all that it works on with a row takes no other row with it."""
    at_once, lock = 0, threading.Lock()

    def fragile(handler: Any, request: dict[str, Any]) -> None:
        nonlocal at_once
        with lock:
            at_once += 1
        time.sleep(0.03)
        with lock:
            fails = at_once > 1 or asked_of(request) == "question 4"
        time.sleep(0.03)
        with lock:
            at_once -= 1
        (status(500) if fails else says("fine"))(handler, request)

    with ScriptedApi(otherwise=fragile) as server:
        results = ask(server, 8)
    assert [type(result) for result in results] == [Reply] * 4 + [RequestRejected] + [Reply] * 3


def test_a_server_that_answers_nothing_but_the_probe_ends_the_run(waits: list[float]) -> None:
    def picky(handler: Any, request: dict[str, Any]) -> None:
        (says("white") if asked_of(request) == api._PROBE else status(500))(handler, request)

    with ScriptedApi(otherwise=picky) as server:
        results = ask(server, 30)
    assert Counter(type(result) for result in results) == {RequestRejected: 23, RunError: 7}
    assert all(
        "rejected the first 24 requests" in str(result)
        for result in results
        if type(result) is RunError
    )


def test_a_server_that_comes_back_while_it_is_probed_gets_the_row_again(waits: list[float]) -> None:
    """It is down for as long as all tries but the last take."""
    with ScriptedApi(says("fine"), *[status(502)] * 12) as server:
        results = ask(server, 2)
    assert [type(result) for result in results] == [Reply, Reply]
    first, *rest = (asked_of(request) for request in server.requests)
    assert rest == [rest[0]] * 7 + [api._PROBE] * 6 + [rest[0]] and rest[0] != first


def test_a_budget_allows_for_the_probe(tmp_path: Path, waits: list[float]) -> None:
    def poisoned(handler: Any, request: dict[str, Any]) -> None:
        (says("white") if asked_of(request) == api._PROBE else status(500))(handler, request)

    output, bound = Folder.at(tmp_path), 0.0012
    with ScriptedApi(otherwise=poisoned) as server:
        (error,) = ask(server, output=output, max_cost_usd=bound, **PRICES)
        assert type(error) is BudgetSpent
        totals = ledger.totals(output, settings(server, **PRICES))["annotate_and_identify"]
    assert len(server.requests) >= 2 and totals["requests"] == 1
    assert 0 < totals["at_most_usd"] <= bound


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "600"}, 600),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
    ],
)
def test_retry_after_is_honoured(
    headers: dict[str, str], seconds: float, waits: list[float], tmp_path: Path
) -> None:
    with ScriptedApi(status(429, headers=headers)) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path))
    assert isinstance(reply, Reply)
    assert waits == [pytest.approx(seconds)]
    assert account(Folder.at(tmp_path))["requests"] == 1


def a_moment_ago() -> str:
    return format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        (429, {"Retry-After": "0"}),
        (429, {"Retry-After": "-5"}),
        (429, {"Retry-After": "0.001"}),
        (429, {"Retry-After": a_moment_ago()}),
        (503, {"Retry-After": "0"}),
        (503, {"retry-after-ms": "1"}),
    ],
)
def test_a_wait_of_nothing_is_no_leave_to_ask_at_once(
    code: int, headers: dict[str, str], waits: list[float]
) -> None:
    with ScriptedApi(otherwise=status(code, headers=headers)) as server:
        (error,) = ask(server)
    assert type(error) is RunError and "asks to wait" in str(error)
    assert len(server.requests) < 150
    assert all(wait >= min(30, 2**n / 2) for n, wait in enumerate(waits))


@pytest.mark.parametrize(("seconds_from_now", "wait"), [(900, 900), (-900, 0)])
def test_retry_after_may_be_a_date(seconds_from_now: float, wait: float) -> None:
    date = datetime.now(UTC) + timedelta(seconds=seconds_from_now)
    assert chat_completion.retry_after(
        {"retry-after": format_datetime(date, usegmt=True)}
    ) == pytest.approx(wait, abs=60)


@pytest.mark.parametrize(
    "value",
    ["soon", "nan", "inf", "", "Mon, 99 Foo 2026", f"Mon, 01 Jan 2026 00:00:00 +{'9' * 30}"],
)
def test_a_retry_after_that_says_nothing_is_none(value: str, waits: list[float]) -> None:
    with ScriptedApi(status(429, headers={"Retry-After": value})) as server:
        (reply,) = ask(server)
    assert isinstance(reply, Reply) and 0.5 <= waits[0] <= 1


def test_throttled_without_retry_after_waits_longer_each_time_and_does_not_count_as_a_fault(
    waits: list[float],
) -> None:
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


@pytest.mark.parametrize(
    "step",
    [
        status(429, headers={"Retry-After": "90000"}),
        status(503, headers={"Retry-After": "1800"}),
        status(429),
    ],
)
def test_throttled_for_more_than_an_hour_ends_the_run(step: Step, waits: list[float]) -> None:
    with ScriptedApi(otherwise=step) as server:
        (error,) = ask(server)
    assert (
        type(error) is RunError
        and "asks to wait" in str(error)
        and "requests_per_minute" in str(error)
    )


NO_USAGE: dict[str, Any] = {
    "none": None,
    "a list": [],
    "a number": 7,
    "bool": {"prompt_tokens": True, "completion_tokens": False},
    "negative": {"prompt_tokens": -1000, "completion_tokens": 10},
    "negative output": {"prompt_tokens": 100, "completion_tokens": -10},
    "absurd": {"prompt_tokens": 2**31, "completion_tokens": 10},
    "more than absurd": {"prompt_tokens": 100, "completion_tokens": 10**30},
    "a text": {"prompt_tokens": "100", "completion_tokens": "10"},
    "half": {"prompt_tokens": 100},
    "more cached than there is": {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 101},
    },
    "negative cached": {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": -1},
    },
}


@pytest.mark.parametrize("kind", NO_USAGE)
def test_missing_usage_counts_at_what_was_set_aside(kind: str, tmp_path: Path) -> None:
    with ScriptedApi(body({**completion("yes"), "usage": NO_USAGE[kind]})) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path))
    assert reply == Reply(
        text="yes", prompt_tokens=0, cached_tokens=0, output_tokens=0, finish_reason="stop"
    )
    said = account(Folder.at(tmp_path))
    assert (
        set(said) == {"unsure_prompt_tokens", "unsure_output_tokens"}
        and said["unsure_output_tokens"] == 16
    )


@pytest.mark.parametrize(
    "message",
    [
        {"content": None},
        {},
        {"reasoning": "hm"},
        {"content": None, "refusal": None},
        {"refusal": 7},
    ],
)
def test_no_content_is_an_empty_reply_cut_by_length(
    message: dict[str, Any], tmp_path: Path
) -> None:
    """A model that ended within its reasoning has said nothing, and was paid for it."""
    choice = {"message": message, "finish_reason": "length"}
    with ScriptedApi(otherwise=body(completion("") | {"choices": [choice]})) as server:
        (reply,) = ask(server, output=Folder.at(tmp_path))
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert account(Folder.at(tmp_path)) == {
        "requests": 1,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }


@pytest.mark.parametrize("reason", [["stop"], {}, 7, None, ""])
def test_an_odd_finish_reason_is_none(reason: Any) -> None:
    with ScriptedApi(says("fine", finish_reason=reason)) as server:
        (reply,) = ask(server)
    assert reply.finish_reason == "stop"


def test_a_lone_surrogate_does_not_get_past_the_engine() -> None:
    with ScriptedApi(
        otherwise=says("Question: what? \ud83d, Answer: a \ude00 \U0001f600")
    ) as server:
        (reply,) = ask(server)
        engine = engines.load(settings(server))
        asyncio.run(engine.ask(PICTURE, "and \ud83d?", image_id="0", sampling=GREEDY))
    assert reply.text == "Question: what? \ufffd, Answer: a \ufffd \U0001f600"
    assert asked_of(server.requests[-1]) == "and \ufffd?"


def test_what_own_engines_say_can_be_stored_too() -> None:
    reply = Reply(
        text="a \ud83d", prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
    )
    assert reply.text == "a \ufffd" and str(RequestRejected("b \ud83d")) == "b \ufffd"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "refusal",
                    "finish_reason",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "cached_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_CHOICE = st.fixed_dictionaries({}, optional={"message": _JSON, "finish_reason": _JSON})


@hypothesis.given(
    st.fixed_dictionaries(
        {}, optional={"choices": _JSON | st.lists(_CHOICE | _JSON, max_size=2), "usage": _JSON}
    )
    | _JSON
)
def test_whatever_json_comes_is_a_reply_a_rejection_or_another_try(reply_body: Any) -> None:
    used = chat_completion.usage_of(reply_body)
    assert used is None or 0 <= used.cached <= used.prompt < 2**31 > used.output >= 0
    with contextlib.suppress(RequestRejected):
        reply = chat_completion.reply_of(reply_body)
        assert reply is None or (
            reply.text.encode() is not None
            and reply.prompt_tokens < 2**31
            and isinstance(reply.finish_reason, str)
        )


# Replies that would fill the memory


def _packed_zeros(
    mebibytes: int, begin: bytes = b'{"choices": [{"message": {"content": "'
) -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    yield packer.compress(begin)
    for _ in range(mebibytes):
        yield packer.compress(b"A" * 2**20)
    yield packer.compress(b'"}}]}') + packer.flush()


def _endless() -> Iterator[bytes]:
    while True:
        yield b"A" * 2**16


def _error_without_end(handler: Any, _: dict[str, Any]) -> None:
    handler.send_response(400)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(ConnectionError):
        for piece in _endless():
            handler.wfile.write(piece)


HUGE: dict[str, tuple[Callable[[], Step], str]] = {
    "unpacks to 400 MiB": (lambda: packed(list(_packed_zeros(400))), "a reply of more than 4 MiB"),
    "is packed twice": (
        lambda: packed([gzip.compress(gzip.compress(b"{}"))], "gzip, gzip"),
        "packed more than once",
    ),
    "has no end": (lambda: packed(_endless(), "identity"), "a reply of more than 4 MiB"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_reply_is_read_up_to_a_bound(kind: str, waits: list[float], tmp_path: Path) -> None:
    step, said = HUGE[kind]
    huge = step()
    with ScriptedApi(says("fine"), huge, otherwise=huge) as server:
        tracemalloc.start()
        try:
            results = ask(server, 2, output=Folder.at(tmp_path))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {type(result) for result in results} == {Reply, RunError}
    assert any(said in str(result) for result in results)
    assert most < 64 * 2**20
    assert account(Folder.at(tmp_path))["unsure_output_tokens"] == 15 * 16, (
        "it may have been billed"
    )


def test_of_an_error_without_end_the_beginning_is_enough() -> None:
    with ScriptedApi(says("fine"), _error_without_end) as server:
        results = ask(server, 2)
    assert {type(result) for result in results} == {Reply, RequestRejected}


def test_a_reply_that_is_packed_is_read() -> None:
    data = gzip.compress(json.dumps(completion("fine")).encode())
    with ScriptedApi(packed([data[:20], data[20:]])) as server:
        (reply,) = ask(server)
    assert reply.text == "fine"


def test_of_a_text_that_is_far_too_long_the_beginning_is_kept() -> None:
    with ScriptedApi(says("word " * 100_000)) as server:
        (reply,) = ask(server)
    assert len(reply.text) == 100_000 and reply.finish_reason == "length"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(code: int) -> None:
    with ScriptedApi(otherwise=says("from elsewhere")) as other:
        with ScriptedApi(
            otherwise=status(code, headers={"Location": f"{other.url}/chat/completions"})
        ) as server:
            (error,) = ask(server)
        assert type(error) is RunError and f"it redirects to {other.url}/chat/completions" in str(
            error
        )
        assert other.requests == []


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
    ended: list[bool] = []

    def look() -> None:
        if ended:
            raise RunError("over")

    async def work() -> None:
        limit = Pace(None, look)
        limit.pause(3000)
        began = pacing.monotonic()
        waiting = asyncio.create_task(limit.take(1))
        await asyncio.sleep(0)
        ended.append(True)
        with pytest.raises(RunError, match="over"):
            await waiting
        assert pacing.monotonic() - began <= 2 * pacing._LOOK_EVERY_S, "of 3,000 s"

    asyncio.run(work())


def test_a_nap_ends_when_the_run_has_ended(waits: list[float]) -> None:
    began = pacing.monotonic()

    def look() -> None:
        if pacing.monotonic() - began > 5:
            raise RunError("over")

    with pytest.raises(RunError, match="over"):
        asyncio.run(pacing.nap(3000, look))
    assert pacing.monotonic() - began <= 5 + 2 * pacing._LOOK_EVERY_S


# The ledger and the budget

PRICES = {
    "usd_per_million_input_tokens": 2.5,
    "usd_per_million_cached_tokens": 1.25,
    "usd_per_million_output_tokens": 10.0,
}
# What a reply of the scripted server costs.
EACH = (PROMPT_TOKENS * 2.5 + OUTPUT_TOKENS * 10) / 1e6


def test_money_is_tokens_times_prices() -> None:
    priced = ModelSection(engine="openai", **PRICES)
    assert usd(Tokens(prompt=1_000_000, cached=400_000, output=100_000), priced) == pytest.approx(
        0.6 * 2.5 + 0.4 * 1.25 + 0.1 * 10
    )
    uncached = ModelSection(engine="openai", **PRICES | {"usd_per_million_cached_tokens": None})
    assert usd(Tokens(prompt=1_000_000, cached=400_000), uncached) == pytest.approx(2.5)


def test_totals_say_what_each_step_cost(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    with ScriptedApi() as server:
        ask(server, 3, output=output, **PRICES)
        ask(server, 4, output=output, **PRICES)
        totals = ledger.totals(output, settings(server, **PRICES))
        assert "cost_usd" not in ledger.totals(output, settings(server))["annotate_and_identify"], (
            "without prices nobody knows"
        )
    assert set(totals) == {"annotate_and_identify"}
    step = totals["annotate_and_identify"]
    assert (step["requests"], step["prompt_tokens"], step["output_tokens"]) == (7, 700, 70)
    assert step["cost_usd"] == pytest.approx(7 * EACH) == step["at_most_usd"]
    assert ledger.totals(Folder.at(tmp_path / "none"), settings(server)) == {}


@pytest.mark.parametrize("in_flight", [1, 30])
def test_the_budget_is_never_passed_and_nearly_used(in_flight: int, tmp_path: Path) -> None:
    output, bound = Folder.at(tmp_path), 40.5 * EACH
    with ScriptedApi() as server:
        engine = engines.load(
            settings(server, max_cost_usd=bound, **PRICES), stage="pseudo_annotator", output=output
        )

        async def work() -> list[Any]:
            slots = asyncio.Semaphore(in_flight)

            async def one(n: int) -> Any:
                async with slots:
                    return await engine.ask(
                        PICTURE, f"question {n}", image_id=str(n), sampling=GREEDY
                    )

            return await asyncio.gather(*(one(n) for n in range(100)), return_exceptions=True)

        results = asyncio.run(work())
        totals = ledger.totals(output, settings(server, **PRICES))["annotate_and_identify"]
    errors = [result for result in results if isinstance(result, Exception)]
    assert {type(error) for error in errors} <= {BudgetSpent, RunError}
    assert "the budget is spent: $0.0" in str(errors[0]) and "Raise it (--lvlm.max_cost_usd" in str(
        errors[0]
    )
    assert totals["requests"] == len(server.requests) == 100 - len(errors)
    assert totals["at_most_usd"] == totals["cost_usd"] <= bound
    assert totals["requests"] >= 38, "only the last reservation is left unused"


DEAR = {
    "usd_per_million_input_tokens": 1000.0,
    "usd_per_million_output_tokens": 1000.0,
    "usd_per_million_cached_tokens": 0.0,
}
LYING = {
    "negative": ({"prompt_tokens": -1000, "completion_tokens": -10}, 0.11),
    "cached": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 10_000},
        },
        0.11,
    ),
    "longer than max_tokens": ({"prompt_tokens": 100, "completion_tokens": 800}, 0.9),
}


@pytest.mark.parametrize("kind", LYING)
def test_no_usage_that_is_said_takes_the_budget_off(kind: str, tmp_path: Path) -> None:
    """What each reply really costs comes with the kind."""
    usage, each = LYING[kind]
    output = Folder.at(tmp_path)
    with ScriptedApi(otherwise=says("x", usage=usage)) as server:
        results = ask(server, 200, output=output, max_cost_usd=5.0, images_in_flight=32, **DEAR)
        totals = ledger.totals(output, settings(server, **DEAR))["annotate_and_identify"]
    assert len(server.requests) * each <= totals["at_most_usd"] + 1e-9 <= 5.0 + 1e-9
    assert "the budget is spent" in str(results[-1]) and any(
        isinstance(result, Reply) for result in results
    )


def test_what_a_reply_has_beyond_its_max_tokens_is_expected_of_the_next_ones(
    tmp_path: Path, waits: list[float]
) -> None:
    """Of those with another `max_tokens` too: an excess of reasoning has nothing to do with it."""
    thinking = {"prompt_tokens": 100, "completion_tokens": 800}
    output = Folder.at(tmp_path)
    with ScriptedApi(says("x", usage=thinking), *[status(500)] * 8, *[status(401)]) as server:
        engine = engines.load(
            settings(server, max_cost_usd=5.0, **DEAR), stage="pseudo_annotator", output=output
        )
        ask_one = partial(engine.ask, PICTURE, "q", image_id="0")

        async def work() -> None:
            await ask_one(sampling=Sampling(max_tokens=16))
            with pytest.raises(BudgetSpent):
                await ask_one(sampling=Sampling(max_tokens=256))

        asyncio.run(work())
    # 784 and a quarter more are expected beyond `max_tokens`: 1,236 tokens each.
    assert account(output)["unsure_output_tokens"] == 2 * (256 + 980)


def test_only_what_was_in_flight_can_pass_the_budget_when_a_server_counts_more_all_at_once(
    tmp_path: Path,
) -> None:
    output = Folder.at(tmp_path)
    few, many = ({"prompt_tokens": n, "completion_tokens": 10} for n in (100, 2000))
    with ScriptedApi(*[says("x", usage=few)] * 19, otherwise=says("x", usage=many)) as server:
        ask(server, 400, output=output, max_cost_usd=5.0, images_in_flight=32, **DEAR)
        totals = ledger.totals(output, settings(server, **DEAR))["annotate_and_identify"]
    # What is left after 19 replies had let 18 more go out at their bound.
    assert len(server.requests) <= 19 + 18
    assert totals["at_most_usd"] == pytest.approx(19 * 0.11 + (len(server.requests) - 19) * 2.01)


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
    """Whatever the server has served by the time of the kill, the file already allows for it; and
    not for more than the budget.
    """
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import asyncio\nfrom PIL import Image\nfrom mpa_ray import engines\nfrom mpa_ray.config"
        " import ModelSection\n"
        "from mpa_ray.engines import Sampling\nfrom mpa_ray.storage.folder import Folder\n"
        "model = ModelSection.model_validate_json(sys.argv[1])\n"
        "engine = engines.load(model, stage='pseudo_annotator', output=Folder.at(sys.argv[2]))\n"
        "async def work():\n"
        "    asks = (engine.ask(Image.new('RGB', (28, 28)), 'q', image_id='i',"
        " sampling=Sampling(max_tokens=16)) for _ in range(20000))\n"
        "    await asyncio.gather(*asks)\n"
        "asyncio.run(work())\n"
    )
    with ScriptedApi() as server:
        model = settings(server, max_cost_usd=10.0, **PRICES)
        process = subprocess.Popen(
            [sys.executable, "-c", program, model.model_dump_json(), str(tmp_path)],
            stderr=subprocess.DEVNULL,
        )
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


# The key


def every_file(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_key_is_in_no_message_log_or_file_even_when_the_server_repeats_it(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    waits: list[float],
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
    assert [type(result) for result in results] == [
        Reply,
        RequestRejected,
        RequestRejected,
        RunError,
    ]
    assert len(server.requests) == len(steps)
    said = "".join(f"{result!r} {result}" for result in results)
    said += "".join(
        line
        for result in results
        if isinstance(result, Exception)
        for line in traceback.format_exception(result)
    )
    assert "***" in said
    captured = capfd.readouterr()
    for text in (said, caplog.text, captured.out, captured.err, every_file(tmp_path).decode()):
        assert KEY not in text


def test_the_key_is_no_part_of_a_configuration() -> None:
    config = Config(lvlm=ModelSection(model="guide-1", engine="openai", api_key_env=KEY_NAME))
    assert (
        KEY not in config.model_dump_json()
        and KEY not in repr(config)
        and KEY not in json.dumps(identity(config))
    )


def test_without_a_key_openai_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
        (
            {"engine_options": {"max_tokens": None}, "max_cost_usd": 1.0, **PRICES},
            "the cost of a reply would have no bound",
        ),
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000' is no address"),
        (
            {"engine": "vllm", "base_url": "http://h/v1"},
            "base_url='http://h/v1' is for models behind an API",
        ),
        ({"engine": "vllm", "max_cost_usd": 1.0}, "max_cost_usd=1.0 is for models behind an API"),
        (
            {"engine": "transformers", "requests_per_minute": 9},
            "requests_per_minute=9.0 is for models behind an API",
        ),
        ({"engine": "transformers", "engine_options": {"a": 1}}, "takes no engine_options"),
    ],
)
def test_combinations_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSection(**{"model": "m", "engine": "openai"} | changes)
    (problem,) = caught.value.errors()
    assert words in problem["msg"]


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"api_key_env": KEY},
    ],
)
def test_a_key_where_it_does_not_belong_is_refused_without_repeating_it(
    changes: dict[str, Any],
) -> None:
    from mpa_ray.config.parse import validate

    with pytest.raises(ConfigurationError) as caught:
        validate({"lvlm": {"model": "m", "engine": "openai"} | changes})
    assert KEY not in str(caught.value)


def test_the_small_model_is_not_behind_an_api() -> None:
    with pytest.raises(ValidationError, match="the S-VLM is trained here"):
        Config(svlm=ModelSection(model="m", engine="openai"))


def test_rates_prices_and_address_may_change_between_calls() -> None:
    before = Config(lvlm=ModelSection(model="m", engine="openai"))
    changes = {
        "base_url": "http://h/v1",
        "requests_per_minute": 9,
        "max_cost_usd": 1,
        "request_timeout_s": 9,
    } | PRICES
    assert identity(before) == identity(
        Config(lvlm=ModelSection(model="m", engine="openai", **changes))
    )
    assert identity(before) != identity(Config(lvlm=ModelSection(model="other", engine="openai")))


def test_the_client_is_imported_only_by_the_engine() -> None:
    program = (
        "import sys, mpa_ray.pipeline, mpa_ray.engines.openai, mpa_ray.engines.ledger;"
        " print({'openai', 'httpx2'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": "."}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == "set()"


def test_the_summary_says_what_was_paid_and_what_may_have_been() -> None:
    paid = {
        "requests": 1200,
        "prompt_tokens": 120_000,
        "output_tokens": 9_000,
        "cost_usd": 0.39,
        "at_most_usd": 0.41,
    }
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
    assert (
        "API: 1,200 requests, 120,000 tokens in, 9,000 out, $0.3900 (at most $0.4100, with"
        " requests that had no reply)" in text
    )
    assert "API: 4 requests, 400 tokens in, 40 out\n" in text
