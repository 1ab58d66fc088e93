"""Finding images in folders, Parquet and tars, and reading them: hostile names, lists that point
elsewhere, damaged containers.
"""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import finding
from mpa_ray.images.decode import UnreadableImage, image_id_of
from mpa_ray.images.finding import find
from mpa_ray.images.references import fetch, quote_path
from mpa_ray.images.uri_lists import Roots, absolute
from mpa_ray.schema import Reason

LIMIT = 10_000


def read(images: Path | str) -> list[bytes | Reason]:
    """What every image under `images` comes to: its bytes, or the reason it is quarantined for."""
    references = [reference for reference, _ in find(str(images))]
    assert len(set(references)) == len(references), "each image is known by a reference of its own"
    for reference in references:
        reference.encode()
    contents = fetch(references, max_image_bytes=LIMIT)
    for content in contents:
        if isinstance(content, UnreadableImage):
            content.detail.encode()
    return [
        content.reason if isinstance(content, UnreadableImage) else content for content in contents
    ]


def write(path: Path | str | bytes, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(content)


def parquet(path: Path, column: str, values: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: values}), path, **options)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_folder_is_walked_in_order_and_only_images_are_taken(tmp_path: Path) -> None:
    for name in (
        "b/2.PNG",
        "a.jpeg",
        "b/1.webp",
        "notes.txt",
        ".hidden.png",
        ".git/x.png",
        "noextension",
        "c.jpg.part",
    ):
        write(tmp_path / name, name.encode())
    assert [reference for reference, _ in find(str(tmp_path))] == [
        str(tmp_path / name) for name in ("a.jpeg", "b/1.webp", "b/2.PNG")
    ]
    assert read(tmp_path) == [b"a.jpeg", b"b/1.webp", b"b/2.PNG"]


def test_a_single_file_is_taken_by_itself(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"x")
    write(tmp_path / "b.png", b"y")
    assert read(tmp_path / "a.png") == [b"x"]
    assert read(f"file://{tmp_path}/a.png") == [b"x"]


HOSTILE = [
    "per%20cent.png",
    "100%.png",
    "hash#offset=0&size=3.png",
    "a b.png",
    "new\nline.png",
    "quote\"'.png",
    "amp&eq=1.png",
    "q?x=1.png",
    "star*[0].png",
    "ünïcödé 图.png",
    "-rf.png",
    "back\\slash.png",
    "\x01control.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"the right one")
    assert read(tmp_path) == [b"the right one"]


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    write(os.fsencode(tmp_path) + b"/\xff\xfe%.png", b"no utf-8")
    write(os.fsencode(tmp_path) + b"/dir\xe9/x.png", b"in a folder")
    references = [reference for reference, _ in find(str(tmp_path))]
    assert references == [f"{tmp_path}/dir%E9/x.png", f"{tmp_path}/%FF%FE%25.png"]
    assert pa.array(references).to_pylist() == references
    assert read(tmp_path) == [b"in a folder", b"no utf-8"]


def test_containers_whose_names_are_no_text_are_read(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", "image", [b"row"]).rename(
        os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")
    )
    tar(tmp_path / "a.tar", {"x.png": b"member"}).rename(
        os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")
    )
    assert read(tmp_path) == [b"row", b"member"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1) | st.binary(min_size=1).map(os.fsdecode))
def test_a_quoted_path_is_text_without_fragment_and_comes_back(name: str) -> None:
    from urllib.parse import unquote

    for prefix in ("/data/", "s3://bucket/"):
        quoted = quote_path(prefix + name)
        quoted.encode()
        assert "#" not in quoted
        assert unquote(quoted, errors="surrogateescape") == prefix + name


def test_a_file_that_goes_away_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"x")
    references = [reference for reference, _ in find(str(tmp_path))]
    (tmp_path / "a.png").unlink()
    [content] = fetch(references, max_image_bytes=LIMIT)
    assert isinstance(content, UnreadableImage) and content.reason == Reason.MISSING


