"""Hostile and rotten inputs, made by the thousand: never a crash, always accounted for.

A few seconds in `make test`; `HYPOTHESIS_PROFILE=chaos` makes fifty times as many of each.
"""

import io
import os
import random
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.images.guarded_decode import Decoder
from mpa_ray.images.parts import read_images
from mpa_ray.schema import Reason
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.annotation_parser import Annotation, UnparsableAnnotation, parse_annotations
from tests.images.test_decode import FILES, mutated

pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS_OF_DECODING = 20
DECODER = Decoder(
    max_pixels=10_000,
    max_image_pixels=1_000_000,
    max_image_bytes=1 << 20,
    max_decode_seconds=SECONDS_OF_DECODING,
)
SEEDS = st.integers(0, 2**32)


def fuzz(examples: int) -> Any:
    times = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "chaos" else 1
    return settings(
        max_examples=times * examples, deadline=None, suppress_health_check=list(HealthCheck)
    )


@fuzz(100)
@given(st.integers(0, len(FILES) - 1), SEEDS)
def test_images(file: int, seed: int) -> None:
    try:
        image = DECODER.image_now(mutated(FILES[file], random.Random(seed)))
        assert image.mode == "RGB" and 0 < image.width * image.height <= 10_000
    except UnreadableImage as error:
        # A decoder that dies or hangs over a few changed bytes is one to report, and not to live
        # with.
        assert error.reason not in (Reason.DECODER_CRASH, Reason.TIMEOUT)
        assert error.detail.encode()


def read_all(folder: Path) -> list[dict[str, Any]] | None:
    """Every row that the images below `folder` come to, as a run reads them; None where they are
    refused before a run.
    """
    before = sorted(folder.parent.rglob("*"))
    with tempfile.TemporaryDirectory() as other:
        try:
            built = manifest.build(
                str(folder),
                Folder.at(other),
                images_per_part=3,
                bytes_per_part=2**28,
                max_image_bytes=2**26,
            )
        except ConfigurationError as error:
            assert str(error).encode()
            return None
        listed = [row for part in range(built.parts) for row in built.part(part).to_pylist()]
        rows = [
            row
            for part in range(built.parts)
            for row in read_images(part, manifest=built, max_image_bytes=10_000).to_pylist()
        ]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in listed]
    assert len({row["image_id"] for row in rows}) == len(rows) == built.images
    for row in rows:
        assert (row["image"] is None) == (row["reason"] is not None)
        assert row["reason"] is None or (row["reason"] in set(Reason) and row["detail"].encode())
    assert sorted(folder.parent.rglob("*")) == before
    return rows


