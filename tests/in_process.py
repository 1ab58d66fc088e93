"""As much of a Ray Dataset as a stage uses, worked on in the test's own process: for what does not
depend on Ray.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pytest

from mpa_ray.images import parts
from mpa_ray.placement import capacity

Read = Callable[[int], pa.Table]


class Dataset:
    """Parts, and what is done with each; in a random order, one after the other."""

    def __init__(self, numbers: list[int], read: Read, seed: int = 0) -> None:
        self._numbers = random.Random(seed).sample(numbers, len(numbers))
        self._read, self._steps = read, []

    def map_batches(
        self,
        work: Any,
        *,
        fn_constructor_kwargs: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> "Dataset":
        self._steps.append(work(**fn_constructor_kwargs) if isinstance(work, type) else work)
        return self

    def set_name(self, name: str) -> None:
        pass

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        with asyncio.Runner() as runner:
            for number in self._numbers:
                table = self._read(number)
                for step in self._steps:
                    found = step(table)
                    table = runner.run(_whole(found)) if isinstance(found, AsyncIterator) else found
                yield table


async def _whole(tables: AsyncIterator[pa.Table]) -> pa.Table:
    return pa.concat_tables([table async for table in tables])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of this test are done here, and there is always room for them."""
    monkeypatch.setattr(parts, "dataset_of", Dataset)
    monkeypatch.setattr(capacity, "wait_for", lambda *_, **__: None)
    monkeypatch.setattr(capacity, "shortage", lambda *_, **__: None)
