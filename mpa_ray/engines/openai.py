"""A model behind an OpenAI-compatible API: OpenAI itself, a vLLM server, or any other that speaks chat completions.

The SDK's own retries are off. They know neither our rate limit nor our ledger, give up on a Retry-After above two minutes, and repeat a
request that failed for an exhausted quota. What becomes of a request here:

    reply                                        -> Reply
    refusal, content filter, no choices          -> RequestRejected: the row is quarantined
    400, 413, 415, 422                           -> RequestRejected: the request is at fault (a bad image, too long)
    429, 503 with Retry-After                    -> all requests wait as long as it says, up to an hour
    429, 408, 409, 425, 5xx                      -> again, after an exponential wait with jitter
    no reply in time, cut connection, no JSON    -> again likewise; it may have been billed and the ledger says so
    401, 403, 404, any other 4xx                 -> RunError: no request can succeed
    exhausted quota, a spent budget              -> RunError: the run ends and can go on later
    the last of several tries                    -> RunError; RequestRejected where the server answered others meanwhile

The API key is read from the environment of the process that asks, and is in no message: what a server says is cleaned of it before it is
repeated.
"""

import asyncio
import base64
import io
import itertools
import json
import math
import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.engines.pace import Pace, nap
from mpa_ray.errors import RunError
from mpa_ray.ledger import Ledger, Tokens
from mpa_ray.progress import duration

if TYPE_CHECKING:
    from openai import APIStatusError

OPENAI_URL = "https://api.openai.com/v1"
# Two names of one setting: every server knows the first, OpenAI's newer models only the second.
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")

_REJECTED = {400, 413, 415, 422}
_PASSING = {408, 409, 425, 429}
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_BAD_SETTING = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}

# Waits of about 1, 2, 4 ... 60 s: a server that restarts is waited for, one that is gone ends the run after three minutes.
_TRIES = 8
_FIRST_WAIT_S = 1.0
_LAST_WAIT_S = 60.0
# Throttled that long, the run had better end and go on later.
_LONGEST_THROTTLE_S = 3600.0
# So many rejections before the first reply: it is not these rows, this model takes no such request.
_NONE_ACCEPTED = 24
# A quarter over the largest prompt so far: images of one run differ less than that, as `max_pixels` bounds them.
_PROMPT_MARGIN = 1.25
# Before the first reply: two to four times what current models count, so that the first request is not rejected for its own estimate.
_PIXELS_PER_TOKEN = 14 * 14
_TEMPLATE_TOKENS = 128

_SHORTEST_KEY = 8

_LOSSLESS_PIXELS = 256 * 256
_LOSSLESS_COLORS = 4096
_JPEG_QUALITY = 95


