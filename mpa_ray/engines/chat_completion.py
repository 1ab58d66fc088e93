"""A chat completion: the image and the question as they are sent, and what is read of the reply.

A reply is a stranger's text: nothing in it is believed before it is looked at.
"""

import base64
import io
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from PIL import Image

from mpa_ray.engines.ledger import Tokens
from mpa_ray.engines.protocol import Reply, RequestRejected
from mpa_ray.observability.clean_text import storable

if TYPE_CHECKING:
    from openai.types.chat import (
        ChatCompletionContentPartImageParam,
        ChatCompletionUserMessageParam,
    )

# Far more than any reply to one question. 256 rows of a part are in memory together.
_LONGEST_TEXT = 100_000
_LONGEST_MESSAGE = 400
# No model's context is near it. More is no count of tokens, and `tokens_per_minute` would wait for
# days.
_MOST_TOKENS = 2**24

_LOSSLESS_PIXELS = 256 * 256
_LOSSLESS_COLORS = 4096
_JPEG_QUALITY = 95


def data_url(image: Image.Image) -> str:
    """The image as it goes into a request: PNG where it is small or drawn (with few colours PNG is
    smaller too), else JPEG at quality 95.

    JPEG keeps its colours at full resolution (4:4:4): coloured text is what many questions are
    about.
    """
    buffer = io.BytesIO()
    if image.width * image.height <= _LOSSLESS_PIXELS or image.getcolors(_LOSSLESS_COLORS):
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def messages(url: str, prompt: str) -> list["ChatCompletionUserMessageParam"]:
    """The image first, so that a server's prefix cache covers it for the second question."""
    image: ChatCompletionContentPartImageParam = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": storable(prompt)}]}]


def reply_of(body: Any) -> Reply | None:
    """The reply in a chat completion; None where `body` is none. Token counts are 0 where the
    server does not say them.

    Raises:
        RequestRejected: the model refused, a filter took the reply, or there is no text in it.
    """
    match body:
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            raise RequestRejected("the API's content filter took the reply")
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]} if refusal:
            raise RequestRejected(f"the model refused: {one_line(refusal)}")
        case {"choices": [{"message": {**message}, **choice}, *_]} if isinstance(
            message.get("content"), str | None
        ):
            # Without a key "content": it ended within its reasoning.
            text, used = str(message.get("content") or ""), usage_of(body) or Tokens()
            reason = choice.get("finish_reason")
            reason = reason if reason and isinstance(reason, str) else "stop"
            return Reply(
                text=text[:_LONGEST_TEXT],
                prompt_tokens=used.prompt,
                cached_tokens=used.cached,
                output_tokens=used.output,
                finish_reason=reason if len(text) <= _LONGEST_TEXT else "length",
            )
        case {"choices": None | []}:
            raise RequestRejected("the API gave no choices")
        case {"choices": _}:
            raise RequestRejected("the API gave a reply without a text")
    return None


def usage_of(body: Any) -> Tokens | None:
    """What a chat completion says it cost; None where it says nothing, or what cannot be."""
    match body:
        case {"usage": {"prompt_tokens": prompt, "completion_tokens": output, **more}}:
            details = more.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            cached = cached if type(cached) is int else 0
            # `type` and not `isinstance`: true is no count.
            counts = (prompt, cached, output)
            if all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts):
                return Tokens(prompt, cached, output) if cached <= prompt else None
    return None


def one_line(text: str) -> str:
    """On one line, not too long, and fit to be stored."""
    return storable(" ".join(text.split())[:_LONGEST_MESSAGE])


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a response asks to wait, by `retry-after-ms`, or `retry-after` in seconds or as an
    HTTP date; None where it says nothing.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
