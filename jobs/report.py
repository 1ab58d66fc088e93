"""Write the report of a run, finished or under way: report/index.html, to be opened in a browser.

Examples:

    python jobs/report.py runs/demo
    python jobs/report.py s3://bucket/run1 --to reports/run1 --samples 10000 --rated 500
"""

from mpa_ray.cli import JobParser
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.report import write_report
from mpa_ray.report.write import RATED, SAMPLES
from mpa_ray.storage.folder import Folder


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_run("--run", "--output")
    parser.add_argument(
        "--to", metavar="FOLDER", help="where the pages go (default: report/ in the run)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        help=f"samples of the gallery, drawn by verdict (default: {SAMPLES})",
    )
    rated = f"samples to rate before PI, and as many after it (default: {RATED}; the paper: 500)"
    parser.add_argument("--rated", type=int, default=RATED, help=rated)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        run = Folder.at(given.run)
        target = Folder.at(given.to) if given.to else run.child("report")
        pages = write_report(
            run, to=target, samples=given.samples, rated=given.rated, seed=given.seed
        )
        print(
            f"{target.uri}/index.html, and {len(pages) - 1} further pages"
            if len(pages) > 1
            else f"{target.uri}/index.html"
        )
