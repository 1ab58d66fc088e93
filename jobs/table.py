"""Make a table of the paper again: run its grid, skip what is finished, and print our figures
beside the paper's (docs/paper_tables.md).

Examples:

    python jobs/table.py --table 1 --data data.yaml --output s3://bucket/paper
    python jobs/table.py --table 6 --preset demo --output runs/table-demo
"""

import argparse
from pathlib import Path

from mpa_ray.cli import JobParser
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables import grid_data, result_file
from mpa_ray.tools.tables.grid import run_table
from mpa_ray.tools.tables.paper import DEMO_TABLES, TABLES, demo_table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
_DEMO_SEEDS = [0, 1, 2]


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument(
        "--table", required=True, type=int, choices=list(TABLES), help="its number in the paper"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="of the grid; tables given the same one share cells",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="where images, benchmarks and labels are, as YAML (jobs/data.example.yaml)",
    )
    parser.add_argument(
        "--preset",
        choices=["demo"],
        help="the embedded pair; the table goes to benchmarks/results/ too",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="a run of each cell for each (default: one run; with --preset demo, 0 1 2)",
    )
    return parser


def main(given: argparse.Namespace) -> None:
    output = Folder.at(given.output)
    if (given.preset is None) == (given.data is None):
        raise ConfigurationError("give --data FILE, or --preset demo, and not both")
    if given.data:
        text, _ = run_table(
            TABLES[given.table],
            output=output,
            seeds=given.seeds or [None],
            data=grid_data.read(given.data),
        )
        print(text)
        return
    if given.table not in DEMO_TABLES:
        there = ", ".join(map(str, DEMO_TABLES))
        raise ConfigurationError(
            f"--table {given.table} --preset demo: the demo has no such models or benchmarks; it"
            f" has tables {there}"
        )
    text, found = run_table(
        demo_table(given.table), output=output, seeds=given.seeds or _DEMO_SEEDS, data=None
    )
    print(text)
    print(result_file.write(RESULTS, f"table-{given.table}-demo", text, found))


if __name__ == "__main__":
    with exit_codes():
        main(arguments().parse_args())