NAMES = st.sampled_from(
    [
        "a.png",
        "b.jpg",
        "../a.png",
        "/etc/a.png",
        "a/../../b.png",
        "x" * 150 + ".png",
        "ü.png",
        "a.txt",
        ".png",
        "n\n.png",
        "#&=%.png",
    ]
)
TYPES = [
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
]
TYPES += [tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"g", b"L", b"K", b"V", b"Z"]
SIZES = [0, 1, 511, 512, 100_000, 2**31, 2**33 - 1, 2**40, -1]
MEMBERS = st.lists(
    st.tuples(
        NAMES, st.sampled_from(TYPES), st.none() | st.sampled_from(SIZES), st.binary(max_size=600)
    ),
    max_size=5,
)


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")[-512:])
    # What tarfile would not write itself: a number of 12 octal digits, or in base 256.
    block[124:136] = (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else struct.pack(">Bxxxq", 0x80 if size >= 0 else 0xFF, size)
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def archive(members: list[tuple[str, bytes, int | None, bytes]]) -> bytes:
    data = b""
    for name, kind, size, content in members:
        data += (
            header(name, kind, len(content) if size is None else size)
            + content
            + bytes(-len(content) % 512)
        )
    return data + bytes(1024)


@fuzz(50)
@given(MEMBERS, st.none() | SEEDS)
def test_tars(members: list[tuple[str, bytes, int | None, bytes]], seed: int | None) -> None:
    data = archive(members)
    if seed is not None:
        data = mutated(data, random.Random(seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        (folder / "t.tar").write_bytes(data)
        rows = read_all(folder)
    plain = all(kind == tarfile.REGTYPE and size is None for _, kind, size, _ in members)
    if plain and seed is None and rows is not None:
        wanted = [
            (name, content)
            for name, _, _, content in members
            if name.endswith((".png", ".jpg")) and name != ".png"
        ]
        outside = [name.startswith(("/", "..")) or "/../.." in name for name, _ in wanted]
        expected = [
            None if out else content for out, (_, content) in zip(outside, wanted, strict=True)
        ]
        assert [row["image"] for row in rows] == expected


def test_a_header_that_announces_gigabytes_is_refused_without_reading_them(tmp_path: Path) -> None:
    with (tmp_path / "t.tar").open("wb") as stream:
        stream.write(header("pax", b"x", 2**33 - 1))
        # As large as it says, without taking the disk.
        stream.truncate(2**33)
    with pytest.raises(ConfigurationError, match="more than there can be in one piece"):
        manifest.build(
            str(tmp_path),
            Folder.at(tmp_path / "manifest"),
            images_per_part=3,
            bytes_per_part=2**28,
            max_image_bytes=2**26,
        )


def test_headers_that_follow_headers_are_refused(tmp_path: Path) -> None:
    record = b"20 comment=recursion"[:19] + b"\n"
    (tmp_path / "t.tar").write_bytes(
        (header("pax", b"x", len(record)) + record.ljust(512, b"\0")) * 20_000 + bytes(1024)
    )
    with pytest.raises(ConfigurationError, match=r"t.tar: cannot be read as tar"):
        manifest.build(
            str(tmp_path),
            Folder.at(tmp_path / "manifest"),
            images_per_part=3,
            bytes_per_part=2**28,
            max_image_bytes=2**26,
        )


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()
STRUCTS = st.none() | st.fixed_dictionaries(
    {"bytes": st.none() | st.just(PNG), "path": st.none() | st.text(max_size=5)}
)
COLUMNS = st.one_of(
    *(
        st.lists(st.none() | values, max_size=8).map(lambda items, kind=kind: pa.array(items, kind))
        for values, kind in [
            (st.just(PNG) | st.binary(max_size=20), pa.binary()),
            (st.just(PNG), pa.large_binary()),
            (st.just(PNG[:10]), pa.binary(10)),
            (STRUCTS, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            (
                st.fixed_dictionaries({"path": st.text(max_size=5)}),
                pa.struct([("path", pa.string())]),
            ),
            (
                st.fixed_dictionaries({"bytes": st.lists(st.integers(0, 255), max_size=3)}),
                pa.struct([("bytes", pa.list_(pa.uint8()))]),
            ),
            (st.lists(st.binary(max_size=3), max_size=3), pa.list_(pa.binary())),
            (st.text(max_size=20), pa.string()),
            (
                st.sampled_from(
                    [
                        "a.png",
                        "../x.png",
                        "/etc/passwd",
                        "ftp://b/x.png",
                        "http://h/x.png",
                        "",
                        "\0",
                        "a" * 300,
                    ]
                ),
                pa.string(),
            ),
            (st.integers(-9, 9), pa.int64()),
            (st.floats(), pa.float64()),
            (st.booleans(), pa.bool_()),
            (st.nothing(), pa.null()),
        ]
    )
)
COLUMN_NAMES = st.sampled_from(
    [
        "image",
        "image",
        "image_uri",
        "uri",
        "url",
        "image_path",
        "path",
        "file_name",
        "caption",
        "image.bytes",
        "",
    ]
)


@fuzz(50)
@given(
    COLUMN_NAMES,
    COLUMNS,
    st.sampled_from(["none", "snappy", "zstd"]),
    st.integers(1, 4),
    st.none() | SEEDS,
    st.booleans(),
)
def test_parquet(
    name: str, column: pa.Array, compression: str, rows: int, seed: int | None, at_the_end: bool
) -> None:
    sink = io.BytesIO()
    pq.write_table(
        pa.table({name: column, "other": pa.nulls(len(column))}),
        sink,
        compression=compression,
        row_group_size=rows,
    )
    data = sink.getvalue()
    if seed is not None:
        # The footer is at the end: reversed, `mutated` prefers it.
        data = (
            mutated(data[::-1], random.Random(seed))[::-1]
            if at_the_end
            else mutated(data, random.Random(seed))
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        (folder / "p.parquet").write_bytes(data)
        found = read_all(folder)
    if seed is None and found is not None:
        assert len(found) == len(column)


PIECES = st.sampled_from(
    [
        *(
            "Question:",
            "Answer:",
            "Q:",
            "A:",
            "**Question**:",
            "question",
            "answer",
            "Pregunta:",
            "Antwort:",
            "问题：",
            "答案：",
            "1.",
            "- ",
            "* ",
            "> ",
        ),
        *(
            '{"question": "',
            '"answer": "',
            '"}',
            "[",
            "]",
            "{",
            "}",
            "```json",
            "```",
            "\n",
            "\n\n",
            " ",
            "\t",
            "?",
            "？",
            ",",
            ";",
            "<|im_end|>",
            "</s>",
        ),
        *(
            "What is written?",
            "red",
            "because",
            "(because it is)",
            "I'm sorry",
            "\0",
            "\ud800",
            "\u202e",
            "\\",
            '"',
            "'",
            "[" * 50,
            "{" * 50,
            "a" * 700,
            "42",
        ),
    ]
)


@fuzz(100)
@given(
    st.lists(PIECES | st.text(max_size=8), max_size=25).map("".join) | st.text(), st.integers(1, 5)
)
def test_replies(text: str, limit: int) -> None:
    try:
        found = parse_annotations(text, limit=limit)
    except UnparsableAnnotation as error:
        assert str(error)
        return
    assert 1 <= len(found) <= limit
    assert all(
        isinstance(one, Annotation) and one.question.strip() and one.answer.strip() for one in found
    )
    # They are written as Parquet, which takes text only.
    pa.array([value for one in found for value in (one.question, one.answer)], pa.string())
