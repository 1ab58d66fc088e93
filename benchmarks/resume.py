"""What a resume costs before it begins to work, when all but one part of N images is finished:
three ways to know what is done.

    python benchmarks/resume.py --ids 1000000 10000000

- parts: what mpa_ray does. The names in commits/ are listed; no id is read.
- anti-join: the image_id column of every written file is read, and the ids of the input are looked
  up in it.
- Ray Data's checkpointing (`CheckpointConfig`): its own files of finished ids, which it loads and
  filters the input by. Its figures take in the start of Ray and the writing of what is left, which
  the two others do without.

Each is measured in a process of its own, on a local disk, until it has found the part that is left:
seconds, and the most memory that all processes of the machine together had above what was used
before. The report goes to benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import result_file
from mpa_ray.images import parts
from mpa_ray.stages import commits
from mpa_ray.storage.folder import Folder
from scale import watched

_ROWS_PER_PART = 256
_ROWS_PER_INPUT_FILE = 100_000
_THREADS = 8


def ids_of(number: int, ids: int) -> list[str]:
    """The ids of one part: as long as ours, and in no order."""
    start, end = number * _ROWS_PER_PART, min(ids, (number + 1) * _ROWS_PER_PART)
    return [
        f"{(place * 0x9E3779B97F4A7C15) % 2**64:016x}{place:016x}" for place in range(start, end)
    ]


def generate(folder: Path, ids: int) -> None:
    """The input, and all parts but the last as each way keeps them."""
    for name in ("commits", "annotations", "checkpoint", "input"):
        (folder / name).mkdir(parents=True)
    count = -(-ids // _ROWS_PER_PART)
    waiting: list[str] = []
    for number in range(count):
        found = ids_of(number, ids)
        waiting += found
        if len(waiting) >= _ROWS_PER_INPUT_FILE or number == count - 1:
            pq.write_table(
                pa.table({"image_id": waiting}),
                folder / "input" / f"{number:08d}.parquet",
                row_group_size=_ROWS_PER_PART * 8,
            )
            waiting = []
        if number < count - 1:
            (folder / "commits" / parts.part_name(number, ".json")).write_text(
                json.dumps({"part": number, "images": len(found)})
            )
            table = pa.table({"image_id": found})
            for name in ("annotations", "checkpoint"):
                pq.write_table(table, folder / name / parts.part_name(number))


def by_parts(folder: Path, ids: int) -> int:
    done = commits.committed(Folder.at(folder))
    return sum(
        len(ids_of(number, ids))
        for number in range(-(-ids // _ROWS_PER_PART))
        if number not in done
    )


def by_anti_join(folder: Path, ids: int) -> int:
    def read(path: Path) -> np.ndarray:
        return pq.ParquetFile(path).read(["image_id"]).column(0).to_numpy().astype("S32")

    with ThreadPoolExecutor(_THREADS) as pool:
        done = np.sort(
            np.concatenate(list(pool.map(read, sorted((folder / "annotations").iterdir()))))
        )
    left = 0
    for path in sorted((folder / "input").iterdir()):
        asked = read(path)
        left += int((done[np.searchsorted(done, asked).clip(max=len(done) - 1)] != asked).sum())
    return left


def by_ray(folder: Path, ids: int) -> int:
    import ray
    import ray.data
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        "image_id", str(folder / "checkpoint"), delete_checkpoint_on_success=False
    )
    ray.data.read_parquet(str(folder / "input")).write_parquet(str(folder / "written"))
    return sum(
        pq.ParquetFile(path).metadata.num_rows for path in (folder / "written").rglob("*.parquet")
    )


WAYS = {"parts": by_parts, "anti-join": by_anti_join, "Ray checkpointing": by_ray}


def measure(way: str, folder: Path, ids: int) -> None:
    began = time.monotonic()
    with watched() as memory:
        left = WAYS[way](folder, ids)
        # The watch looks twice a second.
        time.sleep(0.6)
    print(json.dumps({"seconds": time.monotonic() - began - 0.6, "left": left} | memory))


def in_a_process(way: str, folder: Path, ids: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", way, str(folder), str(ids)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2]}
    # Ray writes lines of its own.
    return next(
        json.loads(line) for line in reversed(done.stdout.splitlines()) if line.startswith("{")
    )


def report(results: dict[int, dict[str, Any]], note: str) -> str:
    lines = [
        "| Ids | Way | Seconds | Memory, MiB | Images found to be left |",
        "|---|---|---|---|---|",
    ]
    for ids, found in results.items():
        for way, one in found.items():
            figures = (
                f"{one['seconds']:.1f} | {one['machine']:,.0f} | {one['left']:,}"
                if "seconds" in one
                else f"{one['error']} | |"
            )
            lines.append(f"| {ids:,} | {way} | {figures} |")
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]), int(given.measure[2]))
        return
    results: dict[int, dict[str, Any]] = {}
    for ids in given.ids:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch) / "run", ids)
            results[ids] = {
                way: in_a_process(way, Path(scratch) / "run", ids) for way in given.ways
            }
        print(json.dumps({ids: results[ids]}), flush=True)
    print(
        result_file.write(
            "resume",
            report(results, given.note),
            {str(ids): found for ids, found in results.items()},
        )
    )


if __name__ == "__main__":
    main()
