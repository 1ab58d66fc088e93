"""A run on a Ray of its own whose metrics are read as Prometheus reads them: `python
telemetry_run.py FOLDER`, which holds images/.
"""

import contextlib
import json
import re
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import ray
from PIL import Image

import instant
from mpa_ray import pipeline
from mpa_ray.config import ModelSection
from mpa_ray.config.parse import merge, validate
from mpa_ray.demo.presets import preset
from mpa_ray.engines import Reply, Sampling
from mpa_ray.errors import NothingToTeach
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.stages import commits
from mpa_ray.storage.folder import Folder

SAMPLE = re.compile(r"^(ray_mpa_\w+|ray_data_\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')


class Metered(instant.Instant):
    """Some replies hold no question, and some of a prompt is cached."""

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        reply = await super().ask(image, prompt, image_id=image_id, sampling=sampling)
        if "Question:" in prompt and image_id[0] == "0":
            return replace(reply, text="no idea")
        return replace(reply, cached_tokens=40)


def engine(model: ModelSection) -> Metered:
    # Both answer alike, so that there is nothing to train on, which would take most of the test's
    # time.
    return Metered(right=0.9)


def scraped(port: int) -> list[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return [
        (found[1], dict(LABEL.findall(found[2])), float(found[3]))
        for line in lines
        if (found := SAMPLE.match(line))
    ]


def main(folder: Path) -> None:
    model = {"engine": "telemetry_run:engine", "images_in_flight": 8}
    changes = {
        "demo": {"images": 0},
        "images": str(folder / "images"),
        "output": str(folder / "out"),
        "images_per_part": 16,
    }
    config = validate(
        merge(preset("demo"), changes | {"lvlm": model, "svlm": model, "max_quarantined": 1.0})
    )
    with ray_session():
        with contextlib.suppress(NothingToTeach):
            pipeline.run(config)
        [node] = ray.nodes()
        wanted = commits.totals(Folder.at(config.output))["images"]
        for _ in range(60):
            samples = scraped(node["MetricsExportPort"])
            if sum(value for name, _, value in samples if name == "ray_mpa_images_total") >= wanted:
                break
            time.sleep(0.5)
        # A further report may bring what was counted after the images.
        time.sleep(2)
        (folder / "scraped.json").write_text(json.dumps(scraped(node["MetricsExportPort"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
