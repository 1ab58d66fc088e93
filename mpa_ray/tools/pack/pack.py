"""Packing: loose image files become shards of a few hundred megabytes, which cost one request where
loose files cost thousands.

    pack.json           what was asked for; written first
    shards/             Parquet: image_id, image_uri, draw_key, image {bytes, path}. Ids and keys
                        are those of the loose files, so a run on the shards draws the same
    quarantine/         Parquet: the files that no run could read, each with its reason
    duplicates.parquet  files whose bytes are those of another, `same_as`; they are recorded here
                        and not in the shards
    index.json          the counts; written last
    .pack/              the list of files and what was found out about each, from which an
                        interrupted call resumes

Images in shards + duplicates + quarantine = the image files that were listed, each once. Each shard
is planned by the sizes in the listing, and made by one Ray task: fetch, decode every pixel, hash,
write. A call resumes with the shards that have no record in `.pack/checked/`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.images.decode import EXTENSIONS
from mpa_ray.images.finding import PACK_FINISHED, PACK_STARTED, SHARDS, root_of
from mpa_ray.images.listing import files
from mpa_ray.images.manifest import Manifest
from mpa_ray.images.parts import dataset_of, part_name, part_number
from mpa_ray.images.references import quote_path
from mpa_ray.images.repeats import Repeats, name_of
from mpa_ray.observability.progress import Progress, say
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.schema import IMAGE_ID, IMAGE_URI, MANIFEST
from mpa_ray.storage.folder import Entry, Folder, in_parallel
from mpa_ray.storage.lease import lease
from mpa_ray.tools.pack.shards import BYTES, SHA256, Limits, drop_duplicates, pack_shard

_PLANNED = pa.schema([*MANIFEST, BYTES])
_DUPLICATES = pa.schema([IMAGE_ID, IMAGE_URI, pa.field("same_as", pa.string()), SHA256, BYTES])
_READERS = 16


def pack(
    images: str,
    output: Folder,
    *,
    shard_bytes: int,
    max_image_pixels: int,
    max_image_bytes: int,
    max_decode_seconds: float,
) -> dict[str, Any]:
    """Pack the image files below `images`. Return what index.json holds.

    Raises:
        ConfigurationError: there are none, or `output` holds something else.
        StorageError: storage failed again and again; the same call resumes.
    """
    limits = {
        "max_image_pixels": max_image_pixels,
        "max_image_bytes": max_image_bytes,
        "max_decode_seconds": max_decode_seconds,
    }
    _claim(output, {"images": images, "shard_bytes": shard_bytes, **limits})
    if output.exists(PACK_FINISHED):
        say(f"{output.uri} is packed already; this is what it holds")
        return output.read_json(PACK_FINISHED)
    with lease(output, say=say):
        return _pack(images, output, shard_bytes, limits)


def _pack(images: str, output: Folder, shard_bytes: int, limits: Limits) -> dict[str, Any]:
    work = output.child(".pack")
    plan = manifest.load(work.child("manifest"))
    if plan is None:
        planned = _planned(images, shard_bytes)
        plan = manifest.write(
            planned, work.child("manifest"), source=images, root=root_of(images), schema=_PLANNED
        )
    done = work.child("checked").names(".parquet")
    todo = sorted(set(range(plan.parts)) - {part_number(name) for name in done})
    say(
        f"pack: {plan.images:,} images into {plan.parts:,} shards"
        + (f"; {len(done):,} shards are done" if done else "")
    )
    with ray_session():
        progress = Progress(
            "pack",
            plan.images,
            unit="images",
            done=sum(about["images"] for about in _contents(work.child("checked"))),
        )
        for counts in _in_tasks(todo, partial(pack_shard, plan=plan, output=output, limits=limits)):
            progress.add(counts["images"], quarantined=counts["quarantined"])
        reasons, with_duplicates = _find_duplicates(plan, work)
        say(
            f"pack: {sum(with_duplicates.values()):,} duplicates are left out of"
            f" {len(with_duplicates):,} shards"
        )
        for _ in _in_tasks(sorted(with_duplicates), partial(drop_duplicates, output=output)):
            pass
    _write_duplicates(sorted(with_duplicates), output)
    shards = _contents(output.child(SHARDS))
    record = {
        "images": plan.images,
        "packed": sum(shard["images"] for shard in shards),
        "duplicates": sum(with_duplicates.values()),
        "quarantined": dict(reasons.most_common()),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }
    output.write_json(PACK_FINISHED, record)
    return record


def _claim(output: Folder, settings: dict[str, Any]) -> None:
    if not output.exists(PACK_STARTED):
        if output.exists() and output.names():
            raise ConfigurationError(
                f"--output {output.uri} holds other files and no pack; give an empty or new folder"
            )
        output.write_json(PACK_STARTED, settings)
    before = output.read_json(PACK_STARTED)
    differing = sorted(
        name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name)
    )
    if differing:
        changes = "; ".join(
            f"{name} was {before.get(name)!r} and is {settings.get(name)!r}" for name in differing
        )
        raise ConfigurationError(
            f"--output {output.uri} holds another pack: {changes}. Give another output, or the"
            " settings of that one"
        )


def _planned(images: str, shard_bytes: int) -> Iterator[pa.Table]:
    """The image files below `images`, a shard's worth at a time."""
    uris: list[str] = []
    sizes: list[int] = []
    planned = others = 0
    for file in files(images):
        if not file.path.lower().endswith(tuple(EXTENSIONS)):
            others += 1
            continue
        if uris and planned + file.size > shard_bytes:
            yield pa.table({"image_uri": uris, "bytes": sizes})
            uris, sizes, planned = [], [], 0
        uris.append(quote_path(file.path))
        sizes.append(file.size)
        planned += file.size
    if not uris:
        raise ConfigurationError(
            f"--images {images} holds no image file; files that end in"
            f" {', '.join(sorted(EXTENSIONS))} are packed"
        )
    yield pa.table({"image_uri": uris, "bytes": sizes})
    if others:
        say(f"pack: {others:,} files are no image files by their names and are left out")


