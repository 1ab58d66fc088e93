"""Keys that occur twice, found a share at a time."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_ray.images.repeats import Repeats, name_of


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def found(repeats: Repeats) -> list[tuple[int, bytes, int]]:
    return [
        (int(repeat["position"]), name_of(repeat), int(repeat["number"]))
        for repeat in repeats.found()
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30)), st.integers(0, 2**40))
def test_repeats_are_those_of_a_set(numbers: list[int], start: int) -> None:
    expected: list[tuple[int, bytes, int]] = []
    seen: dict[int, list[int]] = {}
    for position, number in enumerate(numbers, start):
        if number in seen:
            seen[number][1] += 1
            expected.append((position, key(seen[number][0]), seen[number][1]))
        else:
            seen[number] = [position, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpa_ray.images.repeats._FILES", 4)
        with Repeats() as repeats:
            half = len(numbers) // 2
            for places in (range(start, start + half), range(start + half, start + len(numbers))):
                if places:
                    # The name of a key is that of its position.
                    keys = [key(numbers[place - start]) for place in places]
                    repeats.add(keys, [key(place) for place in places], places)
            assert found(repeats) == expected


def test_keys_that_end_in_zeros_are_told_apart() -> None:
    keys = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), bytes(16)]
    with Repeats() as repeats:
        repeats.add(keys, keys, [5, 6, 7, 8])
        assert found(repeats) == [(8, bytes(16), 1)]
