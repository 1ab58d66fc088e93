"""How far a run is, its rate and the time to go, told from outside by its output folder.

Examples:

    python jobs/status.py --output s3://bucket/run1
"""

import argparse

from mpa_ray.errors import exit_codes
from mpa_ray.status import status
from mpa_ray.storage import Folder


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", required=True, metavar="RUN", help="the output folder of the run, local, s3:// or gs://")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        print(status(Folder.at(given.output)))