def test_sizes_are_told_where_the_listing_knows_them(tmp_path: Path) -> None:
    write(tmp_path / "a.png", bytes(700))
    tar(tmp_path / "b.tar", {"x.png": bytes(800), "../out.png": bytes(900)})
    parquet(tmp_path / "c.parquet", "url", ["a.png"])
    (tmp_path / "d.png").symlink_to("nowhere.png")
    assert [size for _, size in find(str(tmp_path))] == [700, 800, 0, 0, 0]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_row_of_parquet_has_the_mean_size_of_its_row_group(
    tmp_path: Path, compression: str
) -> None:
    """Of the image column alone, all its fields, and as it is in memory."""
    rows = [bytes([n]) * 10_000 for n in range(3)] + [b"x" * 50]
    structs = [{"bytes": row, "path": "p" * 1000} for row in rows]
    columns = {
        "caption": ["long" * 10_000] * 4,
        "image": structs,
        "image_embedding": [list(range(5000))] * 4,
    }
    options = {
        "row_group_size": 2,
        "use_dictionary": False,
        "write_statistics": False,
        "compression": compression,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", **options)
    pq.write_table(pa.table({"image": rows}), tmp_path / "b.parquet", **options)
    struct, binary = (
        np.array([size for _, size in find(str(tmp_path / name))])
        for name in ("a.parquet", "b.parquet")
    )
    # Some bytes of a page's header are shared out, too.
    assert np.allclose(struct, [11_000, 11_000, 6_025, 6_025], atol=100)
    assert np.allclose(binary, [10_000, 10_000, 5_025, 5_025], atol=100)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.png", bytes(LIMIT))
    write(tmp_path / "b.png", bytes(LIMIT + 1))
    assert read(tmp_path) == [bytes(LIMIT), Reason.TOO_MANY_BYTES]


def test_parquet_with_images(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", "image", [b"1", b"2", None, b"4", b"5"], row_group_size=2)
    parquet(
        tmp_path / "b.parquet",
        "image",
        [{"bytes": b"6", "path": "/etc/passwd"}, {"bytes": None, "path": "/etc/passwd"}],
    )
    assert read(tmp_path) == [b"1", b"2", Reason.MISSING, b"4", b"5", b"6", Reason.MISSING]
    # In any order and number: rows are fetched by where they are.
    references = [reference for reference, _ in find(str(tmp_path))]
    assert fetch([references[4], references[0]], max_image_bytes=LIMIT) == [b"5", b"1"]


def test_tar_members_are_read_where_they_lie_and_never_extracted(tmp_path: Path) -> None:
    members = {
        "a.png": b"first",
        "../../x.png": b"second",
        "/etc/y.png": b"third",
        "n#&=%\n.png": b"fourth",
        "a.txt": b"-",
        "z.png": b"",
    }
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in/a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    assert read(tmp_path / "in") == [
        b"first",
        Reason.OUTSIDE_ROOT,
        Reason.OUTSIDE_ROOT,
        b"fourth",
        b"",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/y.png").exists() and not (tmp_path.parent / "x.png").exists()


def test_tar_members_that_are_no_files_are_never_opened(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.DIRTYPE,
        ):
            member = tarfile.TarInfo("same.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    # A folder is no image, whatever its name.
    assert read(tmp_path) == [Reason.MISSING] * 5


def test_tar_members_over_the_bound_are_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"a.png": bytes(LIMIT + 1), "b.png": b"small"})
    assert read(tmp_path) == [Reason.TOO_MANY_BYTES, b"small"]


def test_a_uri_column(tmp_path: Path) -> None:
    write(tmp_path / "in/data/x 100%#.png", b"relative")
    write(tmp_path / "in/other/y.png", b"below images")
    write(tmp_path / "secret.png", b"outside")
    (tmp_path / "in/data/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in/data/linked").symlink_to(tmp_path)
    (tmp_path / "in/data/deep/b/c").mkdir(parents=True)
    (tmp_path / "in/data/up").symlink_to(tmp_path / "in/data/deep/b/c")
    values = {
        "x 100%#.png": b"relative",
        "./deep/../x 100%#.png": b"relative",
        f"{tmp_path}/in/data/x 100%#.png": b"relative",
        f"file://{tmp_path}/in/data/x 100%#.png": b"relative",
        "../other/y.png": b"below images",
        "gone.png": Reason.MISSING,
        "": Reason.MISSING,
        None: Reason.MISSING,
        "nul\0.png": Reason.MISSING,
        "x" * 5000 + ".png": Reason.MISSING,
        "http://example.com/x.png": Reason.MISSING,
        "deep": Reason.MISSING,
        f"{tmp_path}/secret.png": Reason.OUTSIDE_ROOT,
        f"file://{tmp_path}/secret.png": Reason.OUTSIDE_ROOT,
        f"file://file://{tmp_path}/secret.png": Reason.MISSING,
        "../../secret.png": Reason.OUTSIDE_ROOT,
        "link.png": Reason.OUTSIDE_ROOT,
        "linked/secret.png": Reason.OUTSIDE_ROOT,
        # `..` is taken off before links are followed, as it is when the file is opened: the other
        # way round this would lie in deep/.
        "up/../../../secret.png": Reason.OUTSIDE_ROOT,
        "..": Reason.OUTSIDE_ROOT,
        "%2e%2e/%2e%2e/secret.png": Reason.MISSING,
        "/etc/passwd": Reason.OUTSIDE_ROOT,
        f"{tmp_path}/in/data/../../secret.png": Reason.OUTSIDE_ROOT,
        f"{tmp_path}/inside-by-name.png": Reason.OUTSIDE_ROOT,
    }
    for column in ("path", "image_uri"):
        path = parquet(tmp_path / "in/data/list.parquet", column, list(values))
        references = [reference for reference, _ in find(str(path))]
        contents = fetch(references, max_image_bytes=LIMIT)
        found = [
            content.reason if isinstance(content, UnreadableImage) else content
            for content in contents
        ]
        # Only the Parquet file is given, so what lies beside its folder is outside.
        expected = values | {"../other/y.png": Reason.OUTSIDE_ROOT}
        assert dict(zip(values, found, strict=True)) == expected
        # The folder above is given: what lies below it is inside. link.png is found by itself, too:
        # who gives a folder gives its links.
        link, *contents = fetch(
            [reference for reference, _ in find(str(tmp_path / "in"))], max_image_bytes=LIMIT
        )
        assert link == b"outside"
        found = [
            content.reason if isinstance(content, UnreadableImage) else content
            for content in contents[: len(values)]
        ]
        assert dict(zip(values, found, strict=True)) == values


def test_a_uri_outside_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A named pipe without a writer: who opens it waits for ever, and who asks for its size would
    # look at it.
    os.mkfifo(tmp_path / "pipe.png")
    path = parquet(tmp_path / "in/list.parquet", "path", ["../pipe.png"])
    [(reference, _)] = find(str(path))
    monkeypatch.setattr("mpa_ray.images.references._read_file", None)
    [content] = fetch([reference], max_image_bytes=LIMIT)
    assert isinstance(content, UnreadableImage) and content.reason == Reason.OUTSIDE_ROOT


def test_rows_that_name_nothing_are_told_apart(tmp_path: Path) -> None:
    path = parquet(tmp_path / "list.parquet", "uri", [None, "", None])
    assert read(path) == [Reason.MISSING] * 3


def test_strings_that_are_no_text_are_read_or_missing(tmp_path: Path) -> None:
    write(os.fsencode(tmp_path) + b"/\xff.png", b"no utf-8")
    raw = pa.array([b"\xff.png", b"\xfe.png"])
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    assert read(parquet(tmp_path / "list.parquet", "path", text)) == [b"no utf-8", Reason.MISSING]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_uri_column_of_another_kind_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.png", b"x")
    assert read(parquet(tmp_path / "list.parquet", "path", pa.array(["a.png"]).cast(kind))) == [
        b"x"
    ]


def test_a_parquet_file_that_is_both_listed_and_named_is_no_crash(tmp_path: Path) -> None:
    parquet(tmp_path / "shard.parquet", "image", [b"row"])
    parquet(tmp_path / "list.parquet", "path", ["shard.parquet"])
    assert read(tmp_path) == [(tmp_path / "shard.parquet").read_bytes(), b"row"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"junk" * 100, "a.parquet: cannot be read as parquet"),
        ("a.parquet", b"", "a.parquet: cannot be read as parquet"),
        ("a.tar", b"junk" * 1000, "a.tar: cannot be read as tar"),
        ("a.tar", b"", "a.tar: cannot be read as tar"),
        ("a.tar", b"\x1f\x8b\x08" + bytes(2000), "a.tar: cannot be read as tar"),
    ],
)
def test_containers_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(ConfigurationError, match=message):
        list(find(str(tmp_path)))


