"""Draw annotations before and after the Parity Identifier into a blind sheet for human raters
(Table 4).

Examples:

    python jobs/rating_sheet.py runs/demo --output runs/demo-rating --samples 100
    python jobs/score_ratings.py --key runs/demo-rating/key.csv ann.csv ben.csv
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.report.rating_questions import about
from mpa_ray.report.run_folder import config_of
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.rating_sheet import write_sheet


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_run("--run")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="a new folder; raters get its for_raters/ and nothing else",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=500,
        help="annotations before PI, and as many after it (default: 500, the paper's)",
    )
    parser.add_argument(
        "--human",
        action="store_true",
        help="mix in as many questions of the run's benchmark, which people wrote",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is drawn and of the order (default: 0)"
    )
    parser.add_argument(
        "--task", help="what the questions are about, for the raters (default: from the run's task)"
    )
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        run, output = Folder.at(given.run), Folder.at(given.output)
        config = config_of(run)
        task = given.task or about(config.task_spec.name if config else None)
        counts = write_sheet(
            run, output, samples=given.samples, seed=given.seed, task=task, human=given.human
        )
        print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
        print(f"give raters {output.uri}/for_raters; keep {output.uri}/key.csv to yourself")
