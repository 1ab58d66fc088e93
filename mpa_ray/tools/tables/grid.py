"""The paper's tables, made again: a grid of runs, each in FOLDER/<task>/<L-VLM>/<S-VLM>[/seed-<k>],
and the table that follows from them.

A finished run returns at once, so a grid resumes where it stopped, and tables share their cells.
What one S-VLM's run had the L-VLM annotate is what the others of that task, L-VLM and seed start
from. A cell that cannot run is a "-" with its reason, and the others run.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mpa_ray import pipeline
from mpa_ray.config import Config, EvaluateSection
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.observability.progress import say
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables import table_text
from mpa_ray.tools.tables.grid_data import SVLMS, GridData, cell_config, demo_config
from mpa_ray.tools.tables.outcome import Outcome, Score
from mpa_ray.tools.tables.paper import LVLM, ZERO_SHOT, Cell, Table
from mpa_ray.tools.tables.transfer import score_alone
from mpa_ray.training import arms

# Cell, output and seed -> the configuration of the cell's run.
Configure = Callable[[Cell, str, int], Config]


def cell_folder(grid: Folder, cell: Cell, seed: int | None) -> Folder:
    """FOLDER/<task>/<L-VLM>/<S-VLM>[/seed-<k>], in lower case."""
    folder = grid.child(f"{cell.task}/{cell.lvlm.lower()}/{cell.svlm.lower()}")
    return folder if seed is None else folder.child(f"seed-{seed}")


def run_table(
    table: Table, *, output: Folder, seeds: Sequence[int | None], data: GridData | None
) -> tuple[str, dict[str, Any]]:
    """Run what is not finished, and write table-<N>.md and .json.

    Args:
        table: one of `mpa_ray.tools.tables.paper.TABLES`, or `demo_table(...)` where `data` is
            None.
        output: the grid's folder; tables given the same one share their cells.
        seeds: of each cell's runs; [None] for one run without a folder for its seed.
        data: where images, benchmarks and labels are; None for the embedded pair.

    Returns:
        The table as text, and what is in table-<N>.json; see `table_text.describe`.
    """
    configure: Configure = _demo if data is None else _configured_by(data)
    transfer = dict(data.transfer) if data else {}
    outcomes = [
        run_cell(cell, seed, grid=output, configure=configure, transfer=transfer)
        for cell in table.cells
        for seed in seeds
    ]
    found = table_text.describe(table, outcomes, seeds=seeds)
    text = table_text.text(found)
    output.write_bytes(f"table-{table.number}.md", text.encode())
    output.write_json(f"table-{table.number}.json", found)
    return text, found


def _demo(cell: Cell, output: str, seed: int) -> Config:
    return demo_config(cell, output=output, seed=seed)


def _configured_by(data: GridData) -> Configure:
    return lambda cell, output, seed: cell_config(cell, data, output=output, seed=seed)


def run_cell(
    cell: Cell,
    seed: int | None,
    *,
    grid: Folder,
    configure: Configure,
    transfer: dict[Any, EvaluateSection],
) -> Outcome:
    """One run of the grid, and its models on the benchmarks beside the task's own."""
    folder = cell_folder(grid, cell, seed)
    name = " / ".join(
        [cell.task, cell.lvlm, cell.svlm, *([] if seed is None else [f"seed {seed}"])]
    )
    say(f"cell {name}: {folder.uri}")
    try:
        config = with_shared_annotations(configure(cell, folder.uri, seed or 0), grid, cell, seed)
        record = pipeline.run(config)
        scores = {
            benchmark: _transfer(cell, config, benchmark, transfer[benchmark])
            for benchmark in cell.benchmarks
        }
    except (ConfigurationError, RunError) as error:
        reason = str(error).splitlines()[0]
        say(f"cell {name} did not run: {reason}")
        return Outcome(cell=cell, seed=seed, folder=folder, reason=reason)
    return Outcome(cell=cell, seed=seed, folder=folder, record=record, transfer=scores)


def with_shared_annotations(config: Config, grid: Folder, cell: Cell, seed: int | None) -> Config:
    """The configuration, starting from the annotations that another S-VLM's run of the same L-VLM,
    task and seed left.

    A run that has begun resumes as it began. The first one makes its own.

    Raises:
        RunError: another run is making them and has not finished: a second one would pay for them
            again.
    """
    own = cell_folder(grid, cell, seed)
    if own.exists("config.json"):
        made = own.read_json("config.json").get("annotations")
        return _starting_from(config, made) if made else config
    for svlm in SVLMS:
        other = cell_folder(grid, Cell(task=cell.task, lvlm=cell.lvlm, svlm=svlm, figures=()), seed)
        if (
            svlm == cell.svlm
            or not other.exists("config.json")
            or other.read_json("config.json").get("annotations")
        ):
            continue
        if not other.exists("stages/annotate_and_identify.json"):
            raise RunError(
                f"the annotations of {cell.lvlm} are being made by {other.uri}, which is not"
                " finished; finish or remove it"
            )
        return _starting_from(config, other.child("annotations").uri)
    return config


def _starting_from(config: Config, annotations: str) -> Config:
    return config.model_copy(update={"images": "", "annotations": annotations})


def _transfer(cell: Cell, config: Config, benchmark: str, section: EvaluateSection) -> list[Score]:
    """The scores of the cell's models on another benchmark, all of its metrics."""
    output = Folder.at(config.output)
    elsewhere = config.model_copy(
        update={"evaluate": section.model_copy(update={"format": benchmark})}
    )
    scores: list[Score] = []
    for name in dict.fromkeys(
        figure.model for figure in cell.figures if figure.benchmark == benchmark
    ):
        models = {ZERO_SHOT: config.svlm, LVLM: config.lvlm}
        trained = config.svlm.model_copy(
            update={"model": arms.model_folder(output, name).uri, "revision": None}
        )
        scores += score_alone(
            models.get(name, trained),
            name=name,
            config=elsewhere,
            output=output.child(f"transfer/{benchmark}"),
        )
    return scores
