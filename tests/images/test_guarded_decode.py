"""What decoding may take: a hostile image loses its own process and nothing else; ordinary ones
never see a process.
"""

import asyncio
import contextlib
import io
import os
import signal
import struct
import threading
import time
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpa_ray.images import decode, guarded_decode
from mpa_ray.images.decode import UnreadableImage, decode_and_fit
from mpa_ray.images.guarded_decode import Decoder, is_cheap, is_tiny, pixels_of
from mpa_ray.schema import Reason

LIMITS = {"max_image_pixels": 64_000_000, "max_image_bytes": 64 << 20}
NOISE = Image.effect_noise((96, 64), 60).convert("RGB")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoder(*, max_pixels: int | None = None, seconds: float = 60, **limits: int) -> Decoder:
    return Decoder(max_pixels=max_pixels, max_decode_seconds=seconds, **(LIMITS | limits))


def refused(decoder: Decoder, data: bytes) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        decoder.image_now(data)
    assert caught.value.detail
    return caught.value


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of grey whose first coefficients are sent again and again: each scan is a
    pass over all of it.
    """
    plain = encoded(Image.new("L", (width, height)), "JPEG", progressive=True)
    start = plain.index(b"\xff\xda")
    # Bits of a scan that refines nothing: spectral selection 1 to 63 with an end-of-band run over
    # all blocks would do; the decoder reads zeros.
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x10) + b"\0"
    return plain[:start] + plain[start:-2] + scan * scans + b"\xff\xd9"


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_with(blocks: bytes, *, before: bytes = b"IDAT") -> bytes:
    plain = encoded(NOISE, "PNG")
    place = plain.index(before) - 4
    return plain[:place] + blocks + plain[place:]


def jpeg_with(blocks: bytes) -> bytes:
    plain = encoded(NOISE, "JPEG")
    place = plain.index(b"\xff\xda")
    return plain[:place] + blocks + plain[place:]


def gif_with(blocks: bytes) -> bytes:
    """In front of the picture's descriptor."""
    plain = encoded(NOISE.convert("P"), "GIF")
    place = plain.index(b"\x2c\0\0\0\0" + struct.pack("<HH", *NOISE.size))
    return plain[:place] + blocks + plain[place:]


def gif_of_another_size(told: int, true: int) -> bytes:
    """Its screen is small, its only picture is not."""
    data = bytearray(encoded(Image.new("P", (true, true)), "GIF"))
    data[6:10] = struct.pack("<HH", told, told)
    return bytes(data)


def png_of_another_size(told: int, true: int) -> bytes:
    """Two IHDR chunks: the second one counts."""
    data = encoded(Image.new("L", (true, true)), "PNG")
    small = encoded(Image.new("L", (told, told)), "PNG")
    return small[:33] + data[8:]


def exif_of(entries: int) -> bytes:
    """An EXIF block of entries that are too long, and then one: the picture lies on its side."""
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", entries + 1)
    body = b"".join(struct.pack("<HHII", 0x9000 + n, 7, 10**6, 8) for n in range(entries))
    return b"Exif\0\0" + head + body + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)


# Of few pixels, in more pieces than any encoder would write.
IN_PIECES = {
    "a jpeg of empty segments": lambda many: jpeg_with(b"\xff\xe1\0\2" * many),
    "a jpeg of comments": lambda many: jpeg_with(b"\xff\xfe\0\2" * many),
    "a jpeg of fill bytes": lambda many: jpeg_with(b"\xff" * many),
    "a jpeg of markers alone": lambda many: jpeg_with(b"\xff\xd0" * many),
    "a jpeg with two frames": lambda many: jpeg_with(
        encoded(NOISE, "JPEG")[2:].partition(b"\xff\xda")[0]
    ),
    "a png of empty chunks": lambda many: png_with(chunk(b"teSt") * many),
    "a png of chunks behind its pixels": lambda many: png_with(
        chunk(b"teSt") * many, before=b"IEND"
    ),
    "a png of empty data": lambda many: png_with(chunk(b"IDAT") * many),
    "a gif of short comments": lambda many: gif_with(b"\x21\xfe" + b"\1a" * many + b"\0"),
    "a gif of extensions": lambda many: gif_with(b"\x21\xfe\1a\0" * many),
    "a gif of junk": lambda many: gif_with(b"\7" * many),
    "a gif of data behind its picture": lambda many: (
        encoded(NOISE.convert("P"), "GIF")[:-2] + b"\1a" * many + b"\0;"
    ),
}


