"""Score the ratings that people gave in the report's pages, and fix the parity set by them. The run
stays as it is.

Examples:

    python jobs/review.py runs/demo ann.jsonl ben.jsonl --output scores.json
    python jobs/review.py runs/demo ann.jsonl --parity runs/demo-reviewed \\
        --drop_below answer_correctness=0.5
"""

import argparse
import json
from pathlib import Path

from mpa_ray.cli import JobParser
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.rating_scores import score, tables
from mpa_ray.tools.studies.ratings import Rating, groups_of, read, sheets
from mpa_ray.tools.studies.review import apply, told


def arguments() -> JobParser:
    parser = JobParser(__doc__)
    ratings = (
        "the output folder of a run, local, s3:// or gs://, and after it ratings as a page"
        " exports them, of one rater or several"
    )
    parser.add_argument("words", nargs="+", metavar="RUN JSONL", help=ratings)
    parser.add_argument(
        "--run", metavar="RUN", help="the run, where only ratings are given as arguments"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the scores there as JSON too; a new file"
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="score ratings, too, that were given with the models' answers in sight",
    )
    parser.add_argument(
        "--parity",
        metavar="FOLDER",
        help="write the parity set there, rows dropped and fixed; a new folder",
    )
    below = (
        "drop rows whose mean rating is lower, such as answer_correctness=0.5; may be given"
        " again for another question"
    )
    parser.add_argument(
        "--drop_below", action="append", default=[], metavar="QUESTION=SHARE", help=below
    )
    return parser


def run_and_ratings(given: argparse.Namespace) -> tuple[Folder, list[str]]:
    """The run, behind its flag or as the first argument, and the files of ratings.

    Raises:
        ConfigurationError: there is one of the two alone.
    """
    run, *ratings = [given.run, *given.words] if given.run else given.words
    if not ratings:
        raise ConfigurationError(
            f"{run}: give the output folder of a run, and after it at least one file of ratings"
        )
    return Folder.at(run), ratings


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
            raise ConfigurationError(
                f"--drop_below {text}: give a question and a share, such as answer_correctness=0.5"
            ) from None
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
            raise ConfigurationError(
                f"--output {given.output}: exists already and is not overwritten; give a new file"
            )
        thresholds = thresholds_of(given.drop_below)
        if thresholds and not given.parity:
            raise ConfigurationError(
                "--drop_below drops nothing without --parity FOLDER; give both"
            )
        folder, files = run_and_ratings(given)
        ratings = read(files)
        scored = [rating for rating in ratings if rating.blind or given.open]
        if given.parity:
            fixed = Folder.at(given.parity)
            record = apply(folder, ratings, fixed, thresholds=thresholds)
            print(told(record))
            if record["dropped"] < record["rows"]:
                print(f"a run trains on it with --parity {fixed.child('parity').uri}")
        if scored:
            print_scores(folder, scored, given.output)
        else:
            print("no rating is blind, so none is scored; --open scores those that are not")
