"""Thumbnails of bounded size, as base64 of WebP."""

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from mpa_ray.images import decode
from mpa_ray.images.decode import UnreadableImage

PREFIX = "data:image/webp;base64,"


class Step(NamedTuple):
    """How large and how good thumbnails are.

    Attributes:
        side: the longer one, in pixels.
        quality: WebP's, 0 to 100.
    """

    side: int
    quality: int


GALLERY = (Step(256, 70), Step(192, 60), Step(144, 50), Step(128, 45))
"""From best to smallest: a page takes the first with which its samples fit."""
RATING = (Step(768, 75), Step(512, 65), Step(384, 60))


class Thumbnails:
    """Thumbnails by URI, with each image encoded once.

    Args:
        step: how large and how good.
        max_image_bytes: a larger file is not decoded.
        max_image_pixels: an image with more is not decoded.
    """

    def __init__(self, step: Step, *, max_image_bytes: int, max_image_pixels: int) -> None:
        self._step = step
        self._limits = {"max_image_bytes": max_image_bytes, "max_image_pixels": max_image_pixels}
        self._found: dict[str, bytes] = {}

    def add(self, contents: Iterable[tuple[str, bytes | UnreadableImage]]) -> None:
        """Encode what can be read of (URI, file)."""

        def encode(item: tuple[str, bytes | UnreadableImage]) -> tuple[str, bytes | None]:
            uri, content = item
            return uri, None if isinstance(content, UnreadableImage) else self._encoded(content)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._found |= {uri: data for uri, data in pool.map(encode, contents) if data}

    def _encoded(self, content: bytes) -> bytes | None:
        try:
            return encoded(decode.decode(content, **self._limits), self._step)
        except UnreadableImage:
            return None

    def smaller(self, step: Step) -> "Thumbnails":
        """The same images at another step, made from these."""
        found = Thumbnails(step, **self._limits)
        found.add(self._found.items())
        return found

    def __contains__(self, uri: str) -> bool:
        return uri in self._found

    def base64(self, uri: str) -> str | None:
        data = self._found.get(uri)
        return base64.b64encode(data).decode() if data else None

    def sizes(self) -> list[int]:
        """Of each thumbnail as base64, in bytes."""
        return [4 * -(-len(data) // 3) for data in self._found.values()]


def encoded(image: Image.Image, step: Step) -> bytes:
    """`image` as WebP, no side longer than the step's."""
    image = image.copy()
    image.thumbnail((step.side, step.side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=step.quality, method=2)
    return buffer.getvalue()
