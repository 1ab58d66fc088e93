"""Finding keys that occur twice among any number, with memory for a small share of them: the keys
are spread over files by their own bits, and each file is looked at by itself. It takes 40 bytes of
temporary disk a key (400 MB for ten million), and 32 bytes of memory a repeat.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np

_FILES = 256
_RECORD = np.dtype(
    [("high", "u8"), ("low", "u8"), ("first_high", "u8"), ("first_low", "u8"), ("position", "u8")]
)
_FOUND = np.dtype([("position", "u8"), ("number", "u8"), ("first_high", "u8"), ("first_low", "u8")])


class Repeats:
    """Keys of 16 bytes, each with its position and a name of 16 bytes. Use it as a context; it
    keeps temporary files.
    """

    def __enter__(self) -> "Repeats":
        self._stack = ExitStack()
        self._files: dict[int, IO[bytes]] = {}
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def add(self, keys: Sequence[bytes], names: Sequence[bytes], positions: Sequence[int]) -> None:
        """Add keys, each with its name and its place in an order of the caller's."""
        records = np.empty(len(keys), _RECORD)
        records["high"], records["low"] = _halves(keys)
        records["first_high"], records["first_low"] = _halves(names)
        records["position"] = positions
        spread = (records["low"] % _FILES).astype(np.uint8)
        for number in np.unique(spread).tolist():
            if number not in self._files:
                self._files[number] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            self._files[number].write(records[spread == number].tobytes())

    def found(self) -> np.ndarray:
        """The repeats, sorted by position. Of several equal keys, the one at the lowest position is
        the first and is not among them.

        Fields: position; number, the how many-th repeat of its key it is, from 1 on; first_high and
        first_low, of which `name_of` makes the
            name of the key's first position.
        """
        repeats = np.concatenate(
            [np.empty(0, _FOUND), *(_repeats_in(file) for file in self._files.values())]
        )
        return repeats[np.argsort(repeats["position"])]


def name_of(repeat: Any) -> bytes:
    """The name that was given with the first position of a repeat's key."""
    return b"".join(int(repeat[half]).to_bytes(8) for half in ("first_high", "first_low"))


def _halves(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _repeats_in(file: IO[bytes]) -> np.ndarray:
    file.seek(0)
    records = np.frombuffer(file.read(), _RECORD)
    records = records[np.lexsort((records["position"], records["low"], records["high"]))]
    is_repeat = np.zeros(len(records), bool)
    is_repeat[1:] = (records["high"][1:] == records["high"][:-1]) & (
        records["low"][1:] == records["low"][:-1]
    )
    places = np.arange(len(records))
    first = np.maximum.accumulate(np.where(is_repeat, 0, places)) if len(records) else places
    found = np.empty(int(is_repeat.sum()), _FOUND)
    found["position"] = records["position"][is_repeat]
    found["number"] = (places - first)[is_repeat]
    for half in ("first_high", "first_low"):
        found[half] = records[half][first[is_repeat]]
    return found
