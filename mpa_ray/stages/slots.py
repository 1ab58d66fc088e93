"""A bound on the rows that are asked about at the same time, which one row can have for itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """So many rows are asked about at the same time. All parts of an actor share them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._waiting_for_all = asyncio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot."""
        async with self._free:
            yield

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Hold every slot, so that nothing else is in the engine. One at a time may gather slots,
        or two would wait for each other's for ever.
        """
        async with self._waiting_for_all:
            held = 0
            try:
                while held < self._count:
                    await self._free.acquire()
                    held += 1
                yield
            finally:
                for _ in range(held):
                    self._free.release()
