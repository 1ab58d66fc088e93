"""One run at a time on an output folder.

On a disk this is the kernel's lock on a file, which is gone with the process that held it, however
it ended. An object store has no such thing: there the lease is an object that is created only where
there is none, renewed every few seconds, and taken over only when it was not renewed for long, each
by a conditional PUT, of which one of several at the same time succeeds.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from mpa_ray.errors import ConfigurationError, RunError, StorageError
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder

RENEW_EVERY_S = 10.0
EXPIRES_AFTER_S = 45.0
_NAME = "lease.json"
# Why there can be no such folder, or nothing in it; a full or failing disk is another matter, and
# has room again later.
_NO_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOENT, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
)


@contextmanager
def lease(output: Folder, *, say: Callable[[str], None] = print) -> Iterator["Lease"]:
    """Hold `output` for this process. Where it is lost, what runs in the main thread is
    interrupted, and other threads ask `Lease.check`.

    Args:
        output: of the run.
        say: tells people what is waited for.

    Raises:
        ConfigurationError: another run holds it; the message says which.
        RunError: another run has taken it over meanwhile.
    """
    if output.is_local:
        with _file_lock(output):
            yield Lease()
    elif output.uri.startswith("s3://"):
        with _object_lease(output, say) as held:
            yield held
    else:
        # Google's store has conditional PUTs too, but not through the libraries we have; see
        # docs/scaling.md.
        yield Lease()


class Lease:
    """Says whether the lease is still ours."""

    def __init__(self) -> None:
        self.lost = Event()

    def check(self) -> None:
        """Raise RunError where another run took the output over, because this one was not heard of
        for long.
        """
        if self.lost.is_set():
            raise RunError(
                "another run has taken over this output, because this one could not renew its"
                " lease; nothing more is written here"
            )


@contextmanager
def _file_lock(output: Folder) -> Iterator[None]:
    with _lock_file(output) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refused(output, file.read().strip() or "another process") from None
        file.seek(0)
        file.truncate()
        file.write(_holder())
        file.flush()
        yield


def _lock_file(output: Folder) -> IO[str]:
    path = Path(output.path) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise ConfigurationError(
            f"output={output.uri!r} cannot be made or written: {error.strerror}; give a folder"
            " that you may write to"
        ) from error


def _refused(output: Folder, holder: str) -> ConfigurationError:
    return ConfigurationError(
        f"output={output.uri!r} is in use by {holder}; wait for it, or give another output"
    )


def _holder() -> str:
    return (
        f"process {os.getpid()} on {socket.gethostname()}, since"
        f" {time.strftime('%Y-%m-%d %H:%M:%S')}"
    )


@contextmanager
def _object_lease(output: Folder, say: Callable[[str], None]) -> Iterator[Lease]:
    store = _Object(output)
    content = {"holder": _holder(), "token": uuid.uuid4().hex}
    etag = _take(store, output, content, say)
    held, stop, ending = Lease(), Event(), Lock()

    def renew(interrupt: Callable[[], None]) -> None:
        nonlocal etag
        renewed_at = time.monotonic()
        while not stop.wait(RENEW_EVERY_S):
            try:
                renewed = store.put(content | {"renewed": time.time()}, if_match=etag)
            except StorageError:
                # Asked again at the next turn, until others may think that this run is gone.
                if time.monotonic() - renewed_at < EXPIRES_AFTER_S:
                    continue
                renewed = None
            if renewed is None:
                held.lost.set()
                with ending:
                    if not stop.is_set():
                        interrupt()
                return
            etag, renewed_at = renewed, time.monotonic()

    with _interruptible() as interrupt:
        thread = Thread(target=renew, args=(interrupt,), daemon=True, name="lease")
        thread.start()
        try:
            yield held
        except KeyboardInterrupt:
            held.check()
            raise
        finally:
            with ending:
                stop.set()
            thread.join(RENEW_EVERY_S)
            if not held.lost.is_set():
                store.delete()


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Return what another thread calls to raise KeyboardInterrupt in this one, whatever it waits
    for.

    Only the main thread can be interrupted; of work in another one it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # Not SIGINT: a job in the background of a shell ignores that one.
    before = signal.signal(signal.SIGUSR1, interrupted)
    try:
        yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if before is None else before)


def _take(
    store: "_Object", output: Folder, content: dict[str, Any], say: Callable[[str], None]
) -> str:
    """Create the lease, or take over one that is not renewed. Its age is measured by watching it:
    clocks of two machines may differ.
    """
    first, began = None, time.monotonic()
    while True:
        etag = store.put(content | {"renewed": time.time()}, if_match=None)
        if etag:
            return etag
        found = store.get()
        if found is None:
            continue
        holder, current = found
        if first is None:
            first = current
            say(
                f"{output.uri} is held by {holder}; looking for up to {EXPIRES_AFTER_S:.0f} s"
                " whether it still runs"
            )
        elif current != first:
            raise _refused(output, holder)
        elif time.monotonic() - began > EXPIRES_AFTER_S:
            etag = store.put(content | {"renewed": time.time()}, if_match=current)
            if etag:
                say(
                    f"{output.uri}: taken over from {holder}, which was not heard of for"
                    f" {EXPIRES_AFTER_S:.0f} s"
                )
                return etag
        time.sleep(RENEW_EVERY_S / 10)


class _Object:
    """The lease's object, with the conditional requests that pyarrow's file systems lack."""

    def __init__(self, output: Folder) -> None:
        self._client = s3.client()
        self._bucket, _, prefix = output.path.partition("/")
        self._key = f"{prefix}/{_NAME}".lstrip("/")

    def put(self, content: dict[str, Any], *, if_match: str | None) -> str | None:
        """Write where there is nothing (None) or where the object is still `if_match`; return
        the new ETag, or None where it was not so. Raises StorageError.
        """
        condition = {"IfMatch": if_match} if if_match else {"IfNoneMatch": "*"}
        done = self._ask("put_object", Body=json.dumps(content).encode(), **condition)
        if done:
            return done["ETag"]
        # A request whose answer was lost is repeated, and the second one finds what the first has
        # written.
        found = self._read()
        return found[1] if found and found[0] == content else None

    def get(self) -> tuple[str, str] | None:
        """Who holds the lease, and its ETag; None where it is free."""
        found = self._read()
        return (found[0].get("holder", "another run"), found[1]) if found else None

    def _read(self) -> tuple[dict[str, Any], str] | None:
        found = self._ask("get_object")
        return (json.loads(found["Body"].read()), found["ETag"]) if found else None

    def _ask(self, operation: str, **options: Any) -> dict[str, Any] | None:
        """The answer, or None where the object is not there, or is not as the condition wants
        it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, Key=self._key, **options)
        except (BotoCoreError, ClientError) as error:
            # 409: a request on the same key was under way; 404: the object to match is gone, or its
            # bucket is.
            if isinstance(error, ClientError) and error.response["ResponseMetadata"].get(
                "HTTPStatusCode"
            ) in (409, 412):
                return None
            if isinstance(error, ClientError) and error.response["Error"].get("Code") in (
                "NoSuchKey",
                "404",
            ):
                return None
            raise StorageError(f"{s3.SCHEME}{self._bucket}/{self._key}: {error}") from error

    def delete(self) -> None:
        self._ask("delete_object")
