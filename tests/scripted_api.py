"""An OpenAI-compatible server on 127.0.0.1 that answers by a script: each request takes the next
step, then all are answered.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Handler", dict[str, Any]], None]

PROMPT_TOKENS, OUTPUT_TOKENS = 100, 10


def completion(
    text: str | None,
    *,
    usage: dict[str, Any] | None = None,
    finish_reason: str = "stop",
    refusal: str | None = None,
) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    counted = (
        {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
        if usage is None
        else usage
    )
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        **({"usage": counted} if counted else {}),
    }


def says(text: str | None, **fields: Any) -> Step:
    return body(completion(text, **fields))


def body(content: Any) -> Step:
    return lambda handler, _: handler.send(200, json.dumps(content).encode())


def raw(data: bytes, content_type: str = "application/json") -> Step:
    return lambda handler, _: handler.send(200, data, content_type=content_type)


def status(
    number: int, /, *, headers: dict[str, str] | None = None, message: str = "no", **error: Any
) -> Step:
    content = json.dumps({"error": {"message": message, **error}}).encode()
    return lambda handler, _: handler.send(number, content, headers=headers)


def hang(seconds: float) -> Step:
    return lambda handler, _: time.sleep(seconds)


def packed(data: Iterable[bytes], encoding: str = "gzip") -> Step:
    """A body in packed pieces, of no announced length; nothing holds it whole."""

    def step(handler: "Handler", _: dict[str, Any]) -> None:
        handler.send_response(200)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Encoding": encoding,
        }.items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        # Not all of it is wanted.
        with suppress(ConnectionError):
            for piece in data:
                handler.wfile.write(piece)

    return step


def cut(handler: "Handler", _: dict[str, Any]) -> None:
    """Half a reply, and the connection is gone."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def annotator(handler: "Handler", request: dict[str, Any]) -> None:
    """What a guide does: writes an annotation when asked for one, and gives the same answer when
    asked the question.
    """
    prompt = request["messages"][0]["content"][1]["text"]
    text = (
        "a sign"
        if prompt.startswith("Answer the following question")
        else "Question: What is in the picture?, Answer: a sign"
    )
    says(text)(handler, request)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ScriptedApi"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step = self.server.take(
            self.path, {name.lower(): value for name, value in self.headers.items()}, request
        )
        try:
            step(self, request)
        finally:
            self.server.leave()

    def send(
        self,
        code: int,
        data: bytes,
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class ScriptedApi(ThreadingHTTPServer):
    """The server, listening while it is entered.

    Attributes:
        requests: what came: the body, and beside it "path", "headers" and "at" (monotonic seconds).
        most_at_once: the most requests that were under way at the same time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *script: Step, otherwise: Step = annotator) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._script = iter(script)
        self._otherwise = otherwise
        self._lock = threading.Lock()
        self._now = 0
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "ScriptedApi":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def then(self, steps: Iterable[Step]) -> None:
        """A new script from here on."""
        with self._lock:
            self._script = iter(steps)

    def take(self, path: str, headers: dict[str, str], request: dict[str, Any]) -> Step:
        with self._lock:
            self.requests.append(
                {**request, "path": path, "headers": headers, "at": time.monotonic()}
            )
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return next(self._script, self._otherwise)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of the script."""
