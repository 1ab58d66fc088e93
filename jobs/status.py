"""How far a run is, its rate and the time to go, told from outside by its output folder.

Examples:

    python jobs/status.py --output s3://bucket/run1
"""

from mpa_ray.errors import exit_codes
from mpa_ray.job_parser import JobParser
from mpa_ray.status import status
from mpa_ray.storage import Folder


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--output", required=True, metavar="RUN", help="the output folder of the run, local, s3:// or gs://")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        print(status(Folder.at(given.output)))
