"""Which row killed the process that asked about it.

An engine that dies alone raises EngineDied, and `mpa_ray.stages.row_worker` finds the culprit
without help. But a row can also take the whole actor with it (a crash in native code, the kernel's
out-of-memory killer), and then nothing is left that remembers. So an actor notes that it begins a
part, and that it is done with it, where the notes outlive it (`mpa_ray.stages.call_notes`). A part
that is begun again was begun before by an actor that is gone, perhaps with its node. It is begun
once more as it is. When that ends the actor too, its rows are asked one by one, each noted before
it is asked, and a row that is noted when the next actor begins, for the second time, is the
culprit.
"""

from dataclasses import dataclass

# Actors that a part may lose before its rows are asked one by one: one may be a node that was taken
# away, two are suspicious.
_LOST_BEFORE_ONE_BY_ONE = 2
_CRASHES_OF_A_CULPRIT = 2


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is known of a part when an actor begins it.

    Attributes:
        actors_lost: actors that began the part before and did not end it.
        asking: the place in the part of the row that is asked alone, None while none is.
        crashed_rows: the places of rows that were asked alone when an actor ended, once for each
            time.
    """

    actors_lost: int = 0
    asking: int | None = None
    crashed_rows: tuple[int, ...] = ()

    @property
    def one_by_one(self) -> bool:
        """Whether the rows are asked one by one."""
        return self.actors_lost >= _LOST_BEFORE_ONE_BY_ONE

    def is_culprit(self, place: int) -> bool:
        """Whether the row at `place` is not to be asked again."""
        return self.crashed_rows.count(place) >= _CRASHES_OF_A_CULPRIT

    def begun_again(self) -> "Attempt":
        """The part in the next actor: the one before it did not end it."""
        asked = () if self.asking is None else (self.asking,)
        return Attempt(actors_lost=self.actors_lost + 1, crashed_rows=self.crashed_rows + asked)
