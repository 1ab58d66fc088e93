"""One shard of jobs/pack.py: its files fetched, decoded, hashed and written, a few at a time."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from mpa_ray.images import references
from mpa_ray.images.decode import UnreadableImage, draw_key_of
from mpa_ray.images.finding import PACKED, SHARDS
from mpa_ray.images.guarded_decode import Decoder
from mpa_ray.images.manifest import Manifest
from mpa_ray.images.parts import part_name
from mpa_ray.schema import IMAGE_ID, IMAGE_STRUCT, IMAGE_URI, QUARANTINE, Stage
from mpa_ray.storage.folder import Folder

BYTES, SHA256 = pa.field("bytes", pa.int64()), pa.field("sha256", pa.string())
_CHECKED = pa.schema(
    [
        IMAGE_ID,
        IMAGE_URI,
        BYTES,
        SHA256,
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
_SHARD = pa.schema(
    [IMAGE_ID, IMAGE_URI, pa.field("draw_key", pa.string()), pa.field("image", IMAGE_STRUCT)],
    metadata=PACKED,
)
# Encoded images do not get smaller.
_COMPRESSION = {
    "image_id": "zstd",
    "image_uri": "zstd",
    "draw_key": "zstd",
    "image.bytes": "none",
    "image.path": "zstd",
}

# A row group, and what a task holds of a shard (twice: the next is fetched while one is decoded). A
# part of a run reads one to three.
_ROWS_AT_ONCE = 128
_BYTES_AT_ONCE = 32 * 2**20
# A decoded image is only looked at; JPEGs are decoded at an eighth for it, all their data included.
_CHECKED_PIXELS = 10_000

Limits = dict[str, Any]


def shard_name(number: int) -> str:
    return f"shard-{number:08d}.parquet"


def pack_shard(number: int, *, plan: Manifest, output: Folder, limits: Limits) -> pa.Table:
    """Make one shard, its part of quarantine/, and then its record. Return one row of
    counts.
    """
    rows = plan.part(number).to_pylist()
    checked: list[dict[str, Any]] = []
    good = 0
    name = f"{SHARDS}/{shard_name(number)}"
    with (
        ThreadPoolExecutor(1) as ahead,
        output.writing(name) as stream,
        _shard_writer(stream) as writer,
    ):
        fetch = partial(references.fetch, max_image_bytes=limits["max_image_bytes"])
        pieces = _pieces(rows, limits["max_image_bytes"])
        waiting = [
            (piece, ahead.submit(fetch, [row["image_uri"] for row in piece]))
            for piece in islice(pieces, 1)
        ]
        while waiting:
            piece, fetched = waiting.pop()
            contents = fetched.result()
            waiting += [
                (later, ahead.submit(fetch, [row["image_uri"] for row in later]))
                for later in islice(pieces, 1)
            ]
            found = [
                _checked(row, content, limits) for row, content in zip(piece, contents, strict=True)
            ]
            checked += found
            kept = [
                (row, content)
                for row, content in zip(found, contents, strict=True)
                if row["reason"] is None
            ]
            if kept:
                writer.write_table(_as_shard(kept, plan.root))
                good += len(kept)
    if not good:
        output.delete(name)
    rejected = [row | {"stage": str(Stage.IMAGES)} for row in checked if row["reason"] is not None]
    if rejected:
        output.write_table(
            f"quarantine/{part_name(number)}", pa.Table.from_pylist(rejected, schema=QUARANTINE)
        )
    output.write_table(
        f".pack/checked/{part_name(number)}", pa.Table.from_pylist(checked, schema=_CHECKED)
    )
    return pa.table({"images": [len(checked)], "quarantined": [len(rejected)]})


def _shard_writer(stream: Any) -> pyarrow.parquet.ParquetWriter:
    return pyarrow.parquet.ParquetWriter(
        stream,
        _SHARD,
        compression=_COMPRESSION,
        use_dictionary=False,
        write_statistics=["image_id"],
    )


def _pieces(rows: list[dict[str, Any]], max_image_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in their order, so many at a time that their images fit into memory. What is over the
    bound is not read.
    """
    piece: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        size = row["bytes"] if row["bytes"] <= max_image_bytes else 0
        if piece and (len(piece) == _ROWS_AT_ONCE or held + size > _BYTES_AT_ONCE):
            yield piece
            piece, held = [], 0
        piece.append(row)
        held += size
    if piece:
        yield piece


@lru_cache(maxsize=1)
def _decoder(**limits: Any) -> Decoder:
    """One for each worker process, whose guarded processes are then started once."""
    return Decoder(max_pixels=_CHECKED_PIXELS, **limits)


def _checked(
    row: dict[str, Any], content: bytes | UnreadableImage, limits: Limits
) -> dict[str, Any]:
    """What is found out about one file."""
    found = {
        "image_id": row["image_id"],
        "image_uri": row["image_uri"],
        "bytes": row["bytes"],
        "sha256": None,
        "reason": None,
        "detail": None,
    }
    try:
        if isinstance(content, UnreadableImage):
            raise content
        _decoder(**limits).image_now(content)
        return found | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    except UnreadableImage as error:
        return found | {"reason": str(error.reason), "detail": error.detail}


def _as_shard(rows: list[tuple[dict[str, Any], Any]], root: str | None) -> pa.Table:
    images = [{"bytes": content, "path": row["image_uri"]} for row, content in rows]
    columns: dict[str, Any] = {
        name: [row[name] for row, _ in rows] for name in ("image_id", "image_uri")
    }
    columns["draw_key"] = [draw_key_of(uri, root) for uri in columns["image_uri"]]
    return pa.table(columns | {"image": pa.array(images, IMAGE_STRUCT)}, schema=_SHARD)


def drop_duplicates(number: int, *, output: Folder) -> pa.Table:
    """Write a shard again without its duplicates. One that has none any more stays as it is in
    effect.
    """
    name = f"{SHARDS}/{shard_name(number)}"
    dropped = (
        output.child(".pack/duplicates")
        .read_table(part_name(number), ["image_id"])
        .column(0)
        .combine_chunks()
    )
    left = 0
    if output.exists(name):
        groups = output.read_parquet(name, lambda file: file.num_row_groups)
        with output.writing(name) as stream, _shard_writer(stream) as writer:
            for group in range(groups):
                rows = output.read_parquet(name, partial(_row_group, number=group))
                rows = rows.filter(pc.invert(pc.is_in(rows.column("image_id"), value_set=dropped)))
                if rows.num_rows:
                    writer.write_table(rows)
                    left += rows.num_rows
        if not left:
            output.delete(name)
    return pa.table({"images": [left]})


def _row_group(file: pyarrow.parquet.ParquetFile, *, number: int) -> pa.Table:
    return file.read_row_group(number)
