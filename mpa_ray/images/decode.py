"""From encoded bytes to an RGB image, safely: the bytes come from anywhere, and what a name says of
them proves nothing.
"""

import hashlib
import io
import math
import posixpath
import re
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mpa_ray.schema import Reason

# Raster formats whose decoders are in wide use. EPS, PDF, FITS and the like are left out: their
# parsers start programs or read other files. An MPO (a JPEG with previews behind it) is opened by
# the JPEG plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})

# What Pillow's plugins raise over damaged bytes. They document none of it; fuzzing finds these
# (AVIF: RuntimeError; GIF: struct.error).
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# The end of a reference into a shard of jobs/pack.py (`mpa_ray.images.references`); no file's name
# can look like it, because `#` is encoded in names.
_PACKED_ID = re.compile(
    r"#row_group=\d+&row=\d+&image_id=([0-9a-f]{32})(?:&key=([0-9a-f]{32}))?\Z", re.ASCII
)

# Pixels that are scaled at a time.
_STRIP = 1_000_000

# How the pixels of each EXIF orientation are turned upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow takes a tenth of a millisecond over each that makes no sense. Cameras write some dozens.
_EXIF_ENTRIES = 500
# ImageMagick's way to keep an EXIF block in a PNG: as hexadecimal text.
_EXIF_AS_TEXT = "Raw profile type exif"

# A side shorter than this is less than one patch of any model of the paper.
MIN_SIDE = 8


class UnreadableImage(ValueError):
    """Bytes that are no image we can show a model.

    Attributes:
        reason: why, from the fixed list.
        detail: what a person wants to know beside it.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class NotPlain(Exception):
    """An image is more than its first bytes told, so what it takes to decode it is not known."""


def image_id_of(image_uri: str) -> str:
    """The id of an image reference: 32 hexadecimal digits, the same in every run for the same URI.
    A packed image keeps the one it had before.
    """
    packed = _PACKED_ID.search(image_uri)
    return packed[1] if packed else _hash(image_uri)


def draw_key_of(image_uri: str, root: str | None) -> str:
    """What everything that is drawn for an image goes by: 32 hexadecimal digits of the reference
    relative to `root`, so that a folder and its copy elsewhere give the same run.

    Args:
        image_uri: the reference.
        root: of the source, as a reference; None for a list that was made before draws went by
            this: then the image's id.
    """
    if root is None:
        return image_id_of(image_uri)
    relative = below(image_uri, root)
    packed = _PACKED_ID.search(relative)
    if packed is None or packed[2] is None:
        return image_id_of(relative)
    # Of several packed folders below one root, two may hold images of one name.
    folder = posixpath.dirname(relative[: packed.start()])
    return _hash(f"{folder}/{packed[2]}") if folder else packed[2]


def below(image_uri: str, root: str) -> str:
    """The part of a reference that is below `root`, or that begins with the file's name where
    `root` is that file; the whole reference where the image is elsewhere."""
    if image_uri.startswith(f"{root}/"):
        return image_uri[len(root) + 1 :]
    is_root = image_uri.partition("#")[0] == root
    return image_uri[root.rfind("/") + 1 :] if is_root else image_uri


def _hash(reference: str) -> str:
    return hashlib.sha256(reference.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def decode(
    data: bytes,
    *,
    max_image_pixels: int,
    max_image_bytes: int,
    max_pixels: int | None = None,
    told_pixels: int | None = None,
) -> Image.Image:
    """Decode every pixel of `data` into an upright 8-bit RGB image. Untrusted images at large go
    through `mpa_ray.images.guarded_decode`.

    Args:
        data: an encoded file.
        max_image_pixels: width x height over this is refused before memory is taken for it.
        max_image_bytes: a file over this is refused before it is parsed.
        max_pixels: a JPEG may be decoded at a half, quarter or eighth of its size that still has at
            least so many pixels.
        told_pixels: what its first bytes tell, where it is decoded only if it is as plain as that.

    Raises:
        UnreadableImage: with the reason the row is quarantined for.
        NotPlain: it has more pixels than `told_pixels`, or an EXIF block of many entries.
    """
    if not data:
        raise UnreadableImage(Reason.EMPTY, "0 bytes")
    if len(data) > max_image_bytes:
        raise UnreadableImage(
            Reason.TOO_MANY_BYTES, f"{len(data)} bytes, at most {max_image_bytes} (max_image_bytes)"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage(
            Reason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {data[:16]!r}"
        ) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(Reason.TOO_MANY_PIXELS, str(error)) from None
    except _DAMAGE as error:
        raise _damaged(error, "header") from None
    form = str(image.format)
    try:
        with image:
            if told_pixels is not None and image.width * image.height > told_pixels:
                raise NotPlain
            _check_size(image, max_image_pixels)
            # An MPO is a JPEG whose further frames are previews; its first is the photograph.
            # Frames are not counted: a GIF can have millions.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise UnreadableImage(Reason.ANIMATED, f"more than one frame of {image.format}")
            if max_pixels is not None and image.width * image.height > max_pixels:
                scale = (max_pixels / (image.width * image.height)) ** 0.5
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            if told_pixels is not None and not _has_plain_exif(image):
                raise NotPlain
            # Not by ImageOps.exif_transpose, which writes the whole EXIF block again.
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return _to_rgb(image if turn is None else image.transpose(turn))
    except (UnreadableImage, NotPlain):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(Reason.TOO_MANY_PIXELS, str(error)) from None
    except _DAMAGE as error:
        raise _damaged(error, form) from None


def _has_plain_exif(image: Image.Image) -> bool:
    """Whether its orientation is found in no time."""
    if len(image.info.get(_EXIF_AS_TEXT, "")) > 8 * _EXIF_ENTRIES:
        return False
    block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return True
    if b"+" in block[2:4]:
        # BigTIFF counts otherwise, and no camera writes it here.
        return False
    with suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        return struct.unpack_from(f"{order}H", block, start)[0] <= _EXIF_ENTRIES
    return True


def _damaged(error: Exception, where: str) -> UnreadableImage:
    """Pillow's plugins speak of a short file in words only: "image file is truncated", "Truncated
    File Read".
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text:
        return UnreadableImage(Reason.DECODER_MEMORY, f"{where}: {error or 'out of memory'}")
    short = "truncated" in text or isinstance(error, EOFError)
    return UnreadableImage(Reason.TRUNCATED if short else Reason.CORRUPT, f"{where}: {error}")