@pytest.mark.parametrize("kind", IN_PIECES)
def test_an_image_of_many_pieces_is_not_cheap(kind: str) -> None:
    assert not is_cheap(IN_PIECES[kind](100_000))
    assert not is_tiny(IN_PIECES[kind](1000))


def test_ordinary_images_have_few_pieces() -> None:
    large = Image.effect_noise((2000, 1500), 60)
    assert is_cheap(encoded(large, "PNG")) and is_cheap(
        encoded(large.convert("RGB"), "JPEG", progressive=True)
    )
    assert is_cheap(encoded(large, "GIF"))


OF_ANOTHER_SIZE = {"GIF": gif_of_another_size, "PNG": png_of_another_size}


@pytest.mark.parametrize("form", OF_ANOTHER_SIZE)
@pytest.mark.parametrize("told", [16, 300])
def test_an_image_larger_than_its_header_says_is_decoded_in_a_process(
    form: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = OF_ANOTHER_SIZE[form](told, 900)
    assert is_tiny(data) == (told == 16) and is_cheap(data)
    ours, sent = decoder(), []

    def in_process(data: bytes, **limits: Any) -> Image.Image:
        sent.append(data)
        return decode_and_fit(data, **limits)

    monkeypatch.setattr(ours, "_in_process", in_process)
    assert asyncio.run(ours.image(data)).size == (900, 900) == ours.image_now(data).size
    assert sent == [data, data]
    with pytest.raises(UnreadableImage, match="too_many_pixels"):
        asyncio.run(decoder(max_image_pixels=800 * 800).image(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_exif_block_of_thousands_of_entries_is_read_in_a_process(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, sent = decoder(), []

    def in_process(data: bytes, **limits: Any) -> Image.Image:
        sent.append(data)
        return decode_and_fit(data, **limits)

    monkeypatch.setattr(ours, "_in_process", in_process)
    few, many = (encoded(NOISE, form, exif=exif_of(entries)) for entries in (40, 4000))
    with warnings.catch_warnings(action="ignore"):
        assert ours.image_now(few).size == (64, 96) and not sent
        assert ours.image_now(many).size == (64, 96) and len(sent) == 1


def test_with_little_time_only_small_images_are_decoded_in_the_actor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is decoded in a thread cannot be stopped, so it must be sure to end in time."""
    monkeypatch.setattr(guarded_decode, "_Process", None)
    large = encoded(Image.new("L", (3000, 3000)), "PNG")
    assert decoder(seconds=30).image_now(large).size == (3000, 3000)
    assert decoder(seconds=0.5).image_now(encoded(NOISE, "PNG")).size == NOISE.size
    with pytest.raises(TypeError):
        decoder(seconds=0.5).image_now(large)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_header_says_how_many_pixels_there_are(form: str) -> None:
    assert pixels_of(encoded(NOISE, form)) == 96 * 64
    assert is_cheap(encoded(NOISE, form))


@pytest.mark.parametrize("size", [(700, 300), (300, 700)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_both_bytes_of_a_side_count(form: str, size: tuple[int, int]) -> None:
    assert pixels_of(encoded(Image.new("RGB", size), form)) == 700 * 300


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_tiny_is_what_decodes_in_a_fraction_of_a_millisecond(form: str) -> None:
    icon = NOISE.resize((48, 32))
    assert is_tiny(encoded(icon, form))
    assert not is_tiny(encoded(Image.new("RGB", (257, 256)), form)), "too many pixels"
    assert not is_tiny(encoded(icon, form) + bytes(64 << 10)), "too many bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\xff\xd8\xff",
        encoded(NOISE.resize((48, 32)), "TIFF"),
        many_scans(40, 40, 100),
    ],
)
def test_what_is_not_plainly_tiny_is_not_tiny(data: bytes) -> None:
    assert not is_tiny(data)


def test_other_webps_say_it_too() -> None:
    assert pixels_of(encoded(NOISE, "WEBP", lossless=True)) == 96 * 64
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels_of(encoded(NOISE, "WEBP", exif=exif)) == 96 * 64


@pytest.mark.parametrize("form", ["TIFF", "BMP", "AVIF"])
def test_formats_that_take_memory_by_their_headers_are_not_cheap(form: str) -> None:
    assert not is_cheap(encoded(NOISE, form))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\0",
        b"\xff\xd8" + b"\xff\xe0\0\2" * 1000 + encoded(NOISE, "JPEG")[2:],
        b"RIFF\0\0\0\0WEBPALPH",
        many_scans(2000, 2000, 1000),
        encoded(Image.new("1", (5000, 5000)), "PNG"),
        encoded(NOISE, "PNG") + bytes(17 << 20),
    ],
    ids=[
        "no header",
        "a segment of no length",
        "a thousand segments",
        "no webp",
        "a thousand scans",
        "25 megapixels",
        "17 megabytes",
    ],
)
def test_what_is_not_plainly_small_is_not_cheap(data: bytes) -> None:
    assert not is_cheap(data)


def test_ordinary_images_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_decode, "_Process", None)
    ours = decoder(max_pixels=1000)
    for form in ("JPEG", "PNG", "GIF", "WEBP"):
        assert ours.image_now(encoded(NOISE, form)).size == (38, 25)
    assert refused(ours, b"<html>404</html>").reason == Reason.NOT_AN_IMAGE
    assert refused(ours, b"").reason == Reason.EMPTY
    assert (
        refused(decoder(max_image_bytes=10), encoded(NOISE, "TIFF")).reason == Reason.TOO_MANY_BYTES
    )


@pytest.fixture(scope="module")
def guarded() -> Decoder:
    return decoder(max_pixels=10**9)


@pytest.mark.parametrize("form", ["TIFF", "BMP", "AVIF"])
def test_a_process_gives_what_a_thread_gives(guarded: Decoder, form: str) -> None:
    data = encoded(NOISE, form)
    found = guarded.image_now(data)
    assert (
        found.mode == "RGB"
        and found.tobytes() == decode_and_fit(data, max_pixels=10**9, **LIMITS).tobytes()
    )


def test_a_process_shrinks_as_a_thread_does() -> None:
    data, shrinking = encoded(NOISE, "TIFF"), decoder(max_pixels=1000)
    assert shrinking.image_now(data).size == (38, 25)
    assert (
        shrinking.image_now(data).tobytes()
        == decode_and_fit(data, max_pixels=1000, **LIMITS).tobytes()
    )


def test_a_process_says_why_as_a_thread_does_and_continues(guarded: Decoder) -> None:
    data = encoded(NOISE, "TIFF")
    error = refused(guarded, data[: len(data) // 2])
    assert error.reason == Reason.TRUNCATED
    [process] = guarded._idle.queue
    guarded.image_now(data)
    assert guarded._idle.queue == [process]


def test_an_image_of_the_largest_size_fits_the_memory(guarded: Decoder) -> None:
    image = guarded.image_now(
        encoded(
            Image.new("RGBA", (8000, 8000), (200, 30, 20, 255)),
            "TIFF",
            compression="tiff_adobe_deflate",
        )
    )
    assert image.size == (8000, 8000) and image.getpixel((5, 5)) == (200, 30, 20)


def test_an_image_that_takes_too_long_loses_its_process_and_nothing_else() -> None:
    ours = decoder(seconds=0.5)
    slow = many_scans(7000, 7000, 3000)
    began = time.monotonic()
    error = refused(ours, slow)
    assert error.reason == Reason.TIMEOUT and "max_decode_seconds" in error.detail
    assert time.monotonic() - began < 20
    assert ours._idle.empty()
    ours = decoder(seconds=30)
    assert ours.image_now(encoded(NOISE, "TIFF")).size == NOISE.size


def test_an_image_that_waits_for_a_core_is_not_to_blame() -> None:
    """Its process works for a twentieth of the time: it needs far more than the limit by the clock,
    and less by its work."""
    ours = decoder(seconds=1)
    ours.image_now(encoded(NOISE, "TIFF"))
    [process] = ours._idle.queue
    pid, done = process._process.pid, threading.Event()

    def starve() -> None:
        while not done.wait(0.005):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(pid, signal.SIGCONT)

    large = encoded(
        Image.effect_noise((2500, 2500), 60).convert("RGB"),
        "TIFF",
        compression="tiff_adobe_deflate",
    )
    starving = threading.Thread(target=starve)
    began = time.monotonic()
    starving.start()
    try:
        assert ours.image_now(large).size == (2500, 2500)
    finally:
        done.set()
        starving.join()
    assert time.monotonic() - began > 1, "or this test has shown nothing"


def test_others_are_decoded_while_one_is_waited_for() -> None:
    ours = decoder(seconds=1)
    slow = many_scans(7000, 7000, 3000)

    async def together() -> None:
        hostile = [asyncio.create_task(ours.image(slow)) for _ in range(4)]
        await asyncio.sleep(0.1)
        await asyncio.gather(*(ours.image(encoded(NOISE, "PNG")) for _ in range(50)))
        assert not any(task.done() for task in hostile)
        for task in hostile:
            with pytest.raises(UnreadableImage, match="decode_timeout"):
                await task

    asyncio.run(together())


def tile_bomb() -> bytes:
    """A TIFF of 64x64 pixels whose only tile is 30,000 x 30,000: its decoder would take 2.7 GB
    before it reads a byte.
    """
    tags = [
        (256, 64),
        (257, 64),
        (258, 8),
        (259, 8),
        (262, 2),
        (277, 3),
        (284, 1),
        (322, 30_000),
        (323, 30_000),
        (324, 200),
        (325, 10),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = (
        b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", 0)
    )
    return head.ljust(200, b"\0") + b"x\x9c\x03\0\0\0\0\1" + bytes(8)


def test_memory_is_bounded() -> None:
    # With the bound of a small image, decoding a large one asks for too much.
    ours = decoder(max_image_pixels=64_000_000)
    ours._memory = 300 << 20
    big = encoded(
        Image.fromarray(np.zeros((9000, 7000, 3), np.uint8)),
        "TIFF",
        compression="tiff_adobe_deflate",
    )
    assert refused(ours, big).reason == Reason.DECODER_MEMORY
    assert ours.image_now(encoded(NOISE, "TIFF")).size == NOISE.size
    assert refused(ours, tile_bomb()).reason in (
        Reason.DECODER_MEMORY,
        Reason.CORRUPT,
        Reason.TRUNCATED,
    )


def test_a_process_that_was_killed_from_outside_is_replaced() -> None:
    ours = decoder()
    data = encoded(NOISE, "TIFF")
    ours.image_now(data)
    [process] = ours._idle.queue
    os.kill(process._process.pid, signal.SIGKILL)
    assert ours.image_now(data).size == NOISE.size


def test_an_image_that_kills_two_processes_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = decoder()
    monkeypatch.setattr(guarded_decode.sys, "executable", "/bin/false")
    error = refused(ours, encoded(NOISE, "TIFF"))
    assert error.reason == Reason.DECODER_CRASH


def test_a_process_ends_with_its_parent() -> None:
    ours = decoder()
    ours.image_now(encoded(NOISE, "TIFF"))
    [process] = ours._idle.queue
    process._process.stdin.close()
    assert process._process.wait(20) == 0


def test_a_jpeg_that_is_decoded_small_looks_as_it_did() -> None:
    smooth = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    data = encoded(smooth, "JPEG", quality=95)
    small = decoder(max_pixels=100_000).image_now(data)
    assert small.width * small.height <= 100_000 and small.width / small.height == pytest.approx(
        4 / 3, rel=0.02
    )
    assert (
        np.abs(
            np.asarray(small).astype(int) - np.asarray(smooth.resize(small.size)).astype(int)
        ).mean()
        < 2
    )
    # Half of it is still half of it.
    assert refused(decoder(max_pixels=100_000), data[: len(data) // 2]).reason == Reason.TRUNCATED


@pytest.mark.parametrize(
    ("max_pixels", "size"),
    [
        (None, (1600, 1200)),
        (10**7, (1600, 1200)),
        (480_001, (1600, 1200)),
        (480_000, (800, 600)),
        (100_000, (400, 300)),
    ],
)
def test_a_jpeg_is_decoded_at_the_least_size_that_has_the_pixels(
    max_pixels: int | None, size: tuple[int, int]
) -> None:
    """Noise, so that what the JPEG's decoder averages differs from what is scaled afterwards."""
    data = encoded(Image.effect_noise((1600, 1200), 60).convert("RGB"), "JPEG")
    decoded = decode.decode(data, max_pixels=max_pixels, **LIMITS)
    assert decoded.size == size
    shrunk = decoder(max_pixels=max_pixels).image_now(data).tobytes()
    assert shrunk == (decode.fit(decoded, max_pixels) if max_pixels else decoded).tobytes()
    whole = decode.decode(data, **LIMITS)
    assert (shrunk == decode.fit(whole, max_pixels or 10**9).tobytes()) == (size == whole.size)
