"""Export the parity set of a run for other trainers.

Examples:

    python jobs/export.py runs/demo --format datasets --output exports/demo
    python jobs/export.py s3://bucket/run1 --format llava --output s3://bucket/llava
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange.exports import LAYOUTS, export


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_run("--run")
    layouts = "Hugging Face datasets, TRL's prompt/completion, or LLaVA's conversation JSON"
    parser.add_argument("--format", required=True, choices=list(LAYOUTS), help=layouts)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--instruction",
        action="store_true",
        help="trl, llava: put the answering prompt before each question",
    )
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        record = export(
            Folder.at(given.run),
            Folder.at(given.output),
            layout=given.format,
            instruction=given.instruction,
        )
        print(f"{record['samples']:,} samples in {Folder.at(given.output).uri}")
