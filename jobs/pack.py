"""Pack loose image files into shards: every image decoded once, exact duplicates left out, ids as
they were.

Examples:

    python jobs/pack.py --images s3://bucket/photos --output s3://bucket/packed --shard-bytes 256MB
    python jobs/mpa_textvqa.py --images s3://bucket/packed --output s3://bucket/run1
"""

import argparse
import re

from mpa_ray.cli import JobParser
from mpa_ray.config import Config
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.pack.pack import pack, table

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def number_of_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of bytes; write it as 256MB or 268435456"
        )
    return int(found[1]) * UNITS[(found[2] or "").upper()]


def arguments() -> JobParser:
    defaults = Config()
    parser = JobParser(__doc__)
    parser.add_argument(
        "--images",
        required=True,
        metavar="PREFIX",
        help="a folder or prefix of image files, local, s3:// or gs://",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="a new folder; the same command on it resumes where it stopped",
    )
    parser.add_argument(
        "--shard-bytes",
        type=number_of_bytes,
        default=256 * 10**6,
        metavar="SIZE",
        help="of a shard, at most (256MB)",
    )
    parser.add_argument(
        "--max-image-pixels",
        type=int,
        default=defaults.max_image_pixels,
        metavar="N",
        help="images with more are quarantined",
    )
    parser.add_argument(
        "--max-image-bytes",
        type=number_of_bytes,
        default=defaults.max_image_bytes,
        metavar="SIZE",
        help="files with more are",
    )
    parser.add_argument(
        "--max-decode-seconds",
        type=float,
        default=defaults.max_decode_seconds,
        metavar="S",
        help="images that take longer are",
    )
    return parser


if __name__ == "__main__":
    given = arguments().parse_args()
    with exit_codes():
        output = Folder.at(given.output)
        record = pack(
            given.images,
            output,
            shard_bytes=given.shard_bytes,
            max_image_pixels=given.max_image_pixels,
            max_image_bytes=given.max_image_bytes,
            max_decode_seconds=given.max_decode_seconds,
        )
        print(table(record, output))