# Two members: each a block of header, two of data.
DAMAGES = {
    "cut in a member": lambda whole: whole[:2500],
    "a bad header in the middle": lambda whole: whole[:1536] + b"\xff" * 512 + whole[2048:],
    "a hole in the middle": lambda whole: whole[:1536] + bytes(512) + whole[2048:],
    "two tars one after the other": lambda whole: whole + whole,
    "cut between two members": lambda whole: whole[:1536],
    "cut behind the last member": lambda whole: whole[:3072],
    "cut in its end": lambda whole: whole[:3584],
    "something behind its end": lambda whole: whole[:4096] + bytes(2**20) + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tar_loses_no_image_silently(tmp_path: Path, damage: str) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": b"1" * 600, "b.png": b"2" * 600})
    assert read(tmp_path) == [b"1" * 600, b"2" * 600]
    write(path, DAMAGES[damage](path.read_bytes()))
    with pytest.raises(
        ConfigurationError, match="a.tar: cannot be read as tar: .*; fix or remove the file"
    ):
        list(find(str(tmp_path)))


@pytest.mark.parametrize("length", [4096, 10240, 2**20])
def test_the_end_of_a_tar_may_be_of_any_length(tmp_path: Path, length: int) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": b"1" * 600, "b.png": b"2" * 600})
    write(path, path.read_bytes()[:3072].ljust(length, b"\0"))
    assert read(tmp_path) == [b"1" * 600, b"2" * 600]


@pytest.mark.parametrize(
    "values", [["/data/a.png"], pa.array([[1, 2]]), pa.array([{"size": 3}]), pa.array([7])]
)
def test_an_image_column_that_holds_no_images_is_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match="a.parquet: column 'image' holds .*, neither bytes nor a struct with them; write",
    ):
        list(find(str(parquet(tmp_path / "a.parquet", "image", values))))


