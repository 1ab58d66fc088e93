"""The stages of a run: a record of each that is finished, and the seconds that each took, over all
calls on the output.

    stages/<name>.json   what the stage gave; `seconds`; `calls`, for each call when it began
                         (seconds since the epoch) and its seconds
    steps.json           the names of the run's steps, in their order
    calls/<name>.json    the calls so far of a stage that is not finished, written again every
                         few seconds

All of it is the driver's clock. A call that is killed loses what it took since the file was last
written.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

from mpa_ray.errors import StorageError
from mpa_ray.observability import logs
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

STEPS = "steps.json"
_NOTED_EVERY_S = 10.0
# For records of earlier versions, which do not say when a stage began.
_ORDER = (
    "demo_",
    ANNOTATE_AND_IDENTIFY,
    "train_mpa",
    "train_",
    "evaluate_zero_shot",
    "evaluate_mpa",
    "evaluate_",
    "holdout_",
)

Record = dict[str, Any]
Calls = list[list[float]]


def once(
    output: Folder,
    name: str,
    work: Callable[[], Mapping[str, object]],
    held: Lease,
    *,
    again: bool = False,
) -> Record:
    """Do a step and record what `work` returns, with the `seconds` of all its calls. A step that is
    finished is not done again, unless `again`; then its record is of the last call's result.

    Raises:
        RunError: another run has taken over the output.
    """
    found = None if again else record(output, name)
    if found is None:
        held.check()
        with logs.stage(name), clock(output, name, held):
            result = work()
        found = finish(output, name, dict(result), held)
    return {key: value for key, value in found.items() if key != "calls"}


@contextmanager
def clock(output: Folder, name: str, held: Lease) -> Iterator[None]:
    """Keep the seconds of this call, whatever ends it."""
    earlier, began, started = calls(output, name), time.time(), time.monotonic()
    ended = Event()

    def note() -> None:
        # What is lost here is a few seconds of the account; what ends the run is said elsewhere.
        with suppress(StorageError):
            if not held.lost.is_set():
                output.write_json(
                    f"calls/{name}.json", [*earlier, [began, time.monotonic() - started]]
                )

    def note_again() -> None:
        while not ended.wait(_NOTED_EVERY_S):
            note()

    thread = Thread(target=note_again, daemon=True, name=f"clock {name}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        note()


def finish(output: Folder, name: str, result: Record, held: Lease) -> Record:
    """Record that a stage is finished, with the seconds of all its calls. Return the record.

    Raises:
        RunError: another run has taken over the output.
    """
    held.check()
    took = calls(output, name)
    found = result | {"seconds": sum(seconds for _, seconds in took), "calls": took}
    output.write_json(f"stages/{name}.json", found)
    output.delete(f"calls/{name}.json")
    return found


def record(output: Folder, name: str) -> Record | None:
    """What a finished stage gave; None while it is not finished."""
    return output.read_json(f"stages/{name}.json") if output.exists(f"stages/{name}.json") else None


def records(output: Folder) -> dict[str, Record]:
    """The finished stages, in the order in which they ran."""
    folder = output.child("stages")
    found = {name.removesuffix(".json"): folder.read_json(name) for name in folder.names(".json")}
    return dict(sorted(found.items(), key=lambda item: _place(*item)))


def to_do(output: Folder) -> list[str]:
    """The names of the steps that are not finished, in their order; none where the output does not
    say, as those of earlier versions.
    """
    names = output.read_json(STEPS) if output.exists(STEPS) else []
    finished = output.child("stages").names(".json")
    return [name for name in names if f"{name}.json" not in finished]


def _place(name: str, found: Record) -> tuple[float, int, str]:
    began = min((began for began, _ in found.get("calls", ())), default=0.0)
    return (
        began,
        next((place for place, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER)),
        name,
    )


def calls(output: Folder, name: str) -> Calls:
    """When each call on a stage began, and its seconds, finished or not."""
    if output.exists(f"calls/{name}.json"):
        return output.read_json(f"calls/{name}.json")
    return _calls_of(record(output, name) or {})


def _calls_of(found: Record) -> Calls:
    # Earlier versions recorded the seconds alone.
    return found.get("calls", [[0.0, found["seconds"]]] if "seconds" in found else [])


def seconds(output: Folder, name: str) -> float:
    """What a stage took so far, in all calls."""
    return sum(seconds for _, seconds in calls(output, name))


def wall_seconds(found: Iterable[Record]) -> float:
    """How long stages took together: what ran at the same time counts once."""
    total = until = 0.0
    for began, seconds in sorted(call for one in found for call in _calls_of(one)):
        if not began:
            # Nobody knows when it was.
            total += seconds
            continue
        total += max(0.0, began + seconds - max(began, until))
        until = max(until, began + seconds)
    return total