class _TryAgain(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
        wait_s: what the server asks for, if it does.
        throttled: the server is well and has had enough of us.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.throttled = throttled


class OpenAIEngine:
    """The API, for one process: the rate limits and the budget hold because one actor asks for the whole stage."""

    def __init__(self, model: ModelSection, ledger: Ledger) -> None:
        from openai import AsyncOpenAI

        self._model = model
        self._ledger = ledger
        self._url = model.base_url or OPENAI_URL
        self._host = urlsplit(self._url).netloc
        self._key = os.environ.get(model.api_key_env, "")
        # The URL is given so that the SDK does not take it from the environment. A server without keys takes any.
        self._client = AsyncOpenAI(base_url=self._url, api_key=self._key or "none", max_retries=0, timeout=None)
        self._requests = Pace(model.requests_per_minute, self._look)
        self._tokens = Pace(model.tokens_per_minute, self._look)
        self._length_field = "max_tokens"
        self._first = asyncio.Lock()
        self._largest_prompt = 0
        self._answers = 0
        self._rejections = 0
        self._ended: RunError | None = None
        if not self._key and not model.base_url:
            self._ended = RunError(missing_key(model))

    async def ask(self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling) -> Reply:
        url = await asyncio.to_thread(data_url, image)
        pixels = image.width * image.height
        try:
            # One goes first: it tells whether the key works, and what a prompt costs.
            async with self._first:
                if not self._answers:
                    return await self._answer(url, pixels, prompt, sampling)
            return await self._answer(url, pixels, prompt, sampling)
        except RunError as error:
            self._ended = self._ended or error
            raise

    def close(self) -> None:
        """Nothing to free: connections end with the process."""

    async def _answer(self, url: str, pixels: int, prompt: str, sampling: Sampling) -> Reply:
        """Tries until there is a reply, a rejection, or nothing more to hope for."""
        faults, throttled_s, answers_before = 0, 0.0, self._answers
        for tries in itertools.count():
            try:
                return await self._attempt(url, pixels, prompt, sampling)
            except _TryAgain as failure:
                wait = _backoff(tries) if failure.wait_s is None else failure.wait_s
                if failure.throttled:
                    throttled_s += wait
                    self._throttle(failure, wait, throttled_s)
                else:
                    faults += 1
                if faults == _TRIES:
                    self._give_up(failure, others_answered=self._answers - answers_before)
                await nap(wait, self._look)
        raise AssertionError("count() has no end")

    async def _attempt(self, url: str, pixels: int, prompt: str, sampling: Sampling) -> Reply:
        """One request, settled in the ledger whatever becomes of it."""
        from openai import APIConnectionError, APIStatusError

        fields = self._fields(sampling)
        most = Tokens(prompt=self._most_prompt_tokens(pixels, prompt), output=max(fields.get(name, 0) for name in LENGTH_FIELDS))
        await self._requests.take(1)
        await self._tokens.take(most.prompt + most.output)
        await self._ledger.reserve(most)
        try:
            async with asyncio.timeout(self._model.request_timeout_s):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=self._model.model, messages=_messages(url, prompt), extra_body=fields
                )
            body = json.loads(self._without_key(response.text))
        except APIStatusError as error:
            self._tokens.correct(-(most.prompt + most.output))
            await self._ledger.refused(most)
            self._judge(error)
        except APIConnectionError as error:
            await (self._ledger.refused(most) if _never_sent(error) else self._ledger.unanswered(most))
            raise _TryAgain(f"no connection ({type(error.__cause__).__name__})") from None
        except TimeoutError:
            await self._ledger.unanswered(most)
            raise _TryAgain(f"no reply within {self._model.request_timeout_s:g} s (request_timeout_s)") from None
        except ValueError:
            await self._ledger.unanswered(most)
            raise _TryAgain("a reply that is not JSON") from None
        await self._settle(most, usage_of(body))
        reply = reply_of(body)
        self._answers += 1
        return reply

    def _most_prompt_tokens(self, pixels: int, prompt: str) -> int:
        text = len(prompt.encode())
        return max(pixels // _PIXELS_PER_TOKEN + text + _TEMPLATE_TOKENS, int(self._largest_prompt * _PROMPT_MARGIN))

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        """What the request says beside model and messages; `engine_options` come over ours, and null takes a field out."""
        fields = {
            self._length_field: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p != 1 else None,
            "seed": sampling.seed,
            **self._model.engine_options,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _settle(self, most: Tokens, used: Tokens | None) -> None:
        if used is None:
            await self._ledger.unanswered(most)
            return
        self._tokens.correct(used.prompt + used.output - most.prompt - most.output)
        self._largest_prompt = max(self._largest_prompt, used.prompt)
        await self._ledger.answered(most, used)

    def _judge(self, error: "APIStatusError") -> NoReturn:
        """What an HTTP error means; the table is at the top of the module."""
        status, said = error.status_code, self._said(error)
        if error.code in _QUOTA or error.type in _QUOTA or status == 402:
            raise RunError(
                f"{self._host}: the quota is exhausted ({said}). Top it up or wait for the next period, and give the same command"
            ) from None
        if status in _REJECTED and error.code in _BAD_SETTING:
            self._refused_setting(error.param or "", said)
        if status in _REJECTED:
            self._count_rejection(said)
            raise RequestRejected(f"{self._host}: HTTP {status}: {said}") from None
        if status in _PASSING or status >= 500:
            wait = retry_after(error.response.headers)
            raise _TryAgain(f"HTTP {status}: {said}", wait_s=wait, throttled=status == 429 or wait is not None) from None
        if status in (401, 403):
            raise RunError(
                f"{self._host}: HTTP {status}: {said}. Look at the key in the environment variable {self._model.api_key_env} where Ray's"
                f" workers run ({'it is set' if self._key else 'it is not set'}), and at what it may use"
            ) from None
        raise RunError(f"{self._host}: HTTP {status}: {said}. Look at base_url={self._url!r} and model={self._model.model!r}") from None

    def _refused_setting(self, name: str, said: str) -> NoReturn:
        """OpenAI's newer models take the length by another name; that much we find out. Other servers may silently ignore the new name."""
        if name == LENGTH_FIELDS[0]:
            self._length_field = LENGTH_FIELDS[1]
            raise _TryAgain(said, wait_s=0.0)
        raise RunError(f"{self._host} refuses {name!r}: {said}. engine_options={{{name}: null}} leaves it out, in a new output") from None

    def _count_rejection(self, said: str) -> None:
        self._rejections += 1
        if self._rejections >= _NONE_ACCEPTED and not self._answers and self._ledger.is_first:
            raise RunError(
                f"{self._host} rejected the first {self._rejections} requests, so it is not these images: {said}."
                f" Does model={self._model.model!r} take images?"
            ) from None

    def _give_up(self, failure: _TryAgain, *, others_answered: int) -> NoReturn:
        said = f"{self._host}: {_TRIES} tries failed, the last with: {failure}"
        # A server that answered as many others meanwhile is well; one image that brings it down must not end every attempt at the run.
        if others_answered >= _TRIES:
            raise RequestRejected(said) from None
        raise RunError(f"{said}. Give the same command when it is well again") from None

    def _throttle(self, failure: _TryAgain, wait: float, throttled_s: float) -> None:
        """The limit is the server's, not the request's: everyone waits."""
        if throttled_s > _LONGEST_THROTTLE_S:
            raise RunError(
                f"{self._host} asks to wait {duration(throttled_s)} ({failure}). Give the same command then; requests_per_minute and"
                " tokens_per_minute keep below a known limit"
            ) from None
        self._requests.pause(wait)

    def _look(self) -> None:
        if self._ended:
            raise RunError(str(self._ended))

    def _said(self, error: "APIStatusError") -> str:
        """The server's words, on one line and not too long."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return " ".join(self._without_key(str(message or error.message)).split())[:400]

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they were given. Anything shorter is a placeholder, and may be part of a word."""
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_KEY else text


def missing_key(model: ModelSection) -> str:
    """Says that there is no key, and the mend."""
    return (
        f"{urlsplit(model.base_url or OPENAI_URL).netloc} needs a key and the environment variable {model.api_key_env} is not set;"
        " export it, on a cluster for Ray's workers too (api_key_env names another variable, base_url another server)"
    )


def data_url(image: Image.Image) -> str:
    """The image as it goes into a request: PNG where it is small or drawn (with few colours PNG is smaller too), else JPEG at quality 95.

    JPEG keeps its colours at full resolution (4:4:4): coloured text is what many questions are about.
    """
    buffer = io.BytesIO()
    if image.width * image.height <= _LOSSLESS_PIXELS or image.getcolors(_LOSSLESS_COLORS):
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _messages(url: str, prompt: str) -> list[dict[str, Any]]:
    """The image first, so that a server's prefix cache covers it for the second question."""
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]}]


