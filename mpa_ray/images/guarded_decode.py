"""Decoding what may be hostile, in an engine actor that must not be lost over it: time and memory
of each image are bounded.

An image whose first bytes and structure bound its work (a JPEG, PNG, GIF or WebP of at most 16
million pixels, in few scans and few pieces: nearly all there are) is decoded in a thread, or at
once where it is tiny. Everything else goes to a process of its own
(`mpa_ray.images.decode_process`), which the kernel ends when it takes too long and refuses more
memory than an image of `max_image_pixels` can need: formats whose decoders take memory by what a
header says (TIFF, AVIF), or run in Python (BMP), and images so large or of so many scans or pieces
that they could take minutes, or that turn out to be larger than their header told. What the process
costs is in docs/inputs.md.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, LifoQueue
from threading import BoundedSemaphore
from typing import Any

from PIL import Image

from mpa_ray.images.decode import NotPlain, UnreadableImage, decode_and_fit
from mpa_ray.schema import Reason

_CHEAP_PIXELS = 16_000_000
_CHEAP_BYTES = 16 * 2**20
# Pixels times scans of a JPEG: a progressive one has about ten, a hostile one thousands, each a
# pass over the whole image.
_CHEAP_SCANNED_PIXELS = 200_000_000
_SCAN = re.compile(b"\xff\xda")
_SEGMENTS = 200
# Markers of a JPEG: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC); and those behind which
# encoders write a length.
_FRAME_BEGINS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_BEGINS = 0xDA
_WITHOUT_LENGTH = {0xC8, *range(0xD0, 0xDA), 0xDC, 0xDE, 0xDF}
_WITH_LENGTH = frozenset({*range(0xC0, 0xF0), 0xFE} - _WITHOUT_LENGTH)
# Of a PNG or GIF: Pillow reads each piece in Python. Encoders write one for each 8 KB, or 255
# bytes.
_CHEAP_PIECES = 20_000
# What is cheap takes no longer than that, on a core that is busy with other things too.
_CHEAP_SECONDS = 5.0
# Decoding so small an image takes half a millisecond. In a thread it costs the machine a quarter
# more: the thread and the event loop wait for each other's GIL.
_TINY_PIXELS = 256 * 256
_TINY_BYTES = 64 * 2**10
_TINY_PIECES = 300
# How many images are in memory whole at a time.
_THREADS = 8
_PROCESSES = 2
# Decoders hold coefficients or planes, the pixels, and a copy of those turned or without
# transparency.
_MEMORY_PER_PIXEL = 32
_MEMORY = 256 * 2**20
# `max_decode_seconds` are a core's: on a node that is busy, or swaps, a good image takes far longer
# by the clock. Ten times as long, and something else is wrong.
_WAITED_FOR = 10.0


class Decoder:
    """Decodes, turns upright, and shrinks images.

    Args:
        max_pixels: images with more are shrunk to so many; None keeps them as they are.
        max_image_pixels: images with more are refused.
        max_image_bytes: files with more are refused.
        max_decode_seconds: an image that takes a core for longer is refused, as is one that is not
            done after ten times as long.
    """

    def __init__(
        self,
        *,
        max_pixels: int | None,
        max_image_pixels: int,
        max_image_bytes: int,
        max_decode_seconds: float,
    ) -> None:
        self._limits: dict[str, Any] = {
            "max_pixels": max_pixels,
            "max_image_pixels": max_image_pixels,
            "max_image_bytes": max_image_bytes,
        }
        self._seconds = max_decode_seconds
        # What is decoded in a thread cannot be stopped: with little time, less of it is.
        self._cheap_share = min(1.0, max_decode_seconds / _CHEAP_SECONDS)
        self._memory = _MEMORY + 3 * max_image_bytes + _MEMORY_PER_PIXEL * max_image_pixels
        self._threads = ThreadPoolExecutor(_THREADS, "decode")
        # Threads of their own: images that are waited for must not keep others from theirs.
        self._waiting = ThreadPoolExecutor(_PROCESSES, "decode-guarded")
        self._slots = BoundedSemaphore(_PROCESSES)
        self._idle: LifoQueue[_Process] = LifoQueue()

    async def image(self, data: bytes, *, max_pixels: int | None = None) -> Image.Image:
        """See `image_now`; many at a time. `max_pixels` is a bound for this image, in place of the
        decoder's own.
        """
        limits = self._limits | ({} if max_pixels is None else {"max_pixels": max_pixels})
        run = asyncio.get_running_loop().run_in_executor
        with suppress(NotPlain):
            if is_tiny(data):
                return _decode_plain(data, **limits)
            if self._is_bounded(data):
                return await run(self._threads, partial(_decode_plain, data, **limits))
        return await run(self._waiting, partial(self._in_process, data, **limits))

    def image_now(self, data: bytes) -> Image.Image:
        """The image of an encoded file.

        Raises:
            UnreadableImage: with the reason the row is quarantined for.
        """
        with suppress(NotPlain):
            if self._is_bounded(data):
                return _decode_plain(data, **self._limits)
        return self._in_process(data, **self._limits)

    def _is_bounded(self, data: bytes) -> bool:
        # What is over the bound is refused unparsed.
        too_long = len(data) > self._limits["max_image_bytes"]
        return too_long or is_cheap(data, share=self._cheap_share)

    def _in_process(self, data: bytes, **limits: Any) -> Image.Image:
        with self._slots:
            try:
                process = self._idle.get_nowait()
            except Empty:
                process = _Process(self._memory)
            try:
                image = process.decode(data, self._seconds, limits)
            except _ProcessDied as first:
                if first.reason == Reason.TIMEOUT:
                    raise first.blamed() from None
                # It may have been ended from outside, while it was idle even: the image is to blame
                # when it happens again.
                process = _Process(self._memory)
                try:
                    image = process.decode(data, self._seconds, limits)
                except _ProcessDied as second:
                    raise second.blamed() from None
            except UnreadableImage:
                self._idle.put(process)
                raise
            self._idle.put(process)
            return image


class _ProcessDied(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def blamed(self) -> UnreadableImage:
        return UnreadableImage(self.reason, str(self))


class _Process:
    """A decoder that may be lost. It ends when its standard input does, so it does not outlive
    us.
    """

    def __init__(self, memory: int) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        # One arena and one thread: each further one would take address space, which is what is
        # bounded.
        env = {
            **os.environ,
            "PYTHONPATH": paths,
            "MALLOC_ARENA_MAX": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "mpa_ray.images.decode_process", str(memory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )

    def decode(self, data: bytes, seconds: float, limits: dict[str, Any]) -> Image.Image:
        """Raise UnreadableImage, or _ProcessDied, after which this process is of no more use."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None and replies is not None
        try:
            bounds = {"size": len(data), "core_seconds": seconds, "seconds": seconds * _WAITED_FOR}
            requests.write(json.dumps(bounds | limits).encode() + b"\n")
            requests.write(data)
            requests.flush()
        except BrokenPipeError:
            raise self._died(seconds) from None
        line = replies.readline()
        if not line.endswith(b"\n"):
            raise self._died(seconds)
        reply = json.loads(line)
        if "reason" in reply:
            raise UnreadableImage(Reason(reply["reason"]), reply["detail"])
        size = reply["width"], reply["height"]
        pixels = replies.read(size[0] * size[1] * 3)
        if len(pixels) < size[0] * size[1] * 3:
            raise self._died(seconds)
        return Image.frombytes("RGB", size, pixels)

    def _died(self, seconds: float) -> _ProcessDied:
        self._process.kill()
        code = self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        # Closing writes what is still buffered, into a pipe that nobody reads any more.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if code == -signal.SIGPROF:
            said = f"took a core for more than {seconds:g} s (max_decode_seconds)"
            return _ProcessDied(Reason.TIMEOUT, said)
        if code == -signal.SIGALRM:
            after = seconds * _WAITED_FOR
            said = f"was not done after {after:g} s, {_WAITED_FOR:g} times max_decode_seconds"
            return _ProcessDied(Reason.TIMEOUT, said)
        return _ProcessDied(
            Reason.DECODER_CRASH,
            f"the decoder ended with {signal.Signals(-code).name if code < 0 else code}",
        )


