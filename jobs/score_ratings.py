"""Score the filled sheets of several raters (Table 4): means before and after PI with 95%
intervals, and how far the raters agree.

Examples:

    python jobs/score_ratings.py --key runs/demo-rating/key.csv ann.csv ben.csv cleo.csv \\
        --output scores.json
"""

import json
from pathlib import Path

from mpa_ray.cli import JobParser
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.tools.studies.rating_scores import read_key, read_sheet, score, tables


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("sheets", nargs="+", metavar="SHEET", help="a rater's filled sheet, as CSV")
    parser.add_argument("--key", required=True, metavar="FILE", help="key.csv of the study")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the scores there as JSON too; a new file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        if given.output and given.output.exists():
            raise ConfigurationError(
                f"--output {given.output}: exists already and is not overwritten; give a new file"
            )
        groups = read_key(given.key)
        result = score(groups, [read_sheet(path, groups) for path in given.sheets], seed=given.seed)
        if given.output:
            given.output.write_text(json.dumps(result, indent=2))
        print(tables(result))