def test_a_list_that_names_what_nobody_reads_is_refused(tmp_path: Path) -> None:
    urls = [f"https://example.com/{n}.jpg" for n in range(3)]
    parquet(tmp_path / "list.parquet", "url", [*urls, "a.png", "b.png"])
    with pytest.raises(
        ConfigurationError,
        match=r"list.parquet: 3 of 5 rows of column 'url' cannot be read, such as"
        r" 'https://.*download",
    ):
        list(find(str(tmp_path)))
    parquet(tmp_path / "list.parquet", "url", [*urls[:2], "a.png", "b.png"])
    assert read(tmp_path) == [Reason.MISSING] * 4, "a few rows are quarantined"


def test_a_list_names_the_buckets_that_it_may(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "list.parquet", "uri", ["s3://others/private/x.png", "s3://others/y.png"]
    )
    with pytest.raises(
        ConfigurationError,
        match=r"names a bucket that is neither .*; if you trust the list, add --image_roots"
        r" s3://others",
    ):
        list(find(str(path)))
    trusted = [reference for reference, _ in find(str(path), image_roots=("s3://others",))]
    assert trusted == ["s3://others/private/x.png", "s3://others/y.png"]
    narrow = parquet(
        tmp_path / "list.parquet",
        "uri",
        ["s3://others/private/x.png", "s3://others/y.png", "a.png"],
    )
    found = [reference for reference, _ in find(str(narrow), image_roots=("s3://others/private",))]
    assert found == [
        "s3://others/private/x.png",
        "s3://others/y.png#outside_root",
        f"{tmp_path}/a.png",
    ]


def test_a_list_leads_to_folders_that_are_trusted(tmp_path: Path) -> None:
    write(tmp_path / "photos/a.png", b"1")
    path = parquet(
        tmp_path / "lists/list.parquet", "path", [f"{tmp_path}/photos/a.png", "../photos/b.png"]
    )
    assert read(path) == [Reason.OUTSIDE_ROOT, Reason.OUTSIDE_ROOT]
    references = [
        reference for reference, _ in find(str(path), image_roots=(str(tmp_path / "photos"),))
    ]
    assert fetch(references, max_image_bytes=LIMIT)[0] == b"1"


@pytest.mark.parametrize("with_bytes", [True, False])
def test_structs_with_paths_alone_are_a_list(tmp_path: Path, with_bytes: bool) -> None:
    """As `datasets` writes images that it was not told to embed."""
    nothing = {"bytes": None} if with_bytes else {}
    fields = [*([("bytes", pa.binary())] if with_bytes else []), ("path", pa.string())]
    values = pa.array(
        [nothing | {"path": name} for name in ("a.png", "b.png", None)], pa.struct(fields)
    )
    parquet(tmp_path / "list.parquet", "image", values)
    with pytest.raises(
        ConfigurationError,
        match=r"list.parquet: column 'image' holds paths and no bytes, and the first, b?'a.png',"
        r" leads",
    ):
        list(find(str(tmp_path)))
    write(tmp_path / "a.png", b"1")
    references = [reference for reference, _ in find(str(tmp_path / "list.parquet"))]
    assert fetch(references[:1], max_image_bytes=LIMIT) == [b"1"]
    assert references[1:] == [f"{tmp_path}/b.png", f"{tmp_path}/list.parquet#uri_row=2"]


