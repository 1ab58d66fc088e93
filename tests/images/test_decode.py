"""Real bytes of every kind that turns up in a crawl: read rightly, or refused for a named
reason.
"""

import io
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_ray.images.decode import EXTENSIONS, MIN_SIDE, UnreadableImage, decode, fit, image_id_of
from mpa_ray.schema import Reason

LIMITS = {"max_image_pixels": 1_000_000, "max_image_bytes": 1 << 20}
NOISE = Image.effect_noise((64, 48), 60)
GRADIENT = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color_type: int = 2,
    rows: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def read(data: bytes, **limits: int) -> np.ndarray:
    image = decode(data, **(LIMITS | limits))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def refused(data: bytes, **limits: int) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        decode(data, **(LIMITS | limits))
    assert caught.value.detail
    return caught.value


TWO_FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}
JPEG = encoded(NOISE.convert("RGB"), "JPEG")
PNG = encoded(NOISE, "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.EMPTY, id="zero bytes"),
        pytest.param(b"no image at all\n" * 20, Reason.NOT_AN_IMAGE, id="text"),
        pytest.param(
            b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
            Reason.NOT_AN_IMAGE,
            id="svg",
        ),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
            Reason.NOT_AN_IMAGE,
            id="eps starts programs",
        ),
        pytest.param(
            encoded(NOISE, "PPM"), Reason.NOT_AN_IMAGE, id="a format that is not on the list"
        ),
        pytest.param(JPEG[: len(JPEG) // 2], Reason.TRUNCATED, id="half a jpeg"),
        pytest.param(JPEG[:200], Reason.TRUNCATED, id="a jpeg's header"),
        pytest.param(PNG[: len(PNG) // 2], Reason.TRUNCATED, id="half a png"),
        pytest.param(encoded(NOISE, "BMP")[:2000], Reason.TRUNCATED, id="half a bmp"),
        pytest.param(encoded(NOISE, "GIF")[:1500], Reason.TRUNCATED, id="half a gif"),
        pytest.param(encoded(NOISE, "TIFF")[:2000], Reason.TRUNCATED, id="half a tiff"),
        pytest.param(
            PNG[:2000] + bytes([PNG[2000] ^ 255]) + PNG[2001:],
            Reason.CORRUPT,
            id="a flipped byte in a png",
        ),
        pytest.param(encoded(NOISE, "WEBP")[:500], Reason.CORRUPT, id="half a webp"),
        pytest.param(png(100_000, 100_000), Reason.TOO_MANY_PIXELS, id="decompression bomb"),
        pytest.param(
            png(2**31 - 1, 2**31 - 1),
            Reason.TOO_MANY_PIXELS,
            id="decompression bomb of 4e18 pixels",
        ),
        pytest.param(png(1001, 1000), Reason.TOO_MANY_PIXELS, id="just over the bound"),
        pytest.param(encoded(Image.new("RGB", (1, 1)), "PNG"), Reason.TOO_SMALL, id="1x1"),
        pytest.param(
            encoded(Image.new("RGB", (500, MIN_SIDE - 1)), "PNG"), Reason.TOO_SMALL, id="a line"
        ),
        pytest.param(
            encoded(NOISE.convert("RGB"), "GIF", **TWO_FRAMES), Reason.ANIMATED, id="animated gif"
        ),
        pytest.param(
            encoded(NOISE.convert("RGB"), "PNG", **TWO_FRAMES), Reason.ANIMATED, id="animated png"
        ),
        pytest.param(
            encoded(NOISE.convert("RGB"), "WEBP", **TWO_FRAMES), Reason.ANIMATED, id="animated webp"
        ),
        pytest.param(
            encoded(NOISE.convert("RGB"), "TIFF", **TWO_FRAMES),
            Reason.ANIMATED,
            id="tiff of two pages",
        ),
    ],
)
def test_what_is_refused_and_why(data: bytes, reason: Reason) -> None:
    assert refused(data).reason == reason


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    bomb = png(
        16,
        16,
        color_type=0,
        rows=(b"\0" + bytes(16)) * 16,
        extra=chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(80 << 20))),
    )
    assert refused(bomb).reason == Reason.CORRUPT


