"""An S3 that misbehaves: hands requests on to a real server, except when it is told to do something
else with one.
"""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request"
    b" rate.</Message></Error>"
)
DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)

# Of a request's method and path: "slow_down", "reset", "truncate", "lost", "slow", "read_only", or
# None for none.
Fault = Callable[[str, str], str | None]


class Proxy:
    """Listens on 127.0.0.1 while the context lasts. `faults` counts what it did."""

    def __init__(self, upstream: int, fault: Fault) -> None:
        self.faults: Counter[str] = Counter()
        counts = self.faults

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.body()
                chosen = fault(self.command, self.path)
                if chosen == "read_only" and self.command in ("GET", "HEAD"):
                    chosen = None
                if chosen:
                    counts[chosen] += 1
                if chosen == "slow_down":
                    self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                elif chosen == "read_only":
                    self.answer(403, {"Content-Type": "application/xml"}, DENIED)
                elif chosen == "reset":
                    self.reset()
                else:
                    self.pass_on(body, chosen)

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def pass_on(self, body: bytes, chosen: str | None) -> None:
                if chosen == "slow":
                    time.sleep(1.0)
                connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=20)
                # The body is whole by now, and continues in one piece.
                dropped = ("transfer-encoding", "expect", "connection", "content-length")
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in dropped
                }
                connection.request(
                    self.command, self.path, body, headers | {"Content-Length": str(len(body))}
                )
                response = connection.getresponse()
                data = response.read()
                headers = {
                    name: value
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding")
                }
                connection.close()
                if chosen == "lost":
                    self.reset()
                elif chosen == "truncate" and len(data) > 1 and self.command == "GET":
                    self.answer(
                        response.status,
                        headers | {"Content-Length": str(len(data))},
                        data[: len(data) // 2],
                    )
                    self.reset()
                else:
                    self.answer(
                        response.status,
                        headers
                        if self.command == "HEAD"
                        else headers | {"Content-Length": str(len(data))},
                        data,
                    )

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                    self.wfile.flush()

            def reset(self) -> None:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                # The file made of the connection would keep it open.
                self.rfile.close()
                self.connection.close()
                self.close_connection = True

            def handle(self) -> None:
                try:
                    super().handle()
                except (ConnectionError, ValueError):
                    # The client went away, or we closed the connection ourselves.
                    self.close_connection = True

            def finish(self) -> None:
                with contextlib.suppress(ConnectionError, ValueError):
                    super().finish()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
