"""The HTTP client below the API's: it reads a reply up to a bound, and follows no redirect.

A chat completion has a few kilobytes. What is far larger is no reply but would be memory: 32
requests in flight, each with a body that unpacks to gigabytes, would end a node.
"""

from contextlib import aclosing
from typing import Any

from httpx2 import Request, RequestError, Response
from openai import DefaultAsyncHttpxClient

MOST_BYTES = 4 * 2**20
"""Of a reply, unpacked."""

# The rest of what a server sends along is not looked at: a charset, for one, names a decoder.
_HEADERS_KEPT = ("retry-after", "retry-after-ms", "location")


class BrokenReply(RequestError):
    """A reply that is not read to its end."""


class BoundedClient(DefaultAsyncHttpxClient):
    """The SDK's own client, which gives replies that are read already."""

    def __init__(self) -> None:
        super().__init__(timeout=None, follow_redirects=False)

    async def send(self, request: Request, *, stream: bool = False, **options: Any) -> Response:
        """As httpx's, for a reply of at most `MOST_BYTES`; of a longer error it gives the start.

        Raises:
            BrokenReply: it is longer, or packed more than once.
        """
        response = await super().send(request, stream=True, **options)
        try:
            body = await _body(response)
        finally:
            await response.aclose()
        kept = {name: response.headers[name] for name in _HEADERS_KEPT if name in response.headers}
        return Response(response.status_code, headers=kept, content=body, request=request)


async def _body(response: Response) -> bytes:
    # Each layer unpacks a thousandfold, and one that puts out nothing would never meet the bound.
    if "," in response.headers.get("content-encoding", ""):
        raise BrokenReply("a reply that is packed more than once")
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > MOST_BYTES:
                if response.is_success:
                    raise BrokenReply(f"a reply of more than {MOST_BYTES / 2**20:.0f} MiB")
                break
    return bytes(body[:MOST_BYTES])
