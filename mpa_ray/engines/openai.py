"""A model behind an OpenAI-compatible API: OpenAI itself, a vLLM server, or any other that speaks
chat completions.

The SDK's own retries are off. They know neither our rate limit nor our ledger, give up on a
Retry-After above two minutes, and repeat a request that failed for an exhausted quota. What becomes
of a request here:

    reply                                        -> Reply
    refusal, content filter, no choices, no text -> RequestRejected: the row is quarantined
    400, 413, 415, 422                           -> RequestRejected: the request is at fault
                                                    (a bad image, too long)
    429, 503 with Retry-After                    -> all requests wait so long, at least as below
    408, 409, 425, 5xx                           -> again, after an exponential wait with jitter
    no reply in time, cut connection, no JSON,
    more than 4 MiB                              -> again likewise
    a redirect                                   -> RunError: it is not followed
    401, 403, 404, any other 4xx                 -> RunError: no request can succeed
    exhausted quota, a spent budget              -> RunError: the run ends and can resume later
    an hour of waits that the server asked for   -> RunError
    the last of 8 tries                          -> RequestRejected where the server answers others
                                                    RunError where it does not

Whether it answers others is seen and not assumed: before a request's last try somebody else must
have had a reply since the try before, or a small plain image is asked about (the probe), and then
the last try goes with no other beside it. So a server that is down blames no row, and a row that
brings the server down is found wherever it stands and takes no other with it.

What was sent and then had no reply, HTTP 408 or 5xx may have been billed, and the ledger says so.

The API key is read from the environment of the process that asks, and is in no message: what a
server says is cleaned of it before it is repeated.
"""

import asyncio
import json
import math
import os
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines.chat_completion import (
    data_url,
    messages,
    one_line,
    reply_of,
    retry_after,
    usage_of,
)
from mpa_ray.engines.ledger import Booking, Ledger, Tokens
from mpa_ray.engines.pace import Pace, Turns, nap
from mpa_ray.engines.protocol import Reply, RequestRejected, Sampling
from mpa_ray.errors import RunError
from mpa_ray.observability.progress import duration
from mpa_ray.storage.folder import Folder

if TYPE_CHECKING:
    from openai import APIStatusError

OPENAI_URL = "https://api.openai.com/v1"
# Two names of one setting: every server knows the first, OpenAI's newer models only the second.
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")

_REJECTED = {400, 413, 415, 422}
_PASSING = {408, 409, 425, 429}
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_BAD_SETTING = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}

# Waits of about 1, 2, 4 ... 60 s: a server that restarts is waited for, one that is gone ends the
# run after three minutes.
_TRIES = 8
_FIRST_WAIT_S = 1.0
_LAST_WAIT_S = 60.0
# Throttled that long, the run had better end and resume later. It bounds the tries too, since each
# waits at least its backoff.
_LONGEST_THROTTLE_S = 3600.0
# So many rejections before the first reply: it is not these rows, this model takes no such request.
_NONE_ACCEPTED = 24
# A quarter over the largest prompt so far: images of one run differ less than that, as `max_pixels`
# bounds them. As much over what a reply had beyond its `max_tokens`: some servers do not count
# reasoning in it.
_MARGIN = 1.25
# Before the first reply: two to four times what current models count, so that the first request is
# not rejected for its own estimate.
_PIXELS_PER_TOKEN = 14 * 14
_TEMPLATE_TOKENS = 128

_SHORTEST_KEY = 8


# What any model that takes images can answer.
_PROBE_SIZE = (64, 64)
_PROBE = "What color is this picture?"
_PROBE_TOKENS = 16


