"""One run at a time: on a disk by the kernel's lock, in an object store by conditional PUTs."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from run_folders import picture

from mpa_ray import pipeline
from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import ConfigurationError, RunError, StorageError
from mpa_ray.placement import capacity
from mpa_ray.placement.place import Placement
from mpa_ray.steps import record
from mpa_ray.steps.step import Run, Step
from mpa_ray.storage import lease as leases
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease, lease


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
    with (
        pytest.raises(ConfigurationError, match=rf"in use by process {holder.pid} on "),
        lease(Folder.at(tmp_path / "out")),
    ):
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
        pytest.raises(
            ConfigurationError,
            match=rf"output='{output.uri}' cannot be made or written: {why}; give a folder",
        ),
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


class Failing(Store):
    """Does not answer while `failures` lasts."""

    failures = 0

    def put(self, content: dict[str, Any], *, if_match: str | None) -> str | None:
        if self.failures:
            self.failures -= 1
            raise StorageError("503")
        return super().put(content, if_match=if_match)


@pytest.fixture
def failing(store: Store, monkeypatch: pytest.MonkeyPatch) -> Failing:
    found = Failing()
    monkeypatch.setattr(leases, "_Object", lambda output: found)
    return found


def test_a_failed_renewal_is_repeated(failing: Failing) -> None:
    with lease(s3_folder()) as held:
        failing.failures = 2
        before = failing.version
        while failing.version < before + 2:
            assert not held.lost.is_set()
            time.sleep(0.01)
        held.check()
    assert failing.failures == 0


def test_a_lease_that_cannot_be_renewed_for_long_is_lost(failing: Failing) -> None:
    with pytest.raises(RunError, match="taken over"), lease(s3_folder()) as held:
        failing.failures = 10**6
        began = time.monotonic()
        while time.monotonic() < began + 30:
            time.sleep(0.01)
        pytest.fail("it continued")
    assert held.lost.is_set()
    assert time.monotonic() - began >= leases.EXPIRES_AFTER_S - leases.RENEW_EVERY_S, (
        "others would not have taken it before"
    )


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        ClientError(
            {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}},
            "PutObject",
        ),
    ],
)
def test_what_a_store_does_not_answer_is_a_storage_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def put_object(self, **_: Any) -> None:
            raise error

        get_object = put_object

    monkeypatch.setattr(leases.s3, "client", Client)
    found = leases._Object(s3_folder())
    with pytest.raises(StorageError, match="s3://bucket/run/"):
        found.put({}, if_match="1")
    with pytest.raises(StorageError, match="s3://bucket/run/"):
        found.get()


def test_a_living_holder_is_not_disturbed(store: Store) -> None:
    with lease(s3_folder()):
        before = store.content
        assert before is not None
        with pytest.raises(ConfigurationError, match="in use by process"), lease(s3_folder()):
            pass
        assert store.content is not None
        assert store.content["token"] == before["token"]


def test_a_dead_holder_is_taken_over_and_notices(store: Store) -> None:
    """Whatever it does at that moment is ended, and it is not taken for Ctrl-C."""
    store.put({"holder": "process 1 on gone", "token": "x"}, if_match=None)
    before, waited = signal.getsignal(signal.SIGUSR1), []
    with pytest.raises(RunError, match="taken over"), lease(s3_folder()) as held:
        assert store.content is not None
        assert store.content["token"] != "x"
        # Somebody else takes this one over in turn.
        store.version += 1
        waited.append(held.lost)
        time.sleep(60)
        pytest.fail("it continued")
    assert waited[0].is_set() and signal.getsignal(signal.SIGUSR1) == before
    assert store.content is not None, "what is not ours any more is not deleted"


@pytest.mark.parametrize("lost_in", ["annotate_and_identify", "train_mpa", "holdout_mpa"])
def test_a_run_without_its_lease_begins_nothing_and_writes_nothing(
    lost_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step it is in: each asks before the next begins, and run.json comes after that."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(picture())
    config = Config(
        images=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        lvlm=ModelSection(model="a"),
        svlm=ModelSection(model="b"),
    )
    output, held, real = Folder.at(config.output), Lease(), pipeline.steps
    begun: list[str] = []

    def losing(step: Step) -> Step:
        def work(run: Run) -> dict[str, Any]:
            begun.append(step.name)
            if step.name == lost_in:
                held.lost.set()
            return {}

        return replace(step, work=work) if step.needs_ray else step

    monkeypatch.setattr(pipeline, "steps", lambda run: [losing(step) for step in real(run)])
    monkeypatch.setattr(pipeline, "ray_session", nullcontext)
    monkeypatch.setattr(pipeline, "refuse_unshared", lambda *_: None)
    placement = Placement(config=config, record={}, lines=[])
    monkeypatch.setattr(capacity, "placed", lambda config, asked: placement)
    for module in (pipeline, record):
        monkeypatch.setattr(module, "write_report", lambda *_, **__: pytest.fail("it was begun"))
    with pytest.raises(RunError, match="taken over"):
        pipeline._run(Run(asked_for=config, config=config, output=output, held=held))
    assert begun[-1] == lost_in and not output.exists(f"stages/{lost_in}.json")
    assert not output.exists("run.json") and not output.exists("model")


def test_work_in_another_thread_is_told_when_it_asks(store: Store) -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with lease(s3_folder()) as held:
                store.version += 1
                held.lost.wait(30)
                held.check()
        except RunError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert "taken over" in str(found)


def test_ctrl_c_stays_ctrl_c(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), lease(s3_folder()):
        raise KeyboardInterrupt
    assert store.content is None
