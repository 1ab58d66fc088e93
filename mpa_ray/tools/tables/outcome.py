"""What a cell of a table came to."""

from dataclasses import dataclass, field

from mpa_ray.report.run_record import RunRecord, Score
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables.paper import Cell, Figure


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one cell with one seed.

    Attributes:
        cell: which.
        seed: of the run; None for the only one.
        folder: of the run.
        record: its run.json, or None where it did not run.
        reason: why it did not.
        transfer: benchmark -> scores of the cell's models there.
    """

    cell: Cell
    seed: int | None
    folder: Folder
    record: RunRecord | None = None
    reason: str = ""
    transfer: dict[str, list[Score]] = field(default_factory=dict)

    def score(self, figure: Figure, metric: str = "") -> Score | None:
        """The entry of an evaluation for a figure: its own metric, the official one (the first), or
        `metric`.
        """
        found = (
            self.transfer.get(figure.benchmark, [])
            if figure.benchmark
            else self.record["evaluation"]
            if self.record
            else []
        )
        wanted = metric or figure.metric
        return next(
            (
                score
                for score in found
                if score["model"] == figure.model and wanted in ("", score["metric"])
            ),
            None,
        )

    def predictions(self, figure: Figure) -> Folder:
        """Where the predictions behind a figure are."""
        return (
            self.folder.child(f"transfer/{figure.benchmark}") if figure.benchmark else self.folder
        ).child("evaluation/predictions")