def _in_tasks(numbers: list[int], work: Callable[[int], pa.Table]) -> Iterator[dict[str, Any]]:
    """`work` on each number, in Ray tasks; what each gives, as it comes."""
    if numbers:
        counts: pa.Table
        for counts in dataset_of(numbers, work).iter_batches(
            batch_size=None, batch_format="pyarrow"
        ):
            yield from counts.to_pylist()


def _find_duplicates(plan: Manifest, work: Folder) -> tuple[Counter[str], dict[int, int]]:
    """Why files were quarantined; and how many duplicates each shard has, which are recorded in
    `duplicates/`. Of equals the first listed is kept.
    """
    checked = work.child("checked")
    reasons: Counter[str] = Counter()
    with Repeats() as repeats, ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, plan.parts, _READERS):
            numbers = range(start, min(plan.parts, start + _READERS))
            tables = pool.map(
                lambda number: checked.read_table(
                    part_name(number), ["image_id", "sha256", "reason"]
                ),
                numbers,
            )
            for number, table in zip(numbers, tables, strict=True):
                rows = [(number << 32 | place, row) for place, row in enumerate(table.to_pylist())]
                reasons.update(row["reason"] for _, row in rows if row["reason"] is not None)
                good = [(position, row) for position, row in rows if row["reason"] is None]
                keys = [bytes.fromhex(row["sha256"][:32]) for _, row in good]
                repeats.add(
                    keys,
                    [bytes.fromhex(row["image_id"]) for _, row in good],
                    [position for position, _ in good],
                )
        found = repeats.found()
    shards, starts = np.unique(found["position"] >> 32, return_index=True)
    for number, copies in zip(
        shards.tolist(), np.split(found, starts[1:])[: len(shards)], strict=True
    ):
        table = checked.read_table(part_name(number)).take(
            (copies["position"] & 0xFFFFFFFF).tolist()
        )
        same = pa.array([name_of(copy).hex() for copy in copies], pa.string())
        work.write_table(
            f"duplicates/{part_name(number)}",
            table.append_column("same_as", same).select(_DUPLICATES.names).cast(_DUPLICATES),
        )
    return reasons, dict(zip(shards.tolist(), np.diff([*starts, len(found)]).tolist(), strict=True))


def _write_duplicates(numbers: list[int], output: Folder) -> None:
    recorded = output.child(".pack/duplicates")
    with (
        output.writing("duplicates.parquet") as stream,
        pyarrow.parquet.ParquetWriter(stream, _DUPLICATES, compression="zstd") as writer,
    ):
        for number in numbers:
            writer.write_table(recorded.read_table(part_name(number)))


def _contents(folder: Folder) -> list[dict[str, Any]]:
    """Name, images and bytes of each Parquet file."""

    def about(entry: Entry) -> dict[str, Any]:
        images = folder.read_parquet(entry.name, lambda file: file.metadata.num_rows)
        return {"name": entry.name, "images": images, "bytes": entry.size}

    return list(in_parallel(about, folder.entries(".parquet")))


def table(record: dict[str, Any], output: Folder) -> str:
    """The record for a terminal."""
    sizes = sorted(shard["bytes"] for shard in record["shards"])
    spread = f", {sizes[0] / 1e6:,.1f} to {sizes[-1] / 1e6:,.1f} MB each" if sizes else ""
    lines = [
        f"{record['images']:,} image files",
        f"  {record['packed']:,} in {len(sizes):,} shards ({record['bytes'] / 1e6:,.1f}"
        f" MB{spread})",
        f"  {record['duplicates']:,} duplicates (duplicates.parquet)",
        *(f"  {count:,} quarantined: {reason}" for reason, count in record["quarantined"].items()),
        f"take them with --images {output.uri}",
    ]
    return "\n".join(lines)
