"""The records of a run's stages: what they took, over all calls, and in which order they ran."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.errors import RunError, StorageError
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY
from mpa_ray.stages import step_times
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(step_times.time, "time", lambda: now[0])
    monkeypatch.setattr(step_times.time, "monotonic", lambda: now[0] - 500.0)
    return now


def taking(
    clock: list[float], seconds: float, ends: BaseException | None = None
) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        clock[0] += seconds
        if ends:
            raise ends
        return {"samples": 3}

    return work


def test_the_seconds_are_those_of_every_call(tmp_path: Path, clock: list[float]) -> None:
    output, held = Folder.at(tmp_path), Lease()
    for ends in (KeyboardInterrupt(), RunError("a budget is spent")):
        with pytest.raises(type(ends)):
            step_times.once(output, "train_mpa", taking(clock, 26, ends), held)
        clock[0] += 3600
    assert step_times.seconds(output, "train_mpa") == 52 and step_times.records(output) == {}
    assert step_times.once(output, "train_mpa", taking(clock, 53), held) == {
        "samples": 3,
        "seconds": 105.0,
    }
    record = output.read_json("stages/train_mpa.json")
    assert record["calls"] == [
        [1000.0, 26.0],
        [4626.0, 26.0],
        [8252.0, 53.0],
    ] and not output.exists("calls/train_mpa.json")
    assert step_times.once(output, "train_mpa", taking(clock, 9), held)["seconds"] == 105.0, (
        "it is finished"
    )


def test_what_is_done_again_in_a_finished_stage_is_added(
    tmp_path: Path, clock: list[float]
) -> None:
    """A part whose commit was deleted by hand, in an output of an earlier version, which recorded
    the seconds alone.
    """
    output, held = Folder.at(tmp_path), Lease()
    output.write_json(f"stages/{ANNOTATE_AND_IDENTIFY}.json", {"seconds": 60.0})
    assert step_times.finish(output, ANNOTATE_AND_IDENTIFY, {}, held)["seconds"] == 60.0
    with step_times.clock(output, ANNOTATE_AND_IDENTIFY, held):
        clock[0] += 5
    assert step_times.finish(output, ANNOTATE_AND_IDENTIFY, {}, held)["seconds"] == 65.0


KILLED = """
import sys, time
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY
from mpa_ray.stages import step_times as stages
from mpa_ray.storage.lease import Lease
from mpa_ray.storage.folder import Folder
stages._NOTED_EVERY_S = 0.02
with stages.clock(Folder.at(sys.argv[1]), "train_mpa", Lease()):
    time.sleep(600)
"""


def test_a_call_that_is_killed_keeps_its_seconds_but_a_few(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    output = Folder.at(tmp_path)
    for _ in range(600):
        if step_times.seconds(output, "train_mpa"):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [[began, seconds]] = step_times.calls(output, "train_mpa")
    assert seconds > 0 and began > 1.7e9


def test_a_lost_lease_ends_a_stage_and_nothing_is_written(tmp_path: Path) -> None:
    output, held = Folder.at(tmp_path / "out"), Lease()

    def loses() -> dict[str, Any]:
        held.lost.set()
        return {}

    with pytest.raises(RunError, match="taken over"):
        step_times.once(output, "train_mpa", loses, held)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunError, match="taken over"):
        step_times.once(output, "evaluate_mpa", lambda: pytest.fail("it was begun"), held)


def test_a_disk_that_takes_no_account_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(Folder, "write_json", full)
    with (
        pytest.raises(KeyboardInterrupt),
        step_times.clock(Folder.at(tmp_path), "train_mpa", Lease()),
    ):
        raise KeyboardInterrupt


def test_stages_are_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    calls = {
        "evaluate_mpa": 70,
        "train_no_pi_all": 50,
        "train_mpa": 20,
        "holdout_mpa": 71,
        ANNOTATE_AND_IDENTIFY: 10,
    }
    for name, began in calls.items():
        output.write_json(
            f"stages/{name}.json", {"seconds": 5.0, "calls": [[began, 2.0], [began + 100, 3.0]]}
        )
    ran = [ANNOTATE_AND_IDENTIFY, "train_mpa", "train_no_pi_all", "evaluate_mpa", "holdout_mpa"]
    assert list(step_times.records(output)) == ran
    for name in calls:
        output.write_json(f"stages/{name}.json", {"seconds": 5.0})
    assert list(step_times.records(output)) == ran, "earlier versions do not say when"


def test_what_ran_at_the_same_time_counts_once() -> None:
    def record(*calls: list[float]) -> dict[str, Any]:
        return {"seconds": sum(seconds for _, seconds in calls), "calls": list(calls)}

    assert step_times.wall_seconds([]) == 0
    side_by_side = [record([100, 40]), record([110, 10], [400, 5]), record([130, 30])]
    assert step_times.wall_seconds(side_by_side) == 60 + 5
    assert (
        step_times.wall_seconds([*side_by_side, {"seconds": 7.0}, {"seconds": 8.0}]) == 65 + 15
    ), "of these nobody knows when they were"
