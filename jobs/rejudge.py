"""Judge the stored answers of a run again with another matcher. Loads no model; the run stays as it
is.

Examples:

    python jobs/rejudge.py runs/demo --matcher anls --output runs/demo-anls
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.rejudge import rejudge, table


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_run("--run")
    parser.add_argument(
        "--matcher",
        required=True,
        choices=list(MATCHERS),
        help="when two answers count as the same (Eq. 1)",
    )
    parser.add_argument("--output", required=True, metavar="NEW", help="a new folder")
    parser.add_argument(
        "--no-parity",
        action="store_true",
        help="write no parity/: verdicts and counts alone, no image is touched",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="worker processes (default: one for each core)"
    )
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        run, output = Folder.at(given.run), Folder.at(given.output)
        record = rejudge(
            run,
            matcher=given.matcher,
            output=output,
            parity=not given.no_parity,
            processes=given.processes,
        )
        print(table(record))