def test_structs_of_which_some_have_bytes_hold_images(tmp_path: Path) -> None:
    values = pa.array([{"bytes": b"1", "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    assert read(parquet(tmp_path / "a.parquet", "image", values)) == [b"1", Reason.MISSING]


def test_references_of_a_run_are_taken_as_they_are(tmp_path: Path) -> None:
    """What a run quarantined, or annotated, is a list of its images."""
    write(tmp_path / "photos/my 100% #1.png", b"file")
    tar(tmp_path / "photos/t.tar", {"m 1.png": b"member"})
    parquet(tmp_path / "photos/rows.parquet", "image", [b"row"])
    references = [reference for reference, _ in find(str(tmp_path / "photos"))]
    run = tmp_path / "runs/1"
    columns = {
        "image_id": [image_id_of(reference) for reference in references],
        "image_uri": references,
    }
    (run / "quarantine").mkdir(parents=True)
    pq.write_table(pa.table(columns), run / "quarantine/part-00000000.parquet")
    assert read(run / "quarantine") == [Reason.OUTSIDE_ROOT] * 3, (
        "a list from elsewhere may say what it likes of its rows"
    )
    (run / "manifest").mkdir()
    (run / "manifest/index.json").write_text(json.dumps({"root": str(tmp_path / "photos")}))
    finding._root_of_run.cache_clear()
    assert [reference for reference, _ in find(str(run / "quarantine"))] == references
    assert read(run / "quarantine") == [b"file", b"row", b"member"]


def test_what_is_left_out_by_name_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.tgz", "c.tar.gz", "d", "e.TXT", "f.tgz"):
        write(tmp_path / name, b"-")
    assert len(list(find(str(tmp_path)))) == 1
    assert (
        "5 files are left out by their names (.tgz 2, .gz 1, no extension 1, .txt 1); images,"
        " .parquet and" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("caption", ["x"], "no column 'image' and none of .*; it has caption"),
        ("path", [1], "'path' holds int64 and not URIs"),
    ],
)
def test_parquet_without_images(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        list(find(str(parquet(tmp_path / "a.parquet", column, values))))


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"holds no image; files that end in .*\.png.* are taken"
    ):
        next(find(str(tmp_path)))
    write(tmp_path / "notes.txt", b"x")
    parquet(tmp_path / "empty.parquet", "image", pa.array([], pa.binary()))
    with pytest.raises(ConfigurationError, match="holds no image"):
        next(find(str(tmp_path)))
    with pytest.raises(ConfigurationError, match="does not exist"):
        next(find(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match="scheme ftp:// is not supported"):
        next(find("ftp://host/images"))


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("a.png", "s3://bucket/data/a.png"),
        ("deep/a b#1%.png", "s3://bucket/data/deep/a%20b%231%25.png"),
        ("s3://bucket/other/x?y#z.png", "s3://bucket/other/x%3Fy%23z.png"),
        ("s3://trusted/here/x.png", "s3://trusted/here/x.png"),
        ("s3://trusted/x.png", "s3://trusted/x.png#outside_root"),
        ("s3://other/x?y#z.png", "s3://other/x%3Fy%23z.png#outside_root"),
        ("gs://bucket/x.png", "gs://bucket/x.png#outside_root"),
        ("../data/a.png", "s3://bucket/data/../data/a.png"),
        ("../a.png", "s3://bucket/data/../a.png#outside_root"),
        ("../../other/a.png", "s3://bucket/data/../../other/a.png#outside_root"),
        ("s3://bucket/../other/a.png", "s3://bucket/../other/a.png#outside_root"),
        ("/etc/passwd", "/etc/passwd#outside_root"),
        ("file:///etc/passwd", "/etc/passwd#outside_root"),
        ("", ""),
    ],
)
def test_a_list_in_an_object_store_reads_no_local_file(value: str, reference: str) -> None:
    roots = Roots.of(
        "s3://bucket/data/list.parquet", "s3://bucket/data", ("s3://trusted/here", "/data")
    )
    assert absolute(value, roots) == reference