def _decode_plain(data: bytes, **limits: Any) -> Image.Image:
    """Raise NotPlain where `data` is not what its first bytes tell."""
    return decode_and_fit(data, **limits, told_pixels=pixels_of(data))


def is_cheap(data: bytes, *, share: float = 1.0) -> bool:
    """Whether the first bytes of a file and the number of its pieces bound what it takes to decode
    it; `share` of the bounds. What no decoder takes is cheap too."""
    if data.startswith((b"BM", b"II", b"MM")) or data[4:8] == b"ftyp":
        return False
    pixels = pixels_of(data)
    if pixels is None or len(data) > _CHEAP_BYTES * share or pixels > _CHEAP_PIXELS * share:
        return False
    if pixels * _scans(data) > _CHEAP_SCANNED_PIXELS * share:
        return False
    return _has_at_most(data, int(_CHEAP_PIECES * share))


def is_tiny(data: bytes) -> bool:
    """Whether decoding it takes a millisecond at most, by its first bytes and the number of its
    pieces."""
    if len(data) > _TINY_BYTES or not 0 < (pixels_of(data) or 0) * _scans(data) <= _TINY_PIXELS:
        return False
    return _has_at_most(data, _TINY_PIECES)


def _has_at_most(data: bytes, pieces: int) -> bool:
    """Whether a PNG or GIF has no more pieces. Those of a JPEG are counted with its pixels; a
    WebP's decoder is not slowed by them."""
    if data.startswith(b"\x89PNG"):
        found = _png_chunks(data)
    elif data.startswith(b"GIF8"):
        found = _gif_blocks(data)
    else:
        return True
    return sum(1 for _ in islice(found, pieces + 1)) <= pieces


