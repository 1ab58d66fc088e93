"""Finding keys that occur twice among any number, with memory for a small share of them: the keys are spread over files by their own bits, and
each file is looked at by itself. It takes 40 bytes of temporary disk a key (400 MB for ten million), and 24 bytes of memory a repeat.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

_FILES = 256
_RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("name_high", ">u8"), ("name_low", ">u8"), ("position", ">u8")])


class Repeat(NamedTuple):
    """A key that was there before.

    Attributes:
        position: as given to `add`.
        first: the name that was given with the key's first position.
        number: the how many-th repeat of the key it is, from 1 on.
    """

    position: int
    first: bytes
    number: int


class Repeats:
    """Keys of 16 bytes, each with its position and a name of 16 bytes. Use it as a context; it keeps temporary files."""

    def __enter__(self) -> "Repeats":
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(tempfile.TemporaryFile()) for _ in range(_FILES)]
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def add(self, keys: list[bytes], names: list[bytes], first_position: int) -> None:
        """Adds keys at the positions from `first_position` on."""
        records = np.empty(len(keys), _RECORD)
        records["high"], records["low"] = _halves(keys)
        records["name_high"], records["name_low"] = _halves(names)
        records["position"] = np.arange(first_position, first_position + len(keys))
        spread = (records["low"] % _FILES).astype(np.uint8)
        for number in np.unique(spread):
            self._files[number].write(records[spread == number].tobytes())

    def found(self) -> list[Repeat]:
        """The repeats, by position. Of several equal keys, the one at the lowest position is the first."""
        return sorted(repeat for file in self._files for repeat in _repeats_in(file))


def _halves(keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _repeats_in(file: Any) -> Iterator[Repeat]:
    file.seek(0)
    records = np.frombuffer(file.read(), _RECORD)
    records = records[np.lexsort((records["position"], records["low"], records["high"]))]
    same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    first = 0
    for index in np.flatnonzero(same) + 1:
        if index - 1 == 0 or not same[index - 2]:
            first = index - 1
        record = records[first]
        yield Repeat(int(records["position"][index]), record[["name_high", "name_low"]].tobytes(), int(index - first))
