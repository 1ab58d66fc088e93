"""Score the ratings that people gave in the report's pages, and mend the parity set by them. The run stays as it is.

Examples:

    python jobs/review.py --run runs/demo ann.jsonl ben.jsonl --output scores.json
    python jobs/review.py --run runs/demo ann.jsonl --parity runs/demo-reviewed --drop_below answer_correctness=0.5
"""

import json
from pathlib import Path

from mpa_ray.errors import ConfigurationError, exit_codes
from mpa_ray.job_parser import JobParser
from mpa_ray.storage import Folder
from mpa_ray.studies.rating_scores import score, tables
from mpa_ray.studies.ratings import Rating, groups_of, read, sheets
from mpa_ray.studies.review import apply, told


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("ratings", nargs="+", metavar="JSONL", help="ratings as a page exports them, of one rater or several")
    parser.add_argument("--run", required=True, metavar="RUN", help="the output folder of the run, local, s3:// or gs://")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the scores there as JSON too; a new file")
    parser.add_argument("--open", action="store_true", help="score ratings, too, that were given with the models' answers in sight")
    parser.add_argument("--parity", metavar="FOLDER", help="write the parity set there, rows dropped and mended; a new folder")
    below = "drop rows whose mean rating is lower, such as answer_correctness=0.5; may be given again for another question"
    parser.add_argument("--drop_below", action="append", default=[], metavar="QUESTION=SHARE", help=below)
    return parser


def thresholds_of(given: list[str]) -> dict[str, float]:
    """QUESTION=SHARE, read.

    Raises:
        ConfigurationError: one is not of that form.
    """
    found = {}
    for text in given:
        name, _, share = text.partition("=")
        try:
            found[name] = float(share)
        except ValueError:
            raise ConfigurationError(f"--drop_below {text}: give a question and a share, such as answer_correctness=0.5") from None
    return found


def print_scores(run: Folder, ratings: list[Rating], output: Path | None) -> None:
    groups = groups_of(run, ratings)
    result = score(groups, sheets(ratings, groups))
    if output:
        output.write_text(json.dumps(result, indent=2))
    print(tables(result))


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        if given.output and given.output.exists():
            raise ConfigurationError(f"--output {given.output}: exists already and is not overwritten; give a new file")
        thresholds = thresholds_of(given.drop_below)
        if thresholds and not given.parity:
            raise ConfigurationError("--drop_below drops nothing without --parity FOLDER; give both")
        folder, ratings = Folder.at(given.run), read(given.ratings)
        scored = [rating for rating in ratings if rating.blind or given.open]
        if given.parity:
            mended = Folder.at(given.parity)
            record = apply(folder, ratings, mended, thresholds=thresholds)
            print(told(record))
            if record["dropped"] < record["rows"]:
                print(f"a run trains on it with --parity {mended.child('parity').uri}")
        if scored:
            print_scores(folder, scored, given.output)
        else:
            print("no rating is blind, so none is scored; --open scores those that are not")
