"""The lines one sees while a run works: plain ones, a few seconds apart, that read as well in a job's log as on a terminal."""

import time
from collections.abc import Callable
from contextvars import copy_context
from threading import Event, Thread

from mpa_ray.logs import LOG

_EVERY_S = 5.0


def say(line: str) -> None:
    """A line of the run's own, at once."""
    # In one piece with its end: threads say things at the same time.
    print(f"[{time.strftime('%H:%M:%S')}] {line}\n", end="", flush=True)
    LOG.info("%s", line)


class Progress:
    """Counts towards a known number and says how far it is: done, rate, what was quarantined, time to go."""

    def __init__(self, stage: str, total: int, *, unit: str, done: int = 0, quarantined: int = 0) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self.done = done
        self.quarantined = quarantined
        self._said = time.monotonic()
        # The rate counts from the first result on: loading the models would make the time to go look ten times as long.
        self._counts_from: tuple[float, int] | None = None

    def add(self, count: int, *, quarantined: int = 0) -> None:
        """Counts `count` more; says so when the last line is some seconds old or all is done."""
        self.done += count
        self.quarantined += quarantined
        self._counts_from = self._counts_from or (time.monotonic(), self.done)
        if time.monotonic() - self._said > _EVERY_S or self.done >= self._total:
            self._said = time.monotonic()
            say(self.line())

    def line(self) -> str:
        bad = f", {self.quarantined} quarantined" if self.quarantined else ""
        line = f"{self._stage}: {self.done:,} of {self._total:,} {self._unit}{bad}"
        began, before = self._counts_from or (0.0, self.done)
        if self.done == before:
            return line
        rate = (self.done - before) / max(time.monotonic() - began, 1e-9)
        to_go = f", {duration((self._total - self.done) / rate)} to go" if self.done < self._total else ""
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
            say(f"{self._stage}: {self.count:,} {self._unit} so far, {self.count / (now - self._started):,.0f}/s")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Watch:
    """Calls `look` every few seconds while a blocking call runs, and says what it returns when that is new."""

    def __init__(self, look: Callable[[], str | None]) -> None:
        self._look = look
        self._stop = Event()
        # What it says is of the stage that is watched.
        self._thread = Thread(target=copy_context().run, args=(self._work,), daemon=True, name="watch")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        last = None
        while not self._stop.wait(_EVERY_S):
            line = self._look()
            if line and line != last:
                say(line)
                last = line
