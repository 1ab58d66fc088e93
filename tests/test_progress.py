"""The lines one sees while a run works."""

import threading
from collections.abc import Iterator

import pytest

from mpa_ray import progress
from mpa_ray.progress import Progress, Watch, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (5 * 3600 + 12 * 60 + 59, "5 h 12 min"),
        (100 * 3600, "100 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    yield now


def test_a_line_says_how_far_how_fast_and_how_long(clock: list[float]) -> None:
    shown = Progress("annotate", 10_000, unit="images")
    clock[0] += 60
    shown.add(1_000, quarantined=3)
    assert shown.line() == "annotate: 1,000 of 10,000 images, 3 quarantined", "the models were loading: no rate yet"
    clock[0] += 5
    shown.add(1_000)
    assert shown.line() == "annotate: 2,000 of 10,000 images, 3 quarantined, 200.0/s, 40 s to go"


def test_what_was_done_before_is_not_counted_as_speed(clock: list[float]) -> None:
    shown = Progress("annotate", 10_000, unit="images", done=8_000)
    shown.add(100)
    clock[0] += 10
    shown.add(100)
    assert shown.line() == "annotate: 8,200 of 10,000 images, 10.0/s, 3 min 0 s to go"


def test_lines_are_some_seconds_apart_and_the_last_is_always_said(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("annotate", 100, unit="images")
    for _ in range(49):
        clock[0] += 1
        shown.add(2)
    assert len(capsys.readouterr().out.splitlines()) == 8
    shown.add(2)
    [last] = capsys.readouterr().out.splitlines()
    assert last.endswith("annotate: 100 of 100 images, 2.0/s")


def test_nothing_done_yet_is_no_division_by_zero(clock: list[float]) -> None:
    assert Progress("annotate", 0, unit="images").line().startswith("annotate: 0 of 0 images")
    shown = Progress("annotate", 10, unit="images")
    shown.add(10)
    assert "10 of 10" in shown.line()


def test_a_watch_says_what_is_new_once_and_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0.001)
    lines = iter([None, "first", "first", "second"])
    seen_all = threading.Event()

    def look() -> str | None:
        try:
            return next(lines)
        except StopIteration:
            seen_all.set()
            return None

    before = threading.active_count()
    with Watch(look):
        assert seen_all.wait(30)
    assert threading.active_count() == before
    assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == ["first", "second"]