class _TryAgain(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
        wait_s: what a throttling server asks for, if it does.
        throttled: the server is well and has had enough of us, or wants the request otherwise.
    """

    def __init__(
        self, reason: str, *, wait_s: float | None = None, throttled: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.throttled = throttled


@dataclass
class _Request:
    """A request, and how its tries went."""

    image_url: str
    pixels: int
    prompt: str
    sampling: Sampling
    is_probe: bool = False
    tries: int = 0
    faults: int = 0
    throttled_s: float = 0.0


Turn = Callable[[], AbstractAsyncContextManager[None]]


def load(model: ModelSection, *, stage: str, output: Folder | None) -> "OpenAIEngine":
    """See `mpa_ray.engines.load`."""
    return OpenAIEngine(model, Ledger(model, stage=stage, output=output))


class OpenAIEngine:
    """The API, for one process: the rate limits and the budget hold because one actor asks for the
    whole stage.
    """

    def __init__(self, model: ModelSection, ledger: Ledger) -> None:
        from openai import AsyncOpenAI

        from mpa_ray.engines.bounded_client import BoundedClient

        self._model = model
        self._ledger = ledger
        self._url = model.base_url or OPENAI_URL
        self._host = urlsplit(self._url).netloc
        self._key = os.environ.get(model.api_key_env, "")
        # The URL is given so that the SDK does not take it from the environment. A server without
        # keys takes any.
        self._client = AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,
            http_client=BoundedClient(),
        )
        self._requests = Pace(model.requests_per_minute, self._look)
        self._tokens = Pace(model.tokens_per_minute, self._look)
        self._turns = Turns()
        self._length_field = "max_tokens"
        self._largest_prompt = 0
        self._largest_excess = 0
        self._answers = 0
        self._rejections = 0
        self._ended: RunError | None = None
        if not self._key and not model.base_url:
            self._ended = RunError(missing_key(model))

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        url = await asyncio.to_thread(data_url, image)
        request = _Request(url, image.width * image.height, prompt, sampling)
        try:
            return await self._answer(request)
        except RequestRejected as error:
            self._rejections += 1
            if self._answers or self._rejections < _NONE_ACCEPTED or not self._ledger.is_first:
                raise
            ended = RunError(
                f"{self._host} rejected the first {self._rejections} requests, so it is not these"
                f" images; the last with: {error}. Does model={self._model.model!r} take images?"
            )
        except RunError as error:
            ended = error
        self._ended = self._ended or ended
        raise ended

    def close(self) -> None:
        """Nothing to free: connections end with the process."""

    async def _answer(self, request: _Request) -> Reply:
        """Try until there is a reply, or until it is known whether the request or the server is
        at fault."""
        if not self._answers:
            # One goes first: it tells whether the key works, and what a prompt costs.
            async with self._turns.exclusively():
                if not self._answers:
                    try:
                        return await self._try(request, until=1)
                    except _TryAgain:
                        # That may be its image's fault, and the others need not wait for it.
                        await self._see_it_answer()
        try:
            return await self._try(request, until=_TRIES - 1, turn=self._turns.with_others)
        except _TryAgain:
            answers = self._answers
        await nap(_backoff(request.tries), self._look)
        try:
            if self._answers > answers:
                return await self._try(request, until=_TRIES, turn=self._turns.with_others)
            async with self._turns.exclusively():
                if self._answers == answers:
                    await self._see_it_answer()
                return await self._try(request, until=_TRIES)
        except _TryAgain as failure:
            said = f"{self._host}: {_TRIES} tries failed, the last with: {failure}"
            raise RequestRejected(said) from None

    async def _see_it_answer(self) -> None:
        """Ask for something else, until the server answers; called exclusively.

        Raises:
            RunError: it does not: no request is to blame.
        """
        url = data_url(Image.new("RGB", _PROBE_SIZE, "white"))
        sampling = Sampling(max_tokens=_PROBE_TOKENS)
        probe = _Request(url, math.prod(_PROBE_SIZE), _PROBE, sampling, is_probe=True)
        try:
            await self._try(probe, until=_TRIES)
        except RequestRejected:
            # An answer all the same.
            return
        except _TryAgain as failure:
            raise RunError(
                f"{self._host}: {_TRIES} tries failed, the last with: {failure}."
                " Give the same command when it is well again"
            ) from None

    async def _try(self, request: _Request, *, until: int, turn: Turn = nullcontext) -> Reply:
        """Ask until there is a reply; throttled, wait and ask again.

        Args:
            request: what is asked.
            until: with so many faults, those of earlier calls included, the last one is raised.
            turn: what each try waits for, where this request is not alone already.
        """
        while True:
            try:
                async with turn():
                    return await self._attempt(request)
            except _TryAgain as failure:
                wait = _backoff(request.tries)
                request.tries += 1
                if failure.throttled:
                    wait = max(wait, failure.wait_s or 0.0)
                    request.throttled_s += wait
                    self._throttle(failure, wait, request.throttled_s)
                else:
                    request.faults += 1
                    if request.faults >= until:
                        raise
                await nap(wait, self._look)

    async def _attempt(self, request: _Request) -> Reply:
        """One try, booked in the ledger whatever becomes of it."""
        fields = self._fields(request.sampling)
        asked = max(fields.get(name, 0) for name in LENGTH_FIELDS)
        bound = partial(self._most_tokens, request, asked)
        estimate = bound()
        await self._requests.take(1)
        await self._tokens.take(estimate.prompt + estimate.output)
        async with self._ledger.request(bound) as booking:
            try:
                body = await self._post(request, fields, booking)
            finally:
                if booking.is_free:
                    self._tokens.correct(-(estimate.prompt + estimate.output))
            booking.used = used = usage_of(body)
        if used is not None:
            more = used.prompt + used.output - estimate.prompt - estimate.output
            self._tokens.correct(more)
            self._largest_prompt = max(self._largest_prompt, used.prompt)
            self._largest_excess = max(self._largest_excess, used.output - asked)
        reply = reply_of(body)
        if reply is None:
            raise _TryAgain("a reply that is no chat completion")
        self._answers += not request.is_probe
        return reply

    async def _post(self, request: _Request, fields: dict[str, Any], booking: Booking) -> Any:
        """The body of the reply, as JSON."""
        from httpx2 import ConnectError
        from openai import APIConnectionError, APIStatusError

        from mpa_ray.engines.bounded_client import BrokenReply

        completions = self._client.chat.completions.with_raw_response
        try:
            async with asyncio.timeout(self._model.request_timeout_s):
                response = await completions.create(
                    model=self._model.model,
                    messages=messages(request.image_url, request.prompt),
                    extra_body=fields,
                )
            return json.loads(self._without_key(response.text))
        except APIStatusError as error:
            # A gateway's 504 means that it got no reply in time, and not that there was none.
            booking.is_free = error.status_code < 500 and error.status_code != 408
            self._judge(error, fields)
        except APIConnectionError as error:
            cause = error.__cause__
            booking.is_free = isinstance(cause, ConnectError)
            if isinstance(cause, BrokenReply):
                raise _TryAgain(str(cause)) from None
            raise _TryAgain(f"no connection ({type(cause).__name__})") from None
        except TimeoutError:
            raise _TryAgain(
                f"no reply within {self._model.request_timeout_s:g} s (request_timeout_s)"
            ) from None
        except (ValueError, RecursionError):
            raise _TryAgain("a reply that is not JSON") from None

    def _most_tokens(self, request: _Request, asked: int) -> Tokens:
        """The bound of a request, by its size and by what the server has counted so far."""
        text = len(request.prompt.encode("utf-8", "replace"))
        estimate = request.pixels // _PIXELS_PER_TOKEN + text + _TEMPLATE_TOKENS
        prompt = max(estimate, int(self._largest_prompt * _MARGIN))
        return Tokens(prompt=prompt, output=asked + int(self._largest_excess * _MARGIN))

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        """What the request says beside model and messages; `engine_options` come over ours, and
        null takes a field out.
        """
        fields = {
            self._length_field: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p != 1 else None,
            "seed": sampling.seed,
            **self._model.engine_options,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _judge(self, error: "APIStatusError", fields: Mapping[str, Any]) -> NoReturn:
        """What an HTTP error means; the table is at the top of the module. What a server gives as
        code, type or parameter may be anything."""
        status, said = error.status_code, self._said(error)
        code, kind, parameter = (
            value if isinstance(value, str) else ""
            for value in (error.code, error.type, error.param)
        )
        if code in _QUOTA or kind in _QUOTA or status == 402:
            raise RunError(
                f"{self._host}: the quota is exhausted ({said}). Top it up or wait for the next"
                " period, and give the same command"
            ) from None
        if 300 <= status < 400:
            place = self._line(error.response.headers.get("location", "").partition("?")[0])
            raise RunError(
                f"{self._host}: HTTP {status}: it redirects to {place or 'elsewhere'}, and"
                " redirects are not followed. Set base_url to the address of the API itself; it is"
                f" {self._url!r}"
            ) from None
        if status in _REJECTED and code in _BAD_SETTING and parameter in fields:
            self._refused_setting(parameter, said)
        if status in _REJECTED:
            raise RequestRejected(f"{self._host}: HTTP {status}: {said}") from None
        if status in _PASSING or status >= 500:
            wait = retry_after(error.response.headers)
            raise _TryAgain(
                f"HTTP {status}: {said}", wait_s=wait, throttled=status == 429 or wait is not None
            ) from None
        if status in (401, 403):
            raise RunError(
                f"{self._host}: HTTP {status}: {said}. Look at the key in the environment variable"
                f" {self._model.api_key_env} where Ray's workers run"
                f" ({'it is set' if self._key else 'it is not set'}), and at what it may use"
            ) from None
        raise RunError(
            f"{self._host}: HTTP {status}: {said}. Look at base_url={self._url!r} and"
            f" model={self._model.model!r}"
        ) from None

    def _refused_setting(self, name: str, said: str) -> NoReturn:
        """OpenAI's newer models take the length by another name; that much we find out. Other
        servers may silently ignore the new name.
        """
        if name == LENGTH_FIELDS[0] and name not in self._model.engine_options:
            # Once, the server is well and there is another name; after that it was sent before.
            is_news = self._length_field == name
            self._length_field = LENGTH_FIELDS[1]
            raise _TryAgain(said, throttled=is_news) from None
        raise RunError(
            f"{self._host} refuses {name!r}: {said}. engine_options={{{name}: null}} leaves it"
            " out, in a new output"
        ) from None

    def _throttle(self, failure: _TryAgain, wait: float, throttled_s: float) -> None:
        """The limit is the server's, not the request's: everyone waits."""
        if throttled_s > _LONGEST_THROTTLE_S:
            raise RunError(
                f"{self._host} asks to wait {duration(throttled_s)} ({failure}). Give the same"
                " command then; requests_per_minute and"
                " tokens_per_minute keep below a known limit"
            ) from None
        self._requests.pause(wait)

    def _look(self) -> None:
        if self._ended:
            raise RunError(str(self._ended))

    def _said(self, error: "APIStatusError") -> str:
        """The server's words, on one line and not too long."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return self._line(message if message and isinstance(message, str) else error.message)

    def _line(self, text: str) -> str:
        return one_line(self._without_key(text))

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they were given. Anything shorter is a placeholder, and may
        be part of a word.
        """
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_KEY else text


def missing_key(model: ModelSection) -> str:
    """Say that there is no key, and the fix."""
    return (
        f"{urlsplit(model.base_url or OPENAI_URL).netloc} needs a key and the environment variable"
        f" {model.api_key_env} is not set;"
        " export it, on a cluster for Ray's workers too (api_key_env names another variable,"
        " base_url another server)"
    )


def _backoff(tries: int) -> float:
    """Seconds before the next try: exponential, and drawn, so that requests that failed together do
    not come back together.
    """
    longest = min(_LAST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries, 16))
    return random.uniform(longest / 2, longest)
