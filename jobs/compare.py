"""Put runs side by side: data, shared parity samples, accuracy with paired tests against the first
run, tokens, time and cost.

Examples:

    python jobs/compare.py runs/a runs/b
    python jobs/compare.py s3://bucket/run1 s3://bucket/run2 --output comparison.html
"""

from mpa_ray.cli import JobParser
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.compare import compare, html, text


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    runs = (
        "the output folders of runs, local, s3:// or gs://; the others are tested against the first"
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    parser.add_argument(
        "--output",
        metavar="PAGE",
        help="write a page there too, such as comparison.html; one that is there is replaced",
    )
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        if given.output and not given.output.endswith(".html"):
            raise ConfigurationError(
                f"--output {given.output}: the page is a file; give a name that ends in .html"
            )
        compared = compare([Folder.at(run) for run in given.runs])
        print(text(compared), end="")
        if given.output:
            folder, _, name = given.output.rpartition("/")
            Folder.at(folder or ".").write_bytes(name, html(compared))
