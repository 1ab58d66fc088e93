"""One image through the code: own frames, modules, and storage requests of each step.

    python benchmarks/walk.py

One JPEG, engines that answer at once, no Ray: what Ray Data would do with a part is done here, in
this process. A frame is a call of one of mpa_ray's own functions; a storage request is a call of
`Folder` that touches the storage. `a part` adds the requests from the first model to the commit.
"""

import asyncio
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
from PIL import Image

import mpa_ray
import result_file
from mpa_ray.config import Config
from mpa_ray.images.sources import source_of
from mpa_ray.parity_identifier import identifier
from mpa_ray.pseudo_annotator import annotator
from mpa_ray.stages.commits import commit_part
from mpa_ray.stages.row_worker import RowWorker
from mpa_ray.storage.folder import Folder
from mpa_ray.training.arms import arms, training_folders

PACKAGE = str(Path(mpa_ray.__file__).parent)
# Each is one request, or for a folder one listing; the others are made of these.
REQUESTS = {
    *("exists", "names", "entries", "folders", "write_bytes", "writing", "create_json"),
    *("read_bytes", "read_parquet", "delete", "delete_folder", "delete_unfinished"),
}


class Walk:
    """Counts what mpa_ray calls, in all threads."""

    def __init__(self) -> None:
        self.frames = self.requests = 0
        self.modules: list[str] = []

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(PACKAGE):
            return
        self.frames += 1
        self.modules.append(path)
        if _is_request(frame) and not _is_part_of_one(frame):
            self.requests += 1

    def __enter__(self) -> "Walk":
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def moves(self) -> int:
        """How often a call is of another module than the call before it."""
        return sum(a != b for a, b in zip(self.modules, self.modules[1:], strict=False))


def _is_request(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_filename.endswith("storage/folder.py") and code.co_name in REQUESTS


def _is_part_of_one(frame: FrameType) -> bool:
    caller = frame.f_back
    while caller:
        if _is_request(caller):
            return True
        caller = caller.f_back
    return False


def main() -> None:
    steps: dict[str, Walk] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        with Walk() as steps[name]:
            return work()

    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        Image.new("RGB", (224, 224), (200, 30, 30)).save(images / "1.jpg")
        model = {"gpus_per_replica": 0, "images_in_flight": 1}
        tree = {
            "images": str(images),
            "output": f"{folder}/run",
            "lvlm": model | {"model": "l", "engine": "instant:lvlm"},
            "svlm": model | {"model": "s", "engine": "instant:svlm"},
        }
        config = step("flags to Config", lambda: Config.model_validate(tree))
        output = Folder.at(config.output)
        source = step("list and number", lambda: source_of(config, output))
        part = step("read a part", lambda: source.read(0))
        bounds = ("max_image_pixels", "max_image_bytes", "max_decode_seconds")
        decoder = {name: getattr(config, name) for name in bounds}
        stages = {"PA": annotator(config), "PI": identifier(config)}
        for name, stage in stages.items():
            worker = step(
                f"{name} actor loads",
                lambda stage=stage: RowWorker(stage=stage, decoder=decoder, output=output),
            )
            part = step(
                f"{name}, one image",
                lambda worker=worker, part=part: asyncio.run(_all(worker, part)),
            )
        step("commit", lambda: commit_part(part, output=output, call=0.0))
        step("rows of the arm", lambda: training_folders(arms(config)[0], output, config))
    of_a_part = sum(steps[name].requests for name in ("PA, one image", "PI, one image", "commit"))
    rows = [
        f"| {name} | {walk.frames:,} | {len(set(walk.modules))} | {walk.moves} | {walk.requests} |"
        for name, walk in steps.items()
    ]
    total = sum(walk.frames for walk in steps.values())
    text = "\n".join(
        [
            "| step | frames | modules | moves between modules | storage requests |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Frames in all: {total:,}. Storage requests of a part, from its first model to its"
            f" commit: {of_a_part}.",
        ]
    )
    print(text)
    figures = {
        name: {"frames": walk.frames, "moves": walk.moves, "requests": walk.requests}
        for name, walk in steps.items()
    }
    print(result_file.write("walk", text, {"steps": figures, "requests_of_a_part": of_a_part}))


async def _all(worker: RowWorker, part: pa.Table) -> pa.Table:
    return pa.concat_tables([table async for table in worker(part)])


if __name__ == "__main__":
    main()
