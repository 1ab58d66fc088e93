"""Names for image files that we write: the extension comes from the bytes, never from what someone
called them.
"""

import hashlib
import re

from mpa_ray.images.decode import UnreadableImage
from mpa_ray.schema import Reason

_SAFE_STEM = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
# How files of the formats in `decode.FORMATS` begin: (offset, bytes, extension).
_SIGNATURES = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
    (0, b"BM", ".bmp"),
    (0, b"II*\x00", ".tif"),
    (0, b"MM\x00*", ".tif"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypavis", ".avif"),
)


def named(stem: str, data: bytes) -> str:
    """`stem` with the extension of the bytes' format. A stem that is not a plain name, as an id
    from elsewhere may be, becomes its hash.

    Raises:
        UnreadableImage: the bytes are of no format that we read.
    """
    extension = next(
        (
            extension
            for start, mark, extension in _SIGNATURES
            if data[start : start + len(mark)] == mark
        ),
        None,
    )
    if extension is None:
        raise UnreadableImage(
            Reason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {data[:16]!r}"
        )
    plain = (
        stem
        if _SAFE_STEM.fullmatch(stem)
        else hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )
    return plain + extension
