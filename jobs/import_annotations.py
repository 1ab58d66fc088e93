"""Turn annotations from elsewhere (JSON), the paper's released files among them, into an
annotations folder of ours.

Examples:

    python jobs/import_annotations.py --annotations output.json --images s3://bucket/train2014 \\
        --output s3://bucket/imported
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange.imports import import_annotations


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="FILE",
        help="a JSON file: a list of records, or one record a line",
    )
    parser.add_argument(
        "--images",
        required=True,
        metavar="FOLDER",
        help="where its images are: a folder, prefix or tar",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        record = import_annotations(given.annotations, given.images, Folder.at(given.output))
        rejected = "".join(
            f"; quarantined: {name} {count:,}" for name, count in record["quarantined"].items()
        )
        print(f"{record['annotations']:,} annotations of {record['records']:,} records{rejected}")