def test_text_is_refused_before_any_image_was_opened() -> None:
    # Pillow registers its plugins as they are needed, so the very first call is a case of its own.
    code = """
from mpa_ray.images.decode import UnreadableImage, decode
try:
    decode(b"no image at all", max_image_pixels=1000, max_image_bytes=1000)
except UnreadableImage as error:
    print(error.reason)
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "not_an_image\n"
    )


def test_bounds_are_inclusive_and_named() -> None:
    data = encoded(Image.new("RGB", (100, 100)), "PNG")
    read(data, max_image_pixels=10_000, max_image_bytes=len(data))
    assert "max_image_pixels" in refused(data, max_image_pixels=9_999).detail
    too_many_bytes = refused(data, max_image_bytes=len(data) - 1)
    assert too_many_bytes.reason == Reason.TOO_MANY_BYTES
    assert "max_image_bytes" in too_many_bytes.detail
    read(encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), "PNG"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_with_an_extension_is_read(form: str) -> None:
    pixels = read(encoded(NOISE.convert("RGB"), form))
    # GIF keeps 256 colours, JPEG, WebP and AVIF lose some of the noise: each pixel near its own.
    assert np.abs(pixels - np.asarray(NOISE.convert("RGB")).astype(int)).mean() < 12
    assert any(Image.registered_extensions().get(extension) == form for extension in EXTENSIONS)


def test_a_gif_of_one_frame_is_read() -> None:
    frame = Image.new("P", (20, 10), 1)
    frame.putpalette([0, 0, 0, 10, 200, 30] + [0] * 762)
    assert (read(encoded(frame, "GIF")) == [10, 200, 30]).all()


def test_an_mpo_is_its_first_photograph() -> None:
    data = encoded(
        Image.new("RGB", (64, 48), (200, 30, 20)),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (64, 48), "blue")],
    )
    assert np.abs(read(data) - [200, 30, 20]).max() < 8


def test_cmyk_has_the_right_colors() -> None:
    # Magenta and yellow at full are red; a JPEG of Photoshop (Adobe marker) keeps them inverted.
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    for data in (encoded(red, "JPEG", quality=95), encoded(red, "TIFF")):
        assert np.abs(read(data) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str) -> None:
    row = read(encoded(Image.fromarray(GRADIENT), form))[0]
    assert (row[:, 0] == row[:, 2]).all()
    assert row[0, 0] == 0 and row[-1, 0] == 255
    assert np.diff(row[:, 0]).max() <= 5 and len(set(row[:, 0].tolist())) == 64


def test_16_bit_grey_uses_its_full_range_whatever_is_in_it() -> None:
    # A dark image stays dark.
    assert (read(encoded(Image.fromarray(np.full((20, 20), 2570, np.uint16)), "PNG")) == 10).all()


def test_16_bit_color() -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 16
    assert (read(png(16, 16, depth=16, color_type=2, rows=row * 16)) == [255, 128, 0]).all()


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 64, dtype=np.float32),
        np.linspace(-1000, 1000, 64, dtype=np.float32),
        np.linspace(-100, 100, 64).astype(np.int32),
        np.linspace(0, 1000, 64).astype(np.int32),
    ],
    ids=["float 0..1", "float with negatives", "signed integers", "32-bit integers"],
)
def test_other_depths_take_the_range_they_have(values: np.ndarray) -> None:
    row = read(encoded(Image.fromarray(np.tile(values, (32, 1))), "TIFF"))[0, :, 0]
    assert row[0] == 0 and row[-1] >= 254
    assert (np.diff(row) > 0).all()


def test_no_data_in_a_float_image_leaves_the_rest_alone() -> None:
    values = np.tile(np.linspace(1000, 2000, 64, dtype=np.float32), (32, 1))
    values[0, 0], values[1, 0] = np.nan, np.inf
    row = read(encoded(Image.fromarray(values), "TIFF"))[5, :, 0]
    assert row[0] == 0 and row[-1] == 255 and abs(row[32] - 129) <= 2


def test_transparency_is_laid_on_white() -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    palette.paste(0, (0, 0, 16, 32))
    for form in ("PNG", "GIF"):
        pixels = read(encoded(palette, form, transparency=0))
        assert (pixels[:, :16] == 255).all() and (pixels[:, 16:] == [255, 0, 0]).all()
    assert (read(encoded(palette, "PNG"))[:, :16] == 0).all()
    assert (read(encoded(Image.new("LA", (32, 32), (0, 0)), "PNG")) == 255).all()
    assert (np.abs(read(encoded(Image.new("LA", (32, 32), (0, 128)), "PNG")) - 127) <= 1).all()
    assert (
        read(encoded(Image.new("RGBA", (32, 32), (0, 0, 255, 0)), "WEBP", lossless=True)) == 255
    ).all()
    assert (
        read(encoded(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == 255
    ).all()


def test_one_bit_images() -> None:
    half = Image.new("1", (20, 20), 0)
    half.paste(1, (0, 0, 10, 20))
    pixels = read(encoded(half, "TIFF", compression="group4"))
    assert (pixels[:, :10] == 255).all() and (pixels[:, 10:] == 0).all()


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((0, 0, 0), (0, 0, 20, 20))
    pixels = read(encoded(image, "PNG", exif=oriented(6)))
    # 6: the camera was turned a quarter to the left, so what was left is on top.
    assert pixels.shape == (40, 20, 3)
    assert pixels[:20].max() == 0 and pixels[20:].min() == 255


def test_exif_that_makes_no_sense_is_no_reason_to_refuse() -> None:
    assert read(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=oriented(99))).shape == (20, 40, 3)
    assert read(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=b"Exif\0\0garbage")).shape == (
        20,
        40,
        3,
    )


def test_fit_bounds_the_pixels_and_keeps_the_shape() -> None:
    image = Image.new("RGB", (1000, 500))
    assert fit(image, 500_000) is image
    small = fit(image, 50_000)
    assert small.width * small.height <= 50_000
    assert small.width / small.height == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("size", [(100_000, 8), (8, 100_000)])
def test_fit_bounds_the_pixels_of_a_line_too(size: tuple[int, int]) -> None:
    small = fit(Image.new("RGB", size), 100)
    assert small.width * small.height <= 100
    assert (small.width > small.height) == (size[0] > size[1])


def test_image_ids_are_stable() -> None:
    # Written down: ids are compared between runs, so they must never change.
    assert image_id_of("/data/a.jpg") == "c82383262a76ab3251aff9e84956b5b3"
    assert image_id_of("/data/ä b.jpg") == "e2ed513590ef0c20d8242e21bce2962f"


FILES = [
    JPEG,
    encoded(NOISE.convert("RGB"), "JPEG", progressive=True, exif=oriented(6)),
    encoded(NOISE.convert("CMYK"), "JPEG"),
    PNG,
    encoded(NOISE.convert("P"), "PNG", transparency=3),
    encoded(Image.fromarray(GRADIENT), "PNG"),
    encoded(NOISE.convert("RGB"), "PNG", **TWO_FRAMES),
    encoded(NOISE, "WEBP", exif=oriented(3)),
    encoded(NOISE, "GIF"),
    encoded(NOISE.convert("RGB"), "GIF", **TWO_FRAMES),
    encoded(NOISE, "BMP"),
    encoded(NOISE, "TIFF"),
    encoded(NOISE, "TIFF", compression="tiff_lzw"),
    encoded(NOISE.convert("RGB"), "TIFF", compression="jpeg"),
    encoded(Image.fromarray(np.float32(GRADIENT)), "TIFF"),
    encoded(NOISE.convert("RGB"), "AVIF", exif=oriented(8)),
    encoded(NOISE.convert("RGB"), "MPO", **TWO_FRAMES),
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, dropped or put in, most of them near its head, where sizes
    and offsets are.
    """
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not damaged:
            break
        place = rng.randrange(min(len(damaged), rng.choice([40, 200, 1 << 20])))
        match rng.randrange(5):
            case 0:
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                damaged[place : place + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"]
                )
            case 2:
                del damaged[place : place + rng.randrange(1, 30)]
            case 3:
                damaged[place:place] = rng.randbytes(rng.randrange(8))
            case 4:
                del damaged[place:]
    return bytes(damaged)


def decodes_or_is_refused(data: bytes) -> None:
    try:
        assert decode(data, **LIMITS).mode == "RGB"
    except UnreadableImage as error:
        assert error.reason in Reason and error.detail


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", range(len(FILES)))
def test_a_file_cut_anywhere_never_raises_anything_else(file: int) -> None:
    data = FILES[file]
    # Every place near the end: a second frame's header is there.
    for length in [*range(0, len(data), 61), *range(max(0, len(data) - 120), len(data), 2)]:
        decodes_or_is_refused(data[:length])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=1500, deadline=None)
@given(st.integers(0, len(FILES) - 1), st.integers(0, 2**32))
def test_a_damaged_file_never_raises_anything_else(file: int, seed: int) -> None:
    decodes_or_is_refused(mutated(FILES[file], random.Random(seed)))


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBP",
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MAGIC), st.binary())
@example(b"", b"\0")
def test_random_bytes_never_raise_anything_else(magic: bytes, rest: bytes) -> None:
    decodes_or_is_refused(magic + rest)
