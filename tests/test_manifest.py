"""The list of images: every image in one part, the same parts whatever number is asked for, and no half a list."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import image_id_of
from mpa_ray.inputs import manifest
from mpa_ray.parts import read_images
from mpa_ray.storage import Folder


def make_images(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(b"")
    return [str(folder / f"{number:04d}.png") for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 13, 25])
def test_parts_hold_every_image_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(manifest, "_PARTS_PER_FILE", 3)
    uris = make_images(tmp_path / "images", count)
    built = manifest.build(str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=4)
    assert (built.images, built.parts) == (count, -(-count // 4))
    parts = [built.part(number) for number in range(built.parts)]
    assert all(part.num_rows == 4 for part in parts[:-1])
    assert [uri for part in parts for uri in part.column("image_uri").to_pylist()] == uris
    assert [image_id for part in parts for image_id in part.column("image_id").to_pylist()] == [image_id_of(uri) for uri in uris]
    assert manifest.load(Folder.at(tmp_path / "manifest")) == built


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    built = manifest.build(str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=4)
    assert built.part(0).column("image_uri").to_pylist() == [f"{tmp_path}/images/%FF.png"]


def test_an_interrupted_list_is_none(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    folder = Folder.at(tmp_path / "manifest")
    assert manifest.load(folder) is None
    manifest.build(str(tmp_path / "images"), folder, images_per_part=2)
    folder.delete("index.json")
    assert manifest.load(folder) is None


def test_a_list_of_other_images_is_not_taken(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    folder = Folder.at(tmp_path / "manifest")
    built = manifest.build(str(tmp_path / "images"), folder, images_per_part=2)
    assert manifest.load(folder, source=str(tmp_path / "images")) == built
    assert manifest.load(folder, source=str(tmp_path / "others")) is None


def test_a_list_of_nothing_is_refused_and_leaves_nothing_finished(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder = Folder.at(tmp_path / "manifest")
    with pytest.raises(ConfigurationError, match="holds no image"):
        manifest.build(str(tmp_path / "images"), folder, images_per_part=2)
    assert manifest.load(folder) is None


def test_what_a_list_names_twice_is_there_once_and_each_repeat_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PARTS_PER_FILE", 2)
    make_images(tmp_path / "images", 4)
    named = ["0001.png", "0000.png", "0001.png", f"{tmp_path}/images/0001.png", "../secret.png", "../secret.png", None, None, "0003.png"]
    pq.write_table(pa.table({"path": named}), tmp_path / "images" / "list.parquet")
    built = manifest.build(str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=3)
    rows = [row for part in range(built.parts) for row in read_images(part, manifest=built, max_image_bytes=10).to_pylist()]
    # The folder's own four come first, so all that the list names of them is a repeat.
    assert [Path(row["image_uri"]).name.removeprefix("list.parquet") for row in rows] == [
        *("0000.png", "0001.png", "0002.png", "0003.png"),
        *("0001.png#duplicate=1", "0000.png#duplicate=1", "0001.png#duplicate=2", "0001.png#duplicate=3"),
        *("secret.png#outside_root", "secret.png#outside_root&duplicate=1", "#uri_row=6", "#uri_row=7", "0003.png#duplicate=1"),
    ]
    assert built.images == len(rows) == len({row["image_id"] for row in rows})
    assert all(row["image_id"] == image_id_of(row["image_uri"]) for row in rows)
    reasons = [row["reason"] for row in rows]
    assert reasons == [None] * 4 + ["duplicate_reference"] * 4 + [
        "outside_root",
        "duplicate_reference",
        "missing",
        "missing",
        "duplicate_reference",
    ]
    # The parts and files are cut as without repeats.
    assert [built.part(number).num_rows for number in range(built.parts)] == [3, 3, 3, 3, 1]


def test_an_interrupted_list_leaves_nothing_behind(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    folder = Folder.at(tmp_path / "manifest")
    folder.write_bytes("00007.parquet", b"stale")
    manifest.build(str(tmp_path / "images"), folder, images_per_part=2)
    assert folder.names() == ["00000.parquet", "index.json"]


def test_a_long_listing_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mpa_ray.progress._EVERY_S", 0.0)
    make_images(tmp_path / "images", 5)
    manifest.build(str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=2)
    assert f"listing {tmp_path}/images: 4 images so far" in capsys.readouterr().out
