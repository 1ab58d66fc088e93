"""Packing: every file is in a shard, a duplicate, or quarantined; ids stay; an interrupted call
resumes.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.pack import number_of_bytes
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.images.decode import image_id_of
from mpa_ray.images.finding import PACKED, find
from mpa_ray.images.parts import read_images
from mpa_ray.images.references import fetch
from mpa_ray.schema import Reason
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.pack import pack as packing
from mpa_ray.tools.pack import shards
from mpa_ray.tools.pack.pack import pack, table
from s3 import put

LIMITS = {"max_image_pixels": 10**6, "max_image_bytes": 50_000, "max_decode_seconds": 30}


def picture(number: int, side: int = 60) -> bytes:
    """A JPEG of some kilobytes, its own for each number."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 40 + number).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = [picture(number) for number in range(24)]
FILES = {f"{number % 3}/{number:02d}.jpg": data for number, data in enumerate(PICTURES)} | {
    "0/again.jpg": PICTURES[0],
    "2/once more.JPG": PICTURES[0],
    "2/zz.jpg": PICTURES[1],
    "bad/cut.jpg": PICTURES[2][:900],
    "bad/empty.png": b"",
    "bad/large.png": bytes(50_001),
    "bad/text.jpg": b"<html>404</html>",
    "notes.txt": b"-",
}
BAD = {
    "bad/cut.jpg": "truncated",
    "bad/empty.png": "empty",
    "bad/large.png": "too_many_bytes",
    "bad/text.jpg": "not_an_image",
}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray."""

    def here(numbers: list[int], work: Callable[[int], pa.Table]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            yield from work(number).to_pylist()

    monkeypatch.setattr(packing, "_in_tasks", here)
    monkeypatch.setattr(packing, "ray_session", nullcontext)


def write(folder: Path, files: dict[str, bytes] = FILES) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def packed(images: str, output: Folder) -> dict[str, Any]:
    return pack(images, output, shard_bytes=20_000, **LIMITS)


def rows(folder: Folder) -> list[dict[str, Any]]:
    return [row for found in folder.tables() for row in found.to_pylist()]


def assert_packed(
    images: str, output: Folder, record: dict[str, Any], files: dict[str, bytes]
) -> None:
    """Shards + duplicates + quarantine = the image files, each once, with the ids they had."""
    by_name = {
        row["image_uri"].removeprefix(f"{images}/").replace("%20", " "): row
        for row in rows(output.child("shards"))
    }
    duplicates = {
        row["image_uri"].removeprefix(f"{images}/").replace("%20", " "): row
        for row in output.read_table("duplicates.parquet").to_pylist()
    }
    rejected = {
        row["image_uri"].removeprefix(f"{images}/"): row for row in rows(output.child("quarantine"))
    }
    assert sorted([*by_name, *duplicates, *rejected]) == sorted(
        name for name in files if not name.endswith(".txt")
    )
    assert {name: row["reason"] for name, row in rejected.items()} == BAD
    assert set(duplicates) == {"0/again.jpg", "2/once more.JPG", "2/zz.jpg"}
    first = {name: row["image_id"] for name, row in by_name.items()}
    assert [
        duplicates[name]["same_as"] for name in ("0/again.jpg", "2/once more.JPG", "2/zz.jpg")
    ] == [
        first["0/00.jpg"],
        first["0/00.jpg"],
        first["1/01.jpg"],
    ]
    for name, row in by_name.items():
        assert row["image"] == {"bytes": files[name], "path": row["image_uri"]} and row[
            "image_id"
        ] == image_id_of(row["image_uri"])
    assert (
        record["images"] == 31
        and record["packed"] == 24
        and record["duplicates"] == 3
        and sum(record["quarantined"].values()) == 4
    )
    assert sum(shard["images"] for shard in record["shards"]) == 24 and len(record["shards"]) > 2


def test_a_folder_is_packed_by_ray(tmp_path: Path, ray_session: None) -> None:
    images, output = write(tmp_path / "in"), Folder.at(tmp_path / "out")
    record = packed(images, output)
    assert_packed(images, output, record, FILES)
    assert "24 in" in table(record, output)
    # The same call again has nothing to do.
    assert packed(images, output) == record


@pytest.mark.usefixtures("in_this_process")
def test_ids_and_bytes_are_those_of_the_loose_files(tmp_path: Path) -> None:
    images, output = write(tmp_path / "in"), Folder.at(tmp_path / "out")
    packed(images, output)
    # Whoever takes the packed folder gets its shards and not its records.
    built = manifest.build(
        output.uri,
        Folder.at(tmp_path / "manifest"),
        images_per_part=5,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    found = {
        row["image_id"]: row
        for part in range(built.parts)
        for row in read_images(part, manifest=built, max_image_bytes=10**6).to_pylist()
    }
    assert len(found) == built.images == 24
    for name, data in list(FILES.items())[:24]:
        assert found[image_id_of(f"{images}/{name}")]["image"] == data


@pytest.mark.usefixtures("in_this_process")
def test_a_packed_folder_draws_as_the_loose_one_wherever_it_lies(tmp_path: Path) -> None:
    def keys(source: Path, name: str) -> dict[str, str]:
        folder = Folder.at(tmp_path / name)
        built = manifest.build(
            str(source), folder, images_per_part=50, bytes_per_part=2**28, max_image_bytes=2**26
        )
        return {
            row["image_id"]: row["draw_key"]
            for row in read_images(0, manifest=built, max_image_bytes=10**6).to_pylist()
        }

    images = write(tmp_path / "in")
    packed(images, Folder.at(tmp_path / "out"))
    loose, shards = keys(images, "1"), keys(tmp_path / "out", "2")
    assert len(shards) == 24 and shards.items() <= loose.items()
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    assert keys(tmp_path / "moved", "3") == shards
    # Two packed folders below one root may hold images of one name.
    shutil.copytree(tmp_path / "out/shards", tmp_path / "both/one")
    packed(write(tmp_path / "others"), Folder.at(tmp_path / "others_packed"))
    shutil.copytree(tmp_path / "others_packed/shards", tmp_path / "both/two")
    both = keys(tmp_path / "both", "4")
    assert len(both) == len(set(both.values())) == 48


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("bound", "value"), [("_ROWS_AT_ONCE", 3), ("_BYTES_AT_ONCE", 2_000)])
def test_a_shard_of_many_pieces_is_whole(
    bound: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, bound, value)
    images, output = write(tmp_path / "images"), Folder.at(tmp_path / "out")
    assert_packed(images, output, packed(images, output), FILES)


def test_a_piece_is_bounded_in_rows_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(shards, "_BYTES_AT_ONCE", 100)

    def pieces(*sizes: int) -> list[list[int]]:
        return [
            [row["bytes"] for row in piece]
            for piece in shards._pieces([{"bytes": size} for size in sizes], 200)
        ]

    assert pieces() == []
    assert pieces(1, 1, 1) == [[1, 1, 1]] and pieces(1, 1, 1, 1) == [[1, 1, 1], [1]]
    assert pieces(50, 50) == [[50, 50]] and pieces(50, 51, 1) == [[50], [51, 1]]
    assert pieces(150, 1) == [[150], [1]], "one that is over the bound alone is a piece"
    assert pieces(99, 201, 1) == [[99, 201, 1]], "what is too large for an image is not read"


@pytest.mark.usefixtures("in_this_process")
def test_shards_are_of_the_size_asked_for(tmp_path: Path) -> None:
    images, output = (
        write(tmp_path / "in", {f"{n:03d}.jpg": picture(n, 30 + n) for n in range(60)}),
        Folder.at(tmp_path / "out"),
    )
    sizes = [shard["bytes"] for shard in packed(images, output)["shards"]]
    assert len(sizes) > 4 and all(13_000 < size < 25_000 for size in sizes[:-1])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("at", [1, 2, 5, 12, 20, 23])
def test_an_interrupted_call_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    images, output = write(tmp_path / "in"), Folder.at(tmp_path / "out")
    writes, original = [], Folder.write_bytes

    def failing(folder: Folder, name: str, data: bytes) -> None:
        writes.append(name)
        if len(writes) == at:
            raise OSError(28, "No space left on device")
        original(folder, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_bytes", failing)
        try:
            packed(images, output)
        except OSError:
            with pytest.raises(
                ConfigurationError,
                match="unfinished pack"
                if output.exists("pack.json")
                else "holds no image|does not exist",
            ):
                list(find(output.uri))
    assert_packed(images, output, packed(images, output), FILES)


@pytest.mark.usefixtures("in_this_process")
def test_shards_that_are_done_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = write(tmp_path / "in"), Folder.at(tmp_path / "out")
    packed(images, output)
    output.delete("index.json")
    monkeypatch.setattr(packing, "files", None)
    monkeypatch.setattr("mpa_ray.tools.pack.shards._checked", None)
    assert_packed(images, output, packed(images, output), FILES)


@pytest.mark.usefixtures("in_this_process")
def test_from_s3_to_s3(bucket: str) -> None:
    put(bucket, {f"in/{name}": data for name, data in FILES.items()})
    images, output = f"s3://{bucket}/in", Folder.at(f"s3://{bucket}/out")
    assert_packed(images, output, packed(images, output), FILES)
    references = [reference for reference, _ in find(output.uri)]
    assert references[0].startswith(
        f"s3://{bucket}/out/shards/shard-00000000.parquet#row_group=0&row=0&image_id="
    )
    assert sorted(fetch(references, max_image_bytes=10**6)) == sorted(PICTURES)


@pytest.mark.usefixtures("in_this_process")
def test_what_is_refused(tmp_path: Path) -> None:
    images = write(tmp_path / "in")
    with pytest.raises(ConfigurationError, match="holds other files and no pack"):
        packed(images, Folder.at(images))
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigurationError, match="holds no image file"):
        packed(str(tmp_path / "none"), Folder.at(tmp_path / "out"))
    output = Folder.at(tmp_path / "out2")
    packed(images, output)
    with pytest.raises(
        ConfigurationError, match="holds another pack: shard_bytes was 20000 and is 10000"
    ):
        pack(images, output, shard_bytes=10_000, **LIMITS)


@pytest.mark.parametrize("ids", [["x"], [None], [7], ["../../etc/passwd"], ["A" * 32]])
def test_ids_in_a_shard_that_are_none_are_refused(tmp_path: Path, ids: list) -> None:
    shard = pa.table(
        {"image_id": ids, "image_uri": ["/a.png"], "image": [b"x"]}
    ).replace_schema_metadata(PACKED)
    pq.write_table(shard, tmp_path / "shard.parquet")
    with pytest.raises(ConfigurationError, match="is no image_id; the shard was changed"):
        list(find(str(tmp_path)))


def test_ids_of_other_parquet_files_are_not_taken(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["0" * 32], "image": [b"x"]}), tmp_path / "a.parquet")
    assert [reference for reference, _ in find(str(tmp_path))] == [
        f"{tmp_path}/a.parquet#row_group=0&row=0"
    ]


def test_two_copies_of_a_shard_are_one_image_twice(tmp_path: Path) -> None:
    shard = pa.table(
        {"image_id": ["0" * 32], "image_uri": ["/a.png"], "image": [b"x"]}
    ).replace_schema_metadata(PACKED)
    for name in ("a", "b"):
        pq.write_table(shard, tmp_path / f"{name}.parquet")
    built = manifest.build(
        str(tmp_path),
        Folder.at(tmp_path / "manifest"),
        images_per_part=5,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    first, second = read_images(0, manifest=built, max_image_bytes=100).to_pylist()
    assert first["image"] == b"x" and first["image_id"] == "0" * 32
    assert second["reason"] == Reason.DUPLICATE_REFERENCE and second["image_id"] != "0" * 32


def test_sizes() -> None:
    assert [number_of_bytes(text) for text in ("256MB", "1 GiB", "4096", "2kb")] == [
        256_000_000,
        2**30,
        4096,
        2000,
    ]
    for text in ("", "MB", "0", "-1MB", "1.5GB", "1TB"):
        with pytest.raises(Exception, match="is no number of bytes"):
            number_of_bytes(text)
