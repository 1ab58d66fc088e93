"""The data path at scale: listing, reading, decoding, two engine stages, judging and committing,
with engines that answer at once.

    python benchmarks/scale.py --rows 10000 100000 1000000
    python benchmarks/scale.py --rows 100000 1000000 --side 64

For each number of rows, in one Ray each: the data path, images a second and memory; the same rows
through a bare Ray Data read -> map -> write, which decodes each image once and writes one row for
it; and how long a call on an output of which nothing, half or all is finished takes until it begins
to work. Images are square JPEGs in Parquet files of 20,000 rows. Both models are in one actor
(`identify.in_one_actor`), as the bare map is one actor; `--two-actors` gives each its own. With 224
pixels a side, as CLIP's vision encoder takes them, decoding is most of a row's cost, as it is with
photographs; with 64 the rest is. The report goes to benchmarks/results/.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import result_file
from mpa_ray import demo
from mpa_ray.config import Config, ModelSection
from mpa_ray.images.sources import source_of
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.stages import commits
from mpa_ray.steps.annotate_and_identify import annotate_and_identify
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

_ROWS_PER_FILE = 20_000
_MIB = 2**20


def generate(folder: Path, rows: int, side: int = 64) -> None:
    """Parquet files with an image column."""
    folder.mkdir(parents=True)
    images = []
    for number in range(256):
        buffer = io.BytesIO()
        Image.effect_noise((side, side), 60 + number / 8).convert("RGB").save(
            buffer, "JPEG", quality=70
        )
        images.append(buffer.getvalue())
    for start in range(0, rows, _ROWS_PER_FILE):
        chosen = [images[row % 256] for row in range(start, min(rows, start + _ROWS_PER_FILE))]
        table = pa.table({"image": pa.array(chosen, pa.binary())})
        pq.write_table(table, folder / f"{start:09d}.parquet", row_group_size=256)


def config(images: Path, output: Path, *, in_one_actor: bool) -> Config:
    model = {"gpus_per_replica": 0, "cpus_per_replica": 0.5, "images_in_flight": 256}
    return Config(
        images=str(images),
        output=str(output),
        lvlm=ModelSection(model=str(demo.LVLM), engine="instant:lvlm", **model),
        svlm=ModelSection(model=str(demo.SVLM), engine="instant:svlm", **model),
        images_per_part=1024,
        identify={"in_one_actor": in_one_actor},
    )


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The most memory, in MiB, that this process and all processes of the machine together had,
    above what was used before.
    """
    process, most, stop = psutil.Process(), {"driver": 0.0, "machine": 0.0}, threading.Event()
    before = psutil.virtual_memory().available

    def watch() -> None:
        while not stop.wait(0.5):
            most["driver"] = max(most["driver"], process.memory_info().rss / _MIB)
            most["machine"] = max(
                most["machine"], (before - psutil.virtual_memory().available) / _MIB
            )

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def data_path(
    images: Path, output: Path, stop_after: int | None, *, in_one_actor: bool
) -> dict[str, Any]:
    """Runs, or resumes, PA and PI. `seconds_to_work` is until the first part after this call
    began is committed.
    """
    settings, folder = config(images, output, in_one_actor=in_one_actor), Folder.at(output)
    began = time.monotonic()
    source = source_of(settings, folder)
    listed = time.monotonic() - began
    first: list[float] = []

    class Watching(Lease):
        def check(self) -> None:
            first.append(time.monotonic() - began)
            if stop_after and len(commits.committed(folder)) >= stop_after:
                raise KeyboardInterrupt

    with watched() as memory, ray_session(), contextlib.suppress(KeyboardInterrupt):
        annotate_and_identify(settings, folder, source, Watching())
    seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "listing": listed,
        "seconds_to_work": first[0] if first else seconds,
    } | memory


class Bare:
    """The map of the bare pipeline: decodes, and gives what an instant engine says."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        sizes = [
            Image.open(io.BytesIO(image)).convert("RGB").size
            for image in batch.column("image").to_pylist()
        ]
        count = len(sizes)
        return pa.table(
            {
                "width": [size[0] for size in sizes],
                "question": ["What is it?"] * count,
                "answer": ["nothing"] * count,
            }
        )


def bare(images: Path, output: Path) -> dict[str, Any]:
    """The same rows through Ray Data alone."""
    import ray.data
    from ray.data import ActorPoolStrategy

    began = time.monotonic()
    with watched() as memory, ray_session():
        rows = ray.data.read_parquet(str(images))
        mapped = rows.map_batches(
            Bare,
            batch_format="pyarrow",
            batch_size=1024,
            compute=ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        mapped.write_parquet(str(output))
    return {"seconds": time.monotonic() - began} | memory


def in_a_process(*arguments: object) -> dict[str, Any]:
    """One measurement in a process of its own, so that no memory is left from the one before."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )
    }
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def measure(kind: str, images: str, output: str, stop_after: str = "0") -> None:
    if kind == "bare":
        found = bare(Path(images), Path(output))
    else:
        found = data_path(
            Path(images), Path(output), int(stop_after) or None, in_one_actor=kind == "one_actor"
        )
    print(json.dumps(found))


def of_rows(scratch: Path, rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one number of rows."""
    images, output = scratch / f"images-{rows}", scratch / f"run-{rows}"
    generate(images, rows, given.side)
    half = -(-rows // 1024) // 2
    kind = "two_actors" if given.two_actors else "one_actor"
    found = {"bare": in_a_process("bare", images, scratch / f"bare-{rows}")}
    found["nothing_finished"] = in_a_process(kind, images, output, half)
    found["half_finished"] = in_a_process(kind, images, output, half + 1)
    # One call from nothing to all, to compare with the bare pipeline.
    found["whole"] = in_a_process(kind, images, scratch / f"whole-{rows}")
    found["all_finished"] = in_a_process(kind, images, scratch / f"whole-{rows}")
    return found


def report(results: dict[int, dict[str, Any]], note: str) -> str:
    lines = [
        "| Rows | Data path, images/s | Bare Ray Data, images/s | Share | Driver, MiB | Machine,"
        " MiB | Listing, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, found in results.items():
        whole, plain = found["whole"], found["bare"]
        lines.append(
            f"| {rows:,} | {rows / whole['seconds']:,.0f} | {rows / plain['seconds']:,.0f} |"
            f" {plain['seconds'] / whole['seconds']:.1%}"
            f" | {whole['driver']:,.0f} | {whole['machine']:,.0f} | {whole['listing']:.1f} |"
        )
    lines += [
        "",
        "| Rows | Until work begins, s: nothing finished | half | all (until it says so) |",
        "|---|---|---|---|",
    ]
    for rows, found in results.items():
        calls = [
            found[f"{share}_finished"]["seconds_to_work"] for share in ("nothing", "half", "all")
        ]
        lines.append(f"| {rows:,} | " + " | ".join(f"{seconds:.1f}" for seconds in calls) + " |")
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--side", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--two-actors", action="store_true", help="a pool of actors for each model")
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure)
        return
    results: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for rows in given.rows:
            results[rows] = of_rows(Path(scratch), rows, given)
            print(json.dumps({rows: results[rows]}), flush=True)
    name = f"scale-{given.side}px" + ("-two-actors" if given.two_actors else "")
    print(
        result_file.write(
            name, report(results, given.note), {str(rows): found for rows, found in results.items()}
        )
    )


if __name__ == "__main__":
    main()
