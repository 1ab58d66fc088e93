"""Where images are decoded: in threads of the engine's actor, as we do, or in tasks before it,
which hand on pixels.

    python benchmarks/decode_where.py --images 6000 --side 640

The engine answers at once, so that decoding is nearly all there is: a JPEG of `--side` pixels a
side is decoded, shrunk to 512 x 28 x 28 pixels and asked about once. Both ways read the same
Parquet files through Ray Data and count what came out. The report, images a second and bytes
between the stages, goes to benchmarks/results/.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from PIL import Image

import result_file
from mpa_ray.config import Config
from mpa_ray.engines import Sampling
from mpa_ray.images import parts
from mpa_ray.images.decode import decode_and_fit
from mpa_ray.images.sources import source_of
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.schema import SOURCE_ROW, Stage
from mpa_ray.stages import row_worker
from mpa_ray.stages.row_worker import Ask, Row, RowStage, RowWorker, map_rows_with_model
from mpa_ray.storage.folder import Folder
from scale import config, generate

_HEADER = 8


class Pixels:
    """Takes pixels for an image, as `decode_part` writes them."""

    async def image(self, data: bytes, *, max_pixels: int) -> Image.Image:
        size = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:_HEADER], "big")
        return Image.frombytes("RGB", size, data[_HEADER:])


class Before(RowWorker):
    """Decodes nothing."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._decoder: Any = Pixels()


def decode_part(part: pa.Table, *, max_pixels: int, settings: Config) -> pa.Table:
    """A part whose images are 4 bytes each of width and height, and then pixels."""
    bounds = {
        "max_image_pixels": settings.max_image_pixels,
        "max_image_bytes": settings.max_image_bytes,
    }
    pictures = [
        decode_and_fit(data, max_pixels=max_pixels, **bounds)
        for data in part.column("image").to_pylist()
    ]
    images = [
        picture.width.to_bytes(4, "big") + picture.height.to_bytes(4, "big") + picture.tobytes()
        for picture in pictures
    ]
    field = SOURCE_ROW.field("image")
    return part.set_column(
        part.schema.get_field_index("image"), field, pa.array(images, field.type)
    )


async def ask_once(row: Row, ask: Ask) -> list[Row]:
    await ask("What is it?", Sampling(max_tokens=4))
    return [row]


def count(part: pa.Table) -> pa.Table:
    return pa.table({"images": [part.num_rows], "bytes": [part.column("image").nbytes]})


def measure(settings: Config, output: Folder, *, before: bool) -> tuple[float, float]:
    """Images a second once the first part is through, and bytes an image between the stages."""
    source = source_of(settings, output)
    with ray_session():
        rows = parts.dataset_of(list(range(source.parts)), source.read)
        name = "DecodesInActor"
        if before:
            name = "DecodesBefore"
            work = partial(decode_part, max_pixels=settings.lvlm.max_pixels, settings=settings)
            # So that on two cores as many decode at a time as there are threads to do it in the
            # actor: two, beside a task that reads.
            rows = rows.map_batches(work, batch_size=None, batch_format="pyarrow", num_cpus=0.4)
        stage = RowStage(
            name=name,
            work=ask_once,
            models=[settings.lvlm],
            asks=[Stage.PSEUDO_ANNOTATOR],
            schema=SOURCE_ROW,
        )
        with patch.object(row_worker, "RowWorker", Before if before else RowWorker):
            rows = map_rows_with_model(rows, stage, config=settings)
        done, size, began = 0, 0, 0.0
        for table in rows.map_batches(
            count, batch_size=None, batch_format="pyarrow", num_cpus=0.1
        ).iter_batches(batch_size=None, batch_format="pyarrow"):
            for images, bytes_ in zip(
                *(column.to_pylist() for column in table.columns), strict=True
            ):
                if began:
                    done += images
                    size += bytes_
                began = began or time.monotonic()
        return done / (time.monotonic() - began), size / done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    given = parser.parse_args()
    ways = {"in the engine's actor": False, "in tasks before it": True}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch) / "images", given.images, given.side)
        for number in range(given.rounds):
            # In turn, and in the other order each time: a machine's speed drifts.
            for way, before in ways.items() if number % 2 == 0 else reversed(ways.items()):
                output = Path(scratch) / f"run-{number}-{before}"
                settings = config(Path(scratch) / "images", output, in_one_actor=False).model_copy(
                    update={"images_per_part": 128}
                )
                rate, sizes[way] = measure(settings, Folder.at(output), before=before)
                rates[way].append(rate)
                print(number + 1, way, json.dumps({"rate": rate, "bytes": sizes[way]}), flush=True)
    lines = [
        "| Decoded | Images/s, median | of each round | KiB an image between the stages |",
        "| --- | --- | --- | --- |",
    ]
    for way, values in rates.items():
        each = ", ".join(result_file.cut(value, 0) for value in values)
        lines.append(
            f"| {way} | {result_file.cut(median(values), 0)} | {each} | {sizes[way] / 1024:.0f} |"
        )
    print(
        result_file.write(
            "decode-where",
            "\n".join([*lines, "", given.note]),
            {"images_per_second": rates, "bytes": sizes},
        )
    )


if __name__ == "__main__":
    main()
