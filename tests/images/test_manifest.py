"""The list of images: every image in one part, the same parts whatever number is asked for, and no
half a list.
"""

import io
import os
import tarfile
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.images.decode import draw_key_of, image_id_of
from mpa_ray.images.finding import Found
from mpa_ray.images.parts import read_images
from mpa_ray.images.sources import listed_images
from mpa_ray.storage.folder import Folder
from s3 import put

# So large that only the number of images bounds a part.
LARGE = {"bytes_per_part": 2**28, "max_image_bytes": 2**26}


def make_images(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(b"")
    return [str(folder / f"{number:04d}.png") for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 13, 25])
def test_parts_hold_every_image_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(manifest, "_PARTS_PER_FILE", 3)
    uris = make_images(tmp_path / "images", count)
    built = manifest.build(
        str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=4, **LARGE
    )
    assert (built.images, built.parts) == (count, -(-count // 4))
    parts = [built.part(number) for number in range(built.parts)]
    assert all(part.num_rows == 4 for part in parts[:-1])
    assert [uri for part in parts for uri in part.column("image_uri").to_pylist()] == uris
    assert [image_id for part in parts for image_id in part.column("image_id").to_pylist()] == [
        image_id_of(uri) for uri in uris
    ]
    assert manifest.load(Folder.at(tmp_path / "manifest")) == built


def draw_keys(images: Path, folder: Folder) -> dict[str, str]:
    """Of each image below `images`, by its name: the key that draws go by."""
    built = manifest.build(str(images), folder, images_per_part=3, **LARGE)
    uris = [
        uri
        for part in range(built.parts)
        for uri in built.part(part).column("image_uri").to_pylist()
    ]
    keys = {uri.rpartition("/")[2]: draw_key_of(uri, built.root) for uri in uris}
    assert len(set(keys.values())) == len(uris)
    return keys


def tree(root: Path) -> Path:
    """An image file, a tar, a Parquet file of images and a list of URIs, each with what lies below
    it.
    """
    (root / "a #1/b").mkdir(parents=True)
    for name in ("x.png", "a #1/b/y%.png"):
        (root / name).write_bytes(b"")
    with tarfile.open(root / "t.tar", "w") as archive:
        archive.add(root / "x.png", "z.png")
    pq.write_table(pa.table({"image": [b"1", b"2"]}), root / "rows.parquet")
    pq.write_table(
        pa.table({"uri": ["u.png", f"{root}/v.png", "s3://bucket/w.png"]}), root / "uris.parquet"
    )
    return root


def test_draws_go_by_where_an_image_is_in_its_source(tmp_path: Path) -> None:
    here, there = tree(tmp_path / "here"), tree(tmp_path / "over/there ü")
    first = draw_keys(here, Folder.at(tmp_path / "1"))
    assert len(first) == 8 and first == draw_keys(there, Folder.at(tmp_path / "2"))
    assert first["x.png"] == "3910c6508d0ae9c1470b97d366bc1355"
    alone = draw_keys(here / "x.png", Folder.at(tmp_path / "3"))
    assert alone == {"x.png": first["x.png"]}, "one file as the source is as in its folder"
    assert draw_keys(here / "a #1", Folder.at(tmp_path / "4"))["y%25.png"] != first["y%25.png"]


def test_draws_in_s3_go_by_the_key_below_the_prefix(tmp_path: Path, bucket: str) -> None:
    first = draw_keys(tree(tmp_path / "here"), Folder.at(tmp_path / "1"))
    put(bucket, {"my photos/x.png": b"", "my photos/a #1/b/y%.png": b""})
    built = manifest.build(
        f"s3://{bucket}/my%20photos/", Folder.at(tmp_path / "2"), images_per_part=3, **LARGE
    )
    assert built.part(0).column("image_uri").to_pylist()[1] == f"s3://{bucket}/my%20photos/x.png"
    rows = read_images(0, manifest=built, max_image_bytes=100).to_pylist()
    assert rows[1]["draw_key"] == first["x.png"]


def test_a_list_made_before_keeps_its_draws(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 2)
    folder = Folder.at(tmp_path / "manifest")
    manifest.build(str(tmp_path / "images"), folder, images_per_part=2, **LARGE)
    folder.write_json(
        "index.json",
        {name: value for name, value in folder.read_json("index.json").items() if name != "root"},
    )
    listed = manifest.load(folder, source=f"{tmp_path}/images/")
    assert listed is not None, "it is the same folder, however it is written"
    for row in read_images(0, manifest=listed, max_image_bytes=100).to_pylist():
        assert row["draw_key"] == row["image_id"] == image_id_of(row["image_uri"])


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    built = manifest.build(
        str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=4, **LARGE
    )
    assert built.part(0).column("image_uri").to_pylist() == [f"{tmp_path}/images/%FF.png"]


def test_an_interrupted_list_is_none(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    folder = Folder.at(tmp_path / "manifest")
    assert manifest.load(folder) is None
    manifest.build(str(tmp_path / "images"), folder, images_per_part=2, **LARGE)
    folder.delete("index.json")
    assert manifest.load(folder) is None


def test_a_list_of_other_images_is_not_taken(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    folder = Folder.at(tmp_path / "manifest")
    built = manifest.build(str(tmp_path / "images"), folder, images_per_part=2, **LARGE)
    assert manifest.load(folder, source=str(tmp_path / "images")) == built
    assert manifest.load(folder, source=str(tmp_path / "others")) is None


def test_a_list_of_nothing_is_refused_and_leaves_nothing_finished(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder = Folder.at(tmp_path / "manifest")
    with pytest.raises(ConfigurationError, match="holds no image"):
        manifest.build(str(tmp_path / "images"), folder, images_per_part=2, **LARGE)
    assert manifest.load(folder) is None


def test_what_a_list_names_twice_is_there_once_and_each_repeat_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_PARTS_PER_FILE", 2)
    make_images(tmp_path / "images", 4)
    named = [
        "0001.png",
        "0000.png",
        "0001.png",
        f"{tmp_path}/images/0001.png",
        "../secret.png",
        "../secret.png",
        None,
        None,
        "0003.png",
    ]
    pq.write_table(pa.table({"path": named}), tmp_path / "images" / "list.parquet")
    built = manifest.build(
        str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=3, **LARGE
    )
    rows = [
        row
        for part in range(built.parts)
        for row in read_images(part, manifest=built, max_image_bytes=10).to_pylist()
    ]
    # The folder's own four come first, so all that the list names of them is a repeat.
    assert [Path(row["image_uri"]).name.removeprefix("list.parquet") for row in rows] == [
        *("0000.png", "0001.png", "0002.png", "0003.png"),
        *(
            "0001.png#duplicate=1",
            "0000.png#duplicate=1",
            "0001.png#duplicate=2",
            "0001.png#duplicate=3",
        ),
        *(
            "secret.png#outside_root",
            "secret.png#outside_root&duplicate=1",
            "#uri_row=6",
            "#uri_row=7",
            "0003.png#duplicate=1",
        ),
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
    manifest.build(str(tmp_path / "images"), folder, images_per_part=2, **LARGE)
    assert folder.names() == ["00000.parquet", "index.json"]


def test_a_long_listing_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mpa_ray.observability.progress._EVERY_S", 0.0)
    make_images(tmp_path / "images", 5)
    manifest.build(
        str(tmp_path / "images"), Folder.at(tmp_path / "manifest"), images_per_part=2, **LARGE
    )
    assert f"listing {tmp_path}/images: 4 images so far" in capsys.readouterr().out


def cut(folder: Path, images: Path, **bounds: int) -> list[list[str]]:
    """The names of the images of each part."""
    bounds = {"images_per_part": 100, "bytes_per_part": 100, "max_image_bytes": 1000} | bounds
    built = manifest.build(str(images), Folder.at(folder / "manifest"), **bounds)
    parts = [built.part(number).column("image_uri").to_pylist() for number in range(built.parts)]
    assert manifest.load(Folder.at(folder / "manifest"), source=str(images)) == built, (
        "what a resume takes"
    )
    return [[uri.removeprefix(f"{images}/") for uri in part] for part in parts]


def write_sizes(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.png").write_bytes(bytes(size))
    return folder


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        pytest.param(
            [30, 30, 30, 30, 30, 30, 30], ["012", "345", "6"], id="large files make smaller parts"
        ),
        pytest.param([50, 50, 50, 50, 1], ["01", "23", "4"], id="as many bytes as the bound fit"),
        pytest.param(
            [10, 101, 10, 500, 0, 0],
            ["0", "1", "2", "3", "45"],
            id="an image over the bound is a part of its own",
        ),
        pytest.param(
            [1, 1, 1, 1, 1, 1, 60, 60], ["0123", "456", "7"], id="as many images as the other bound"
        ),
    ],
)
def test_a_part_has_no_more_bytes_than_its_bound(
    tmp_path: Path, sizes: list[int], parts: list[str]
) -> None:
    images = write_sizes(tmp_path / "images", sizes)
    assert cut(tmp_path, images, images_per_part=4) == [
        [f"{number}.png" for number in part] for part in parts
    ]


@given(
    st.lists(st.integers(0, 30), min_size=1),
    st.integers(1, 8),
    st.integers(1, 100),
    st.integers(1, 40),
)
def test_parts_are_as_large_as_they_may_be_and_no_larger(
    sizes: list[int], images: int, held: int, largest: int
) -> None:
    found = [Found(str(number), size) for number, size in enumerate(sizes)]
    parts = list(
        manifest.cut(found, images_per_part=images, bytes_per_part=held, max_image_bytes=largest)
    )
    assert [uri for part in parts for uri in part.column("image_uri").to_pylist()] == [
        uri for uri, _ in found
    ]
    counted = [
        [min(sizes[int(uri)], largest) for uri in part.column("image_uri").to_pylist()]
        for part in parts
    ]
    assert all(len(part) <= images and (sum(part) <= held or len(part) == 1) for part in counted)
    assert all(
        len(part) == images or sum(part) + after[0] > held for part, after in pairwise(counted)
    )


def test_a_file_that_will_not_be_read_counts_no_more_than_one_that_is(tmp_path: Path) -> None:
    assert cut(
        tmp_path, write_sizes(tmp_path / "images", [10, 5000, 60, 10]), max_image_bytes=30
    ) == [["0.png", "1.png", "2.png", "3.png"]]


def test_members_of_tars_count(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "images/a.tar", "w") as archive:
        for number, size in enumerate([60, 30, 20, 70]):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    parts = cut(tmp_path, tmp_path / "images")
    assert [[uri[-5:] for uri in part] for part in parts] == [
        ["0.png", "1.png"],
        ["2.png", "3.png"],
    ]


@pytest.mark.parametrize("struct", [False, True])
def test_images_in_parquet_count(tmp_path: Path, struct: bool) -> None:
    (tmp_path / "images").mkdir()
    # The first row group of eight holds 8 images of 10,000 bytes, the second small ones.
    contents = [bytes([n]) * (10_000 if n < 8 else 100) for n in range(16)]
    images = [{"bytes": content, "path": "x"} for content in contents] if struct else contents
    table = pa.table({"image": images, "caption": ["long" * 1000] * 16})
    pq.write_table(
        table,
        tmp_path / "images/a.parquet",
        row_group_size=8,
        use_dictionary=False,
        write_statistics=False,
    )
    parts = cut(tmp_path, tmp_path / "images", bytes_per_part=31_000, max_image_bytes=10**6)
    assert [len(part) for part in parts] == [3, 3, 10]
    rows = [f"row_group={group}&row={row}" for group in range(2) for row in range(8)]
    assert [uri.partition("#")[2] for part in parts for uri in part] == rows


def test_what_has_no_known_size_is_cut_by_the_number_of_images(tmp_path: Path) -> None:
    write_sizes(tmp_path / "elsewhere", [90] * 5)
    (tmp_path / "images").mkdir()
    named = [f"{tmp_path}/elsewhere/{number}.png" for number in range(5)]
    pq.write_table(pa.table({"path": named}), tmp_path / "images/list.parquet")
    assert [len(part) for part in cut(tmp_path, tmp_path / "images", images_per_part=2)] == [
        2,
        2,
        1,
    ]
    assert len(cut(tmp_path, tmp_path / "images")) == 1


def test_a_resume_takes_the_parts_that_were_cut(tmp_path: Path) -> None:
    """Also where the images have changed since."""
    config = Config(
        images=str(write_sizes(tmp_path / "images", [60, 60, 30, 30])),
        output=str(tmp_path / "run"),
        bytes_per_part=100,
    )
    output = Folder.at(config.output)
    first = listed_images(config, output)
    parts = [first.part(number) for number in range(first.parts)]
    assert [part.num_rows for part in parts] == [1, 2, 1]
    write_sizes(tmp_path / "images/more", [1, 1])
    (tmp_path / "images/0.png").write_bytes(b"")
    again = listed_images(config, output)
    assert again == first and [again.part(number) for number in range(again.parts)] == parts