def _check_size(image: Image.Image, max_image_pixels: int) -> None:
    width, height = image.size
    if width * height > max_image_pixels:
        raise UnreadableImage(
            Reason.TOO_MANY_PIXELS,
            f"{width}x{height} pixels, at most {max_image_pixels} (max_image_pixels)",
        )
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(
            Reason.TOO_SMALL, f"{width}x{height} pixels, at least {MIN_SIDE} a side"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Transparency is laid on white, as a viewer shows it; 16-bit and float values are
    scaled, where Pillow would clip them.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        # 16-bit files use their full range by definition; other depths say nothing of theirs, so
        # the values found are taken.
        low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _range(values)
        grey = np.empty(values.shape, np.uint8)
        # In strips: as 64-bit numbers the whole would be eight times the image.
        rows = max(1, _STRIP // values.shape[1])
        # Some bit patterns that are no number complain when they are converted.
        with np.errstate(invalid="ignore"):
            for top in range(0, len(values), rows):
                strip = values[top : top + rows].astype(np.float64)
                scaled = np.nan_to_num(
                    (np.where(np.isfinite(strip), strip, np.nan) - low)
                    * (255.0 / max(high - low, 1e-9))
                )
                grey[top : top + rows] = np.clip(scaled, 0, 255)
        return Image.fromarray(grey, mode="L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # `convert` would copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


def _range(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number in it."""
    numbers = values[np.isfinite(values)]
    if not numbers.size:
        raise ValueError("no pixel is a number")
    return float(numbers.min()), float(numbers.max())


def decode_and_fit(data: bytes, *, max_pixels: int | None, **limits: Any) -> Image.Image:
    """`decode`, and `fit` where there is a bound."""
    image = decode(data, max_pixels=max_pixels, **limits)
    return image if max_pixels is None else fit(image, max_pixels)


def fit(image: Image.Image, max_pixels: int) -> Image.Image:
    """`image`, shrunk so that width x height <= `max_pixels`; its shape is kept.

    We bound pixels here and not through the processors' own settings: those differ by family, and
    some versions ignored them.
    """
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    # A line cannot keep its shape: it is one pixel high, and as long as the bound lets it be.
    width = min(max(1, int(width * scale)), max_pixels)
    height = max(1, min(int(height * scale), max_pixels // width))
    return image.resize((width, height), Image.Resampling.BICUBIC)
