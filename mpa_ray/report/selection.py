"""Which samples a report shows, found in one pass over the rows; memory does not grow with them.

Every draw depends on a sample's id and a salt alone (`training_data.draw`), so a report that is
written again shows the same samples.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mpa_ray.images.draw import draw
from mpa_ray.report.gains import answer_type
from mpa_ray.report.rating_questions import AFTER, BEFORE
from mpa_ray.report.run_folder import Place
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder

QUARANTINED = "quarantined"
LEARNED, FORGOTTEN = "learned", "forgotten"
_CHANGES = (LEARNED, FORGOTTEN)
_READERS = 16

# Of the gallery; what one kind lacks goes to the others.
_SHARES = {
    str(Verdict.PARITY): 0.4,
    str(Verdict.SVLM_CORRECT): 0.2,
    str(Verdict.LVLM_INCONSISTENT): 0.2,
    QUARANTINED: 0.2,
}

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Lowest:
    """The `count` places with the lowest draws."""

    count: int
    seen: int = 0
    _heap: list[tuple[float, Place]] = field(default_factory=list)

    def add(self, drawn: float, place: Place) -> None:
        self.seen += 1
        if len(self._heap) < self.count:
            heapq.heappush(self._heap, (-drawn, place))
        elif self.count and drawn < -self._heap[0][0]:
            heapq.heapreplace(self._heap, (-drawn, place))

    def places(self, at_most: int | None = None) -> list[Place]:
        """In the order of their draws."""
        return [place for _, place in sorted(self._heap, key=lambda item: -item[0])][:at_most]


@dataclass(kw_only=True)
class Selection:
    """What one pass found.

    Attributes:
        kinds: verdict or "quarantined" -> its places; a quarantined place is (file, row number as
            text).
        changes: "learned" and "forgotten" -> places among the held-out rows.
        study: the groups of the rating study, BEFORE and AFTER -> places, the same as a rating
            sheet of this size and seed has.
        by_type: (answer type, verdict) -> rows.
    """

    kinds: dict[str, Lowest]
    changes: dict[str, Lowest]
    study: dict[str, Lowest]
    by_type: Counter[tuple[str, str]]

    def quotas(self, samples: int) -> dict[str, int]:
        """How many of each kind a gallery of `samples` has."""
        found = {
            kind: min(int(samples * share), self.kinds[kind].seen)
            for kind, share in _SHARES.items()
        }
        for kind in _SHARES:
            found[kind] += min(samples - sum(found.values()), self.kinds[kind].seen - found[kind])
        return found

    def gallery(self, samples: int) -> tuple[list[Place], list[Place]]:
        """Judged places and quarantined ones; a tenth more of what was learned and forgotten."""
        quotas = self.quotas(samples)
        judged = [
            place
            for kind, quota in quotas.items()
            if kind != QUARANTINED
            for place in self.kinds[kind].places(quota)
        ]
        judged += [place for lowest in self.changes.values() for place in lowest.places()]
        return list(dict.fromkeys(judged)), self.kinds[QUARANTINED].places(quotas[QUARANTINED])


def select(run: Folder, *, samples: int, review: int, seed: int) -> Selection:
    """Draw up to `samples` of each kind, and `review` of each group of the rating study."""
    found = Selection(
        kinds={kind: Lowest(samples) for kind in _SHARES},
        changes={kind: Lowest(samples // 20) for kind in _CHANGES},
        study={group: Lowest(review) for group in (BEFORE, AFTER)},
        by_type=Counter(),
    )
    judgements, quarantine = run.child("judgements"), run.child("quarantine")
    for name, rows, changes in in_order(
        lambda name: _read(run, name), judgements.names(".parquet")
    ):
        _add_judged(found, name, rows, changes, seed)
    for name, ids in in_order(
        lambda name: (name, quarantine.read_table(name, ["image_id"])), quarantine.names(".parquet")
    ):
        for number, image_id in enumerate(ids.column(0).to_pylist()):
            found.kinds[QUARANTINED].add(
                draw(f"{image_id}-{number}", f"gallery/{seed}"), (name, str(number))
            )
    return found


def _read(run: Folder, name: str) -> tuple[str, list[dict[str, Any]], dict[str, str]]:
    rows = run.child("judgements").read_table(name, ["sample_id", "answer", "verdict"]).to_pylist()
    held_out = run.child("holdout/mpa")
    changes = (
        held_out.read_table(name, ["sample_id", "change"]).to_pylist()
        if held_out.exists(name)
        else []
    )
    return name, rows, {row["sample_id"]: row["change"] for row in changes}


def _add_judged(
    found: Selection, name: str, rows: list[dict[str, Any]], changes: dict[str, str], seed: int
) -> None:
    for row in rows:
        sample_id, verdict = row["sample_id"], row["verdict"]
        place = (name, sample_id)
        drawn = draw(sample_id, f"gallery/{seed}")
        found.kinds[verdict].add(drawn, place)
        found.by_type[answer_type(row["answer"]), verdict] += 1
        if changes.get(sample_id) in found.changes:
            found.changes[changes[sample_id]].add(drawn, place)
        # The salts of rating_sheet.py, so that a sheet and a page draw the same samples.
        found.study[BEFORE].add(draw(sample_id, f"{BEFORE}/{seed}"), place)
        if verdict == Verdict.PARITY:
            found.study[AFTER].add(draw(sample_id, f"{AFTER}/{seed}"), place)


def in_order(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`work` of each item, in order, some at a time: object stores answer slowly, and results must
    not pile up.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        for chunk in _batched(items, 2 * _READERS):
            yield from pool.map(work, chunk)


def _batched(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
