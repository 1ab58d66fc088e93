"""Notes of parts begun, and what they say of a part that is begun again. test_row_worker.py has the
actor that goes by them.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.stages import early_stop
from mpa_ray.stages.call_notes import CallNotes, note
from mpa_ray.stages.crash_blame import Attempt
from mpa_ray.storage.folder import Folder


def test_a_part_that_was_lost_twice_is_asked_row_by_row() -> None:
    notes = CallNotes()
    assert [notes.begin("d", 7).one_by_one for _ in range(4)] == [False, False, True, True]


def test_a_row_is_the_culprit_when_it_was_asked_alone_twice_and_never_answered() -> None:
    notes, found = CallNotes(), []
    for place in (5, 2, 5):
        attempt = notes.begin("d", 7)
        notes.ask_alone("d", 7, place)
        found.append(attempt.is_culprit(5))
    last = notes.begin("d", 7)
    assert found == [False, False, False] and last.is_culprit(5) and not last.is_culprit(2)


def test_a_row_that_was_answered_is_not_accused() -> None:
    notes = CallNotes()
    notes.begin("d", 7)
    notes.ask_alone("d", 7, 5)
    notes.ask_alone("d", 7, None)
    assert notes.begin("d", 7) == Attempt(actors_lost=1)
    assert notes.begin("d", 7) == Attempt(actors_lost=2)


def test_a_part_that_is_done_is_begun_as_if_for_the_first_time() -> None:
    notes = CallNotes()
    for _ in range(5):
        notes.begin("d", 7)
        notes.end("d", 7)
    assert notes.begin("d", 7) == Attempt()


def test_another_part_or_dataset_is_another_matter() -> None:
    notes = CallNotes()
    for _ in range(3):
        notes.begin("d", 7)
    assert notes.begin("d", 8).actors_lost == 0 and notes.begin("e", 7).actors_lost == 0
    assert notes.begin("d", 7).actors_lost == 3, "and takes none of these notes away"


def test_nothing_is_written_and_outputs_have_notes_of_their_own(tmp_path: Path) -> None:
    one, two = Folder.at(tmp_path / "one"), Folder.at(tmp_path / "two")
    note(one, CallNotes.begin, "d", 7)
    early_stop.request_stop(one, "the budget is spent")
    assert note(two, CallNotes.begin, "d", 7).actors_lost == 0
    assert early_stop.stop_reason(one) and early_stop.stop_reason(two) is None
    early_stop.begin_call(one)
    assert note(one, CallNotes.begin, "d", 7).actors_lost == 0
    assert early_stop.stop_reason(one) is None and list(tmp_path.iterdir()) == []


def _begins(output: Folder) -> int:
    return note(output, CallNotes.begin, "d", 7).actors_lost


def test_workers_of_ray_share_the_notes_of_their_driver(ray_session: None, tmp_path: Path) -> None:
    """And an actor that is lost takes none of them with it."""
    import ray

    output = Folder.at(tmp_path)
    early_stop.begin_call(output)
    assert early_stop.stop_reason(output) is None

    @ray.remote(num_cpus=0, max_retries=0)
    def dies(output: Folder) -> Any:
        import os

        note(output, CallNotes.begin, "d", 7)
        os._exit(1)

    for _ in range(2):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(dies.remote(output))
    assert ray.get(ray.remote(num_cpus=0)(_begins).remote(output)) == 2
    ray.get(ray.remote(num_cpus=0)(early_stop.request_stop).remote(output, "a wrong key"))
    assert early_stop.stop_reason(output) == "a wrong key"


_TWO_SESSIONS = """
import sys
import ray
from mpa_ray.stages import early_stop
from mpa_ray.storage.folder import Folder

output = Folder.at(sys.argv[1])
for _ in range(2):
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
    assert early_stop.stop_reason(output) is None
    early_stop.request_stop(output, "a wrong key")
    assert early_stop.stop_reason(output) == "a wrong key"
    ray.shutdown()
"""


def test_a_second_ray_of_the_same_process_has_notes_of_its_own(tmp_path: Path) -> None:
    """As in a notebook: each local Ray numbers its jobs from 1."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", _TWO_SESSIONS, str(tmp_path)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
