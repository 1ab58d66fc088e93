"""How fast requests may go out: so many units in any minute, in order; and which side by side.

Not a bucket that starts full (as aiolimiter's): that lets a minute's worth out at once and twice
the limit in the first minute, which a provider answers with 429. And what was estimated can be
corrected once the reply says what it was, which a bucket does not take back.
"""

from asyncio import Event, Lock, sleep
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

# The longest a waiter goes without looking whether there is still something to wait for.
_LOOK_EVERY_S = 1.0


class Pace:
    """One limit. Units are spread evenly: after a request of n units the next one waits n /
    `per_minute` minutes.

    Args:
        per_minute: the limit, or None for none; then only `pause` makes anyone wait.
        look: called while waiting; it raises when the run has ended meanwhile.
    """

    def __init__(self, per_minute: float | None, look: Callable[[], None]) -> None:
        self._seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._look = look
        self._free_at = 0.0
        self._turn = Lock()

    async def take(self, units: float) -> None:
        """Wait for a turn, and then count `units`. An asyncio Lock is fair, so nobody is
        overtaken.
        """
        async with self._turn:
            while (wait := self._free_at - monotonic()) > 0:
                self._look()
                await sleep(min(wait, _LOOK_EVERY_S))
            self._look()
            self._free_at = max(monotonic(), self._free_at) + units * self._seconds_per_unit

    def correct(self, units: float) -> None:
        """Count `units` more (or fewer, when negative) for a request that was taken with an
        estimate.
        """
        self._free_at += units * self._seconds_per_unit

    def pause(self, seconds: float) -> None:
        """Nobody goes before `seconds` from now."""
        self._free_at = max(self._free_at, monotonic() + seconds)


class Turns:
    """Requests side by side, or one with no other beside it. Nobody is overtaken."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._together = 0
        self._nobody = Event()
        self._nobody.set()

    @asynccontextmanager
    async def with_others(self) -> AsyncIterator[None]:
        """Wait for one that goes out exclusively."""
        async with self._turn:
            self._together += 1
            self._nobody.clear()
        try:
            yield
        finally:
            self._together -= 1
            if not self._together:
                self._nobody.set()

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """Wait until those that went out are back; none goes out meanwhile."""
        async with self._turn:
            await self._nobody.wait()
            yield


async def nap(seconds: float, look: Callable[[], None]) -> None:
    """Sleeps, but wakes with the error that `look` raises when the run has ended meanwhile."""
    until = monotonic() + seconds
    while (wait := until - monotonic()) > 0:
        await sleep(min(wait, _LOOK_EVERY_S))
        look()
