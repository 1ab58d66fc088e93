"""Notes of parts begun, and what they say of a part that is begun again. test_row_worker.py has the
actor that goes by them.
"""

from pathlib import Path

from mpa_ray.stages import crash_blame
from mpa_ray.stages.crash_blame import Attempts
from mpa_ray.storage.folder import Folder


def notes(path: Path, *, stage: str = "annotate", model: str = "m", call: float = 1.0) -> Attempts:
    return Attempts(Folder.at(path), stage=stage, model=model, call=call)


def test_a_part_that_was_lost_twice_is_asked_row_by_row(tmp_path: Path) -> None:
    assert [notes(tmp_path).begin(7).is_careful for _ in range(4)] == [False, False, True, True]


def test_a_row_is_the_culprit_when_it_was_asked_alone_twice_and_never_answered(
    tmp_path: Path,
) -> None:
    found = []
    for place in (5, 2, 5):
        attempt = notes(tmp_path).begin(7)
        notes(tmp_path).ask_alone(7, attempt, place)
        found.append(attempt.is_culprit(5))
    last = notes(tmp_path).begin(7)
    assert found == [False, False, False] and last.is_culprit(5) and not last.is_culprit(2)


def test_a_row_that_was_answered_is_not_accused(tmp_path: Path) -> None:
    attempt = notes(tmp_path).begin(7)
    notes(tmp_path).ask_alone(7, attempt, 5)
    notes(tmp_path).answered(7, attempt)
    assert (notes(tmp_path).begin(7).lost, notes(tmp_path).begin(7).deaths) == (1, [])


def test_a_part_that_is_done_is_begun_anew(tmp_path: Path) -> None:
    for _ in range(5):
        notes(tmp_path).begin(7)
        notes(tmp_path).end(7)
    assert notes(tmp_path).begin(7).lost == 0


def test_another_part_stage_model_or_call_is_another_matter(tmp_path: Path) -> None:
    for _ in range(3):
        notes(tmp_path).begin(7)
    assert notes(tmp_path).begin(8).lost == 0
    assert notes(tmp_path, stage="identify").begin(7).lost == 0
    assert notes(tmp_path, model="n").begin(7).lost == 0
    assert notes(tmp_path, call=2.0).begin(7).lost == 0
    assert notes(tmp_path).begin(7).lost == 3, "and takes none of these notes away"


def test_nothing_is_left_of_them_in_the_end(tmp_path: Path) -> None:
    notes(tmp_path).begin(7)
    crash_blame.forget(Folder.at(tmp_path))
    assert list(tmp_path.iterdir()) == []
