"""A run, and the steps it consists of."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from mpa_ray.config import Config
from mpa_ray.images.frozen import Frozen
from mpa_ray.images.sources import Source, parity_set, source_of
from mpa_ray.observability.side_by_side import side_by_side
from mpa_ray.placement import capacity
from mpa_ray.placement.place import Placement
from mpa_ray.stages import step_times
from mpa_ray.steps.annotate_and_identify import asked_models
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call on a run's output. Nothing in it changes while the steps run.

    Attributes:
        asked_for: the configuration as it was asked for; decides what run the output holds.
        config: the same, with the inputs that are in the output itself (`prepare.resolved`).
        output: the run's folder.
        held: the lease on it.
    """

    asked_for: Config
    config: Config
    output: Folder
    held: Lease

    @cached_property
    def source(self) -> Source | None:
        """What is annotated, or only judged; None where the run starts from a parity set.

        Raises:
            ConfigurationError: it is not there, or has changed since the run's first call.
        """
        return None if self.config.parity else source_of(self.config, self.output)

    @cached_property
    def parity(self) -> Frozen | None:
        """The parity set that the run starts from, if it does. Raises what `source` does."""
        return parity_set(self.config, self.output) if self.config.parity else None

    @property
    def first_file(self) -> str | None:
        """The path of a file that is read, where that is on a disk."""
        found = self.parity or self.source
        return found.first_file if found else None

    @cached_property
    def placement(self) -> Placement:
        """`config` with what the cluster decides filled in. Ray must be there."""
        asked = list(asked_models(self.config, self.source)) if self.source else []
        return capacity.placed(self.config, asked)


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """Work of several steps: what one of them has loaded serves the next.

    Attributes:
        lanes: of the names of steps, those that are done one after the other; lanes may run at the
            same time.
        work: does the steps of a lane, and gives their records in the same order, each when it is
            asked for.
    """

    lanes: Callable[[Run, Sequence[str]], Sequence[Sequence[str]]]
    work: Callable[[Run, Sequence[str]], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run.

    Attributes:
        name: of its record, `stages/<name>.json`.
        reads: what it needs: names in the output, or settings that name an input.
        writes: what it leaves, as names in the output.
        work: does it; what it returns is recorded. Steps that follow one another and have the same
            `InTurn` are done by that together.
        needs_ray: it does its work on Ray's cluster.
        checks_again: its work is done at every call, because it resumes by itself and finds out
            what has changed since the last call. Any other is done once.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    work: Callable[[Run], Mapping[str, object]] | InTurn
    needs_ray: bool = True
    checks_again: bool = False


def follow(steps: Iterable[Step], run: Run) -> None:
    """Do the steps in their order. Each leaves its record (`mpa_ray.stages.step_times`).

    Raises:
        RunError: a step failed, or another run has taken over the output.
    """

    for work, group in groupby(steps, key=lambda step: step.work):
        if isinstance(work, InTurn):
            _in_turn(work, [step.name for step in group], run)
            continue
        # In this thread, because Ctrl-C and the signal of a lost lease come here alone.
        for step in group:
            step_times.once(
                run.output, step.name, partial(work, run), run.held, again=step.checks_again
            )


def _in_turn(work: InTurn, names: Sequence[str], run: Run) -> None:
    pending = [name for name in names if step_times.record(run.output, name) is None]

    def do(lane: Sequence[str]) -> None:
        records = work.work(run, lane)
        for name in lane:
            step_times.once(run.output, name, partial(next, records), run.held)

    side_by_side(do, work.lanes(run, pending), at_once=run.config.evaluate.models_at_once)
