"""Which row killed the process that asked about it.

An engine that dies alone raises EngineDied, and `mpa_ray.stages.row_worker` finds the culprit
without help. But a row can also take the whole actor with it (a crash in native code, the kernel's
out-of-memory killer), and then nothing is left that remembers. So an actor notes in the output that
it begins a part, and that it is done with it. A part whose note is found by the same call of the
run was begun before by an actor that is gone, perhaps with its node. It is begun once more as it
is; when that ends the actor too, its rows are asked one by one, each noted before it is asked, and
one that is noted when the next actor comes, for the second time, is the culprit.

Notes of earlier calls say nothing: those were ended together with their actors.
"""

import hashlib
from dataclasses import asdict, dataclass, field

from mpa_ray.images.parts import part_name
from mpa_ray.storage.folder import Folder

_FOLDER = "attempts"

# Actors that a part may lose before its rows are asked one by one: one may be a node that was taken
# away, two are suspicious.
_LOST_BEFORE_CAREFUL = 2
_DEATHS_OF_A_CULPRIT = 2


@dataclass(kw_only=True)
class Attempt:
    """An actor's work on one part.

    Attributes:
        lost: actors that began the part before and did not end it.
        asking: the place in the part of the row that is asked alone, None while none is.
        deaths: the places of rows that were asked alone when an actor ended, once for each time.
    """

    lost: int = 0
    asking: int | None = None
    deaths: list[int] = field(default_factory=list)

    @property
    def is_careful(self) -> bool:
        """Whether the rows are asked one by one."""
        return self.lost >= _LOST_BEFORE_CAREFUL

    def is_culprit(self, place: int) -> bool:
        """Whether the row at `place` is not to be asked again."""
        return self.deaths.count(place) >= _DEATHS_OF_A_CULPRIT


class Attempts:
    """The notes of one dataset, for which one model is asked.

    Args:
        output: of the run.
        stage: which asks.
        model: which is asked.
        call: when the dataset was made. Of two that ask one model side by side each has notes of
            its own, and so has each call of the run.
    """

    def __init__(self, output: Folder, *, stage: str, model: str, call: float) -> None:
        self._folder = output.child(
            f"{_FOLDER}/{stage}-{hashlib.sha256(f'{model} {call!r}'.encode()).hexdigest()[:8]}"
        )

    def begin(self, part: int) -> Attempt:
        """Notes that this actor begins `part`. The attempt knows of the actors that were lost over
        it.
        """
        attempt = Attempt()
        if self._folder.exists(part_name(part, ".json")):
            before = Attempt(**self._folder.read_json(part_name(part, ".json")))
            deaths = before.deaths + ([before.asking] if before.asking is not None else [])
            attempt = Attempt(lost=before.lost + 1, deaths=deaths)
        self._write(part, attempt)
        return attempt

    def ask_alone(self, part: int, attempt: Attempt, place: int) -> None:
        """Notes that the row at `place` is asked next, with no other beside it."""
        attempt.asking = place
        self._write(part, attempt)

    def answered(self, part: int, attempt: Attempt) -> None:
        """Notes that the row asked last came back. An actor that ends from here on ends through no
        row of this part: the actor has others to ask about.
        """
        attempt.asking = None
        self._write(part, attempt)

    def end(self, part: int) -> None:
        """The part's rows are answered."""
        self._folder.delete(part_name(part, ".json"))

    def _write(self, part: int, attempt: Attempt) -> None:
        self._folder.write_json(part_name(part, ".json"), asdict(attempt))


def forget(output: Folder) -> None:
    """Every part is committed: the notes are of no more use."""
    output.child(_FOLDER).delete_folder()
