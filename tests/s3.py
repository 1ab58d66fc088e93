"""An S3 of the tests' own (ministack), and one that fails on purpose. conftest.py makes its
fixtures known.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mpa_ray.storage import s3

KEY, SECRET = "AKIATESTONLY", "a-secret-of-the-tests"


def settings(port: int) -> dict[str, str]:
    """The environment of a process that is to use the server at `port`."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """ministack, for the whole session."""
    if importlib.util.find_spec("ministack") is None:
        pytest.skip("ministack is not installed (it is in the dev extra)")
    port, folder = free_port(), tmp_path_factory.mktemp("ministack")
    # It listens on every address by default.
    env = {
        **os.environ,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=env, stdout=log, stderr=log, cwd=folder
        ) as server,
    ):
        try:
            _wait_for(port, server, folder / "log")
            yield port
        finally:
            server.kill()


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"ministack did not start: {log.read_text()}")


@contextmanager
def environment(port: int) -> Iterator[None]:
    """This process uses the S3 at `port`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(port).items():
            patch.setenv(name, value)
        s3.client.cache_clear()
        try:
            yield
        finally:
            s3.client.cache_clear()


@pytest.fixture
def bucket(s3_port: int) -> Iterator[str]:
    """A new bucket, which this process finds by its environment."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with environment(s3_port):
        s3.client().create_bucket(Bucket=name)
        yield name


def put(bucket: str, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        s3.client().put_object(Bucket=bucket, Key=key, Body=data)


class Failing:
    """An S3 whose every answer is `answer(request)`; it counts requests."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                requests.append(f"{self.command} {self.path}")
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> "Failing":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
