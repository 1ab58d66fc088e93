"""The lines one sees while a run works: on a terminal one live line a stage, elsewhere plain ones,
some seconds apart, that read well in a job's log.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from threading import Event, RLock, Thread
from typing import Any

from mpa_ray.observability.clean_text import visible_line
from mpa_ray.observability.logs import LOG

_EVERY_S = 5.0
_LIVE_EVERY_S = 0.25
_LOADING_EVERY_S = 15.0


def say(line: str) -> None:
    """A line of the run's own, at once; live lines stay below it."""
    # In one piece with its end: threads say things at the same time.
    line = visible_line(line)
    text = f"[{time.strftime('%H:%M:%S')}] {line}\n"
    with _live.lock:
        _live.erase()
        print(text, end="", flush=True)
        _live.draw()
    LOG.info("%s", line)


class _Live:
    """The last lines of a terminal, one for each stage that works, written over as they change."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._lines: dict[str, str] = {}
        self._drawn = 0

    def show(self, stage: str, line: str | None) -> None:
        """The stage's line from here on; None takes it away."""
        with self.lock:
            self.erase()
            self._lines.pop(stage, None) if line is None else self._lines.update({stage: line})
            self.draw()

    def erase(self) -> None:
        if self._drawn:
            # So many lines up, to their beginning; and everything from there on is cleared.
            print(f"\x1b[{self._drawn}F\x1b[J", end="", flush=True)
            self._drawn = 0

    def draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        for line in self._lines.values():
            # A line that wrapped would take two, and only one of them would be erased.
            print(visible_line(line)[:width], flush=True)
        self._drawn = len(self._lines)


_live = _Live()


def is_live() -> bool:
    """Whether standard output is a terminal on which lines can be written over."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Progress:
    """Counts towards a known number and says how far it is: done, rate, what was quarantined, time
    to go.
    """

    def __init__(
        self, stage: str, total: int, *, unit: str, done: int = 0, quarantined: int = 0
    ) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self.done = done
        self.quarantined = quarantined
        self._began = self._said = time.monotonic()
        self._done_before = done
        # Under way, the rate counts from the first result on: loading the models would make the
        # time to go look ten times as long.
        self._counts_from: tuple[float, int] | None = None

    def add(self, count: int, *, quarantined: int = 0) -> None:
        """Count `count` more; say so when the last line is some seconds old or all is done."""
        self.done += count
        self.quarantined += quarantined
        self._counts_from = self._counts_from or (time.monotonic(), self.done)
        if self.done >= self._total:
            self.end()
            say(self.line())
        elif time.monotonic() - self._said > (_LIVE_EVERY_S if is_live() else _EVERY_S):
            self._said = time.monotonic()
            _live.show(self._stage, self.line()) if is_live() else say(self.line())

    def end(self) -> None:
        """Take the live line away; what is done by then stays unsaid."""
        if is_live():
            _live.show(self._stage, None)

    def waiting(self) -> str | None:
        """The line until the first result comes, for a `Watch`; None from there on."""
        return None if self._counts_from else not_yet(f"{self._stage}: loading models", self._began)

    def line(self) -> str:
        bad = f", {self.quarantined} quarantined" if self.quarantined else ""
        line = f"{self._stage}: {self.done:,} of {self._total:,} {self._unit}{bad}"
        began, before = self._counts_from or (0.0, self.done)
        if self.done >= self._total:
            # What it was over the whole stage: of few parts, the last ones may come at once.
            began, before = self._began, self._done_before
        elapsed = time.monotonic() - began
        if self.done == before or not elapsed:
            return line
        rate = (self.done - before) / elapsed
        to_go = (
            f", {duration((self._total - self.done) / rate)} to go"
            if self.done < self._total
            else ""
        )
        return f"{line}, {rate:.1f}/s{to_go}"


class Tally:
    """Counts what has no known end, and says so every few seconds."""

    def __init__(self, stage: str, *, unit: str) -> None:
        self.count = 0
        self._stage, self._unit = stage, unit
        self._started = self._said = time.monotonic()

    def add(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if now - self._said > _EVERY_S:
            self._said = now
            say(
                f"{self._stage}: {self.count:,} {self._unit} so far,"
                f" {self.count / (now - self._started):,.0f}/s"
            )


def not_yet(what: str, began: float) -> str | None:
    """`what` is done, and how long it takes since `began` (of `time.monotonic`); None in the first
    seconds. Where lines stay, a new one comes every few seconds.
    """
    waited = time.monotonic() - began
    if not is_live():
        waited -= waited % _LOADING_EVERY_S
    return f"{what}, {duration(waited)}" if waited >= 1 else None


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def training_line(state: Mapping[str, Any]) -> str:
    """How far a training is, by what it writes into progress.json."""
    groups = state.get("workers") or [[1, 1]]
    workers = f", {groups[-1][1]} workers" if len(groups) > 1 or groups[0][1] > 1 else ""
    to_go = state.get("seconds_to_go")
    left = f", {duration(to_go)} to go" if to_go else ""
    done = f"{state['samples']:,} of {state['of']:,} samples"
    return (
        f"{done}, loss {state['loss']:.3f}, {state['tokens_per_second']:,.0f}"
        f" tokens/s{workers}{left}"
    )


class Watch:
    """Calls `poll` every few seconds while a blocking call runs, and shows or says what it returns
    when that is new.
    """

    def __init__(self, poll: Callable[[], str | None], *, stage: str = "watch") -> None:
        self._poll, self._stage = poll, stage
        self._stop = Event()
        # What it says is of the stage that is watched.
        self._thread = Thread(
            target=copy_context().run, args=(self._work,), daemon=True, name="watch"
        )

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if is_live():
            _live.show(self._stage, None)

    def _work(self) -> None:
        last = None
        while not self._stop.wait(_EVERY_S):
            line = self._poll()
            if line == last:
                continue
            last = line
            if is_live():
                _live.show(self._stage, line)
            elif line:
                say(line)
