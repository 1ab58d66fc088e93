"""Engines that answer at once, so that what is left to measure, and to break, is the data path:
`--lvlm.engine instant:lvlm`.

The annotation of an image and every answer follow from the image's id alone. The L-VLM repeats the
annotation's answer for nine images of ten; the S-VLM gives it for six of ten. Two environment
variables make an engine slower or mortal: INSTANT_SECONDS is how long each reply takes, and
INSTANT_DEATHS a share of requests upon which the process that serves them ends without a word, once
for each image.
"""

import asyncio
import hashlib
import os
import signal
import tempfile
from pathlib import Path

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, Sampling


class Instant:
    """An engine without a model. `right` is the share of images whose questions it answers as the
    annotation does.
    """

    def __init__(self, *, right: float) -> None:
        self._right = right
        self._seconds = float(os.environ.get("INSTANT_SECONDS", "0"))
        self._deaths = float(os.environ.get("INSTANT_DEATHS", "0"))

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        if self._deaths and _share(image_id, "death") < self._deaths:
            _die_once(image_id)
        if "Question:" in prompt and "Answer:" in prompt:
            text = f"Question: What is number {image_id[:6]}?\nAnswer: {image_id[:4]}"
        else:
            text = image_id[:4] if _share(image_id, str(self._right)) < self._right else "nothing"
        return Reply(
            text=text, prompt_tokens=100, cached_tokens=0, output_tokens=10, finish_reason="stop"
        )

    def close(self) -> None:
        pass


def lvlm(model: ModelSection) -> Instant:
    return Instant(right=0.9)


def svlm(model: ModelSection) -> Instant:
    return Instant(right=0.6)


def _share(image_id: str, purpose: str) -> float:
    """A number from 0 to 1 that is always the same for an image."""
    return int.from_bytes(hashlib.sha256(f"{image_id}{purpose}".encode()).digest()[:4]) / 2**32


def _die_once(image_id: str) -> None:
    mark = Path(os.environ.get("INSTANT_FOLDER", tempfile.gettempdir())) / f"died-{image_id}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
