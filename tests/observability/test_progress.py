"""The lines one sees while a run works."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mpa_ray.observability import progress
from mpa_ray.observability.progress import Progress, Watch, duration


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
    assert shown.line() == "annotate: 1,000 of 10,000 images, 3 quarantined", (
        "the models were loading: no rate yet"
    )
    clock[0] += 5
    shown.add(1_000)
    assert shown.line() == "annotate: 2,000 of 10,000 images, 3 quarantined, 200.0/s, 40 s to go"


def test_what_was_done_before_is_not_counted_as_speed(clock: list[float]) -> None:
    shown = Progress("annotate", 10_000, unit="images", done=8_000)
    shown.add(100)
    clock[0] += 10
    shown.add(100)
    assert shown.line() == "annotate: 8,200 of 10,000 images, 10.0/s, 3 min 0 s to go"


def test_lines_are_some_seconds_apart_and_the_last_is_always_said(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress("annotate", 100, unit="images")
    for _ in range(49):
        clock[0] += 1
        shown.add(2)
    assert len(capsys.readouterr().out.splitlines()) == 8
    shown.add(2)
    [last] = capsys.readouterr().out.splitlines()
    assert last.endswith("annotate: 100 of 100 images, 2.0/s")


def test_the_last_line_has_the_rate_of_the_whole_stage(clock: list[float]) -> None:
    """All of a few parts may come at once, long after the stage began."""
    shown = Progress("evaluate mpa", 1200, unit="questions", done=200)
    clock[0] += 40
    shown.add(500)
    clock[0] += 0.1
    shown.add(400)
    assert "4000.0/s" in shown.line()
    clock[0] += 9.9
    shown.add(100)
    assert shown.line() == "evaluate mpa: 1,200 of 1,200 questions, 20.0/s"


def test_until_the_first_result_it_says_that_models_load(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Progress("annotate", 100, unit="images")
    said = []
    for _ in range(9):
        said.append(shown.waiting())
        clock[0] += 5
    seconds = ["15 s"] * 3 + ["30 s"] * 3
    assert said == [None, None, None, *(f"annotate: loading models, {text}" for text in seconds)], (
        "a new line every 15 seconds"
    )
    with monkeypatch.context() as terminal:
        terminal.setattr(progress, "is_live", lambda: True)
        assert shown.waiting() == "annotate: loading models, 45 s"
        clock[0] += 1
        assert shown.waiting() == "annotate: loading models, 46 s"
    shown.add(1)
    assert shown.waiting() is None


def test_nothing_done_yet_is_no_division_by_zero(clock: list[float]) -> None:
    assert Progress("annotate", 0, unit="images").line().startswith("annotate: 0 of 0 images")
    shown = Progress("annotate", 10, unit="images")
    shown.add(10)
    assert "10 of 10" in shown.line()


def test_what_a_name_holds_is_shown_and_does_not_act(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "listing \x1b]0;owned\x07\u202e\ud800 a\n[12:00:00] forged\r\x9b2J"
    progress.say(hostile)
    progress._live.show("watch", hostile)
    progress._live.show("watch", None)
    said, live = (line for line in capsys.readouterr().out.split("\n") if "listing" in line)
    assert (
        said.isprintable()
        and "⟨U+001B⟩]0;owned⟨U+0007⟩⟨U+202E⟩⟨U+D800⟩ a⟨U+000A⟩[12:00:00] forged⟨U+000D⟩" in said
    )
    assert live.isprintable() and live == said.partition("] ")[2][: len(live)]


SCRIPT = """
import time
from mpa_ray.observability import progress
progress._LIVE_EVERY_S = 0.0
progress.say("began")
first = progress.Progress("annotate", 30, unit="images")
second = progress.Progress("evaluate x", 30, unit="questions")
for _ in range(10):
    first.add(2)
    second.add(1)
    time.sleep(0.001)
progress.say("in the middle " + 100 * "x")
with progress.Watch(lambda: "train mpa: 3 of 9 samples", stage="train"):
    second.add(20)
first.add(1)
progress.say("below")
"""


def screen(output: str) -> list[str]:
    """What a terminal of any width shows of lines, of going up, and of clearing what is below."""
    shown = [""]
    for text in re.split(r"(\x1b\[\d+F|\x1b\[J|\n)", output.replace("\r\n", "\n")):
        if text == "\n":
            shown.append("")
        elif text == "\x1b[J":
            continue
        elif up := re.fullmatch(r"\x1b\[(\d+)F", text):
            shown = [*shown[: -int(up[1]) - 1], ""]
        else:
            shown[-1] += text
    return shown[:-1]


def test_on_a_terminal_each_stage_has_one_live_line() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "24"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=theirs, env=environment, timeout=60, check=False
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", closefd=True) as stream:
        output = b""
        with contextlib.suppress(OSError):
            while piece := stream.read1():
                output += piece
    assert done.returncode == 0
    assert "annotate: 4 of 30 images" in output.decode(), "it changed on the way"
    shown = [line.partition("] ")[2] or line for line in screen(output.decode())]
    assert shown[0] == "began" and shown[1] == "in the middle " + 100 * "x"
    assert shown[2].startswith("evaluate x: 30 of 30 questions, ")
    assert (
        shown[3] == "below"
        and shown[4].startswith("annotate: 21 of 30 images, ")
        and len(shown) == 5
    )
    assert len(shown[4]) <= 59


def test_a_training_says_how_long_it_will_take() -> None:
    state = {
        "samples": 640,
        "of": 1280,
        "loss": 0.5,
        "tokens_per_second": 1234.5,
        "seconds_to_go": 200.0,
    }
    assert (
        progress.training_line(state)
        == "640 of 1,280 samples, loss 0.500, 1,234 tokens/s, 3 min 20 s to go"
    )
    assert progress.training_line(state | {"seconds_to_go": 0.0}).endswith("1,234 tokens/s")


def test_a_watch_says_what_is_new_once_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "first",
        "second",
    ]
