"""One run at a time: on a disk by the kernel's lock, in an object store by conditional PUTs."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import lease as leases
from mpa_ray.errors import ConfigurationError
from mpa_ray.lease import lease
from mpa_ray.storage import Folder


def _hold(path: Path, ready: Any) -> None:
    with lease(Folder.at(path)):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out", ready), daemon=True)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_told_by_whom(holder: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"in use by process {holder.pid} on "), lease(Folder.at(tmp_path / "out")):
        pass


def test_a_killed_process_leaves_nothing_behind(holder: Any, tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with lease(Folder.at(tmp_path / "out")) as held:
        held.check()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("{tmp}/file/run", "Not a directory"),
        ("/proc/nope/run", "No such file or directory"),
        # To root too, and wherever it is mounted read-only.
        ("/sys/kernel/run", "(Permission denied|Operation not permitted|Read-only file system)"),
    ],
)
def test_an_output_that_cannot_be_made_is_refused(place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = Folder.at(place.format(tmp=tmp_path))
    with (
        pytest.raises(ConfigurationError, match=rf"output='{output.uri}' cannot be made or written: {why}; give a folder"),
        lease(output),
    ):
        pass


class Store:
    """An object with conditional requests, as the lease's object in S3 behaves."""

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None
        self.version = 0

    def put(self, content: dict[str, Any], *, if_match: str | None) -> str | None:
        current = str(self.version) if self.content is not None else None
        if current != if_match:
            return None
        self.content, self.version = content, self.version + 1
        return str(self.version)

    def get(self) -> tuple[str, str] | None:
        return (self.content["holder"], str(self.version)) if self.content is not None else None

    def delete(self) -> None:
        self.content = None


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(leases, "_Object", lambda output: found)
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "EXPIRES_AFTER_S", 0.4)
    return found


def s3_folder() -> Folder:
    return Folder(filesystem=None, path="bucket/run", uri="s3://bucket/run")  # type: ignore[arg-type]


def test_a_lease_is_renewed_and_given_back(store: Store) -> None:
    with lease(s3_folder()) as held:
        before = store.version
        while store.version < before + 2:
            time.sleep(0.01)
        held.check()
    assert store.content is None


def test_a_living_holder_is_not_disturbed(store: Store) -> None:
    with lease(s3_folder()):
        before = store.content
        assert before is not None
        with pytest.raises(ConfigurationError, match="in use by process"), lease(s3_folder()):
            pass
        assert store.content is not None
        assert store.content["token"] == before["token"]


def test_a_dead_holder_is_taken_over_and_notices(store: Store) -> None:
    store.put({"holder": "process 1 on gone", "token": "x"}, if_match=None)
    with lease(s3_folder()) as held:
        assert store.content is not None
        assert store.content["token"] != "x"
        # Somebody else takes this one over in turn.
        store.version += 1
        assert held.lost.wait(5)
        with pytest.raises(ConfigurationError, match="taken over"):
            held.check()
    assert store.content is not None, "what is not ours any more is not deleted"