def reply_of(body: Any) -> Reply:
    """The reply in a chat completion. Token counts are 0 where the server does not say them.

    Raises:
        RequestRejected: the model refused, a filter took the reply, or there is none.
        _TryAgain: this is no chat completion.
    """
    match body:
        case {"choices": []}:
            raise RequestRejected("the API gave no choices")
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            raise RequestRejected("the API's content filter took the reply")
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]} if refusal:
            raise RequestRejected(f"the model refused: {refusal}")
        case {"choices": [{"message": {"content": str() | None as text}, **choice}, *_]}:
            used = usage_of(body) or Tokens()
            return Reply(
                text=text or "",
                prompt_tokens=used.prompt,
                cached_tokens=used.cached,
                output_tokens=used.output,
                finish_reason=choice.get("finish_reason") or "stop",
            )
    raise _TryAgain("a reply that is no chat completion")


def usage_of(body: Any) -> Tokens | None:
    """What a chat completion says it cost, or None."""
    match body:
        case {"usage": {"prompt_tokens": int(prompt), "completion_tokens": int(output), **more}}:
            details = more.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            return Tokens(prompt, cached if isinstance(cached, int) else 0, output)
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a response asks to wait, by `retry-after-ms`, or `retry-after` in seconds or as an HTTP date; None where it says nothing."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _backoff(tries: int) -> float:
    """Seconds before the next try: exponential, and drawn, so that requests that failed together do not come back together."""
    longest = min(_LAST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries, 16))
    return random.uniform(longest / 2, longest)


def _never_sent(error: BaseException) -> bool:
    from httpx2 import ConnectError

    return isinstance(error.__cause__, ConnectError)