def _png_chunks(data: bytes) -> Iterator[int]:
    """Where each begins."""
    place = 8
    while place < len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Where each sub-block begins, and each byte that belongs to none, up to a second picture: a
    GIF with two is refused."""
    place, pictures = 13 + _colors(data[10:11]), 0
    while place < len(data) and pictures < 2:
        yield place
        introducer = data[place]
        if introducer == 0x21:
            place += 2
        elif introducer == 0x2C:
            pictures += 1
            place += 11 + _colors(data[place + 9 : place + 10])
        else:
            # Pillow looks for the next introducer byte by byte, behind the trailer too.
            place += 1
            continue
        while place < len(data) and data[place]:
            yield place
            place += 1 + data[place]
        place += 1


def _colors(flags: bytes) -> int:
    """Bytes of a GIF's color table."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _scans(data: bytes) -> int:
    """Passes over the whole image; at least as many as a JPEG has, and 1 for the other formats."""
    return len(_SCAN.findall(data)) if data.startswith(b"\xff\xd8") else 1


def pixels_of(data: bytes) -> int | None:
    """Width x height by the header of a JPEG, PNG, GIF or WebP, 0 for what is none of them, None
    where the header is not plain.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _pixels_of_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _product(data[16:20], data[20:24], "big")
    if data.startswith(b"GIF8"):
        return _product(data[6:8], data[8:10], "little")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _pixels_of_webp(data)
    return 0


def _product(width: bytes, height: bytes, order: Any) -> int:
    return int.from_bytes(width, order) * int.from_bytes(height, order)


def _pixels_of_jpeg(data: bytes) -> int | None:
    """None where what is in front of the first scan is not a short list of segments, as encoders
    write it."""
    place, pixels = 2, None
    for _ in range(_SEGMENTS):
        marker, length = (
            data[place + 1 : place + 2],
            int.from_bytes(data[place + 2 : place + 4], "big"),
        )
        if data[place : place + 1] != b"\xff" or length < 2 or marker[0] not in _WITH_LENGTH:
            return None
        if marker[0] == _SCAN_BEGINS:
            return pixels
        if marker[0] in _FRAME_BEGINS:
            if pixels is not None:
                return None
            pixels = _product(data[place + 7 : place + 9], data[place + 5 : place + 7], "big")
        place += 2 + length
    return None


def _pixels_of_webp(data: bytes) -> int | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1) * (
            int.from_bytes(data[27:30], "little") + 1
        )
    if kind == b"VP8 ":
        return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (
            int.from_bytes(data[28:30], "little") & 0x3FFF
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return None
