"""Show the progress of a run, its rate and the time to go, by its output folder alone.

Examples:

    python jobs/status.py s3://bucket/run1
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.report.status import status
from mpa_ray.storage.folder import Folder


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_run("--run", "--output")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        print(status(Folder.at(given.run)))
