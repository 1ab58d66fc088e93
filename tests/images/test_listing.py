"""Files under a folder, as a stream in the order of their paths' bytes."""

import os
from pathlib import Path

import pyarrow.fs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import listing
from mpa_ray.images.finding import find
from mpa_ray.images.listing import files
from mpa_ray.images.sources import refuse_output_among_images
from mpa_ray.storage.folder import Folder, resolve
from s3 import put


def names(root: Path) -> list[bytes]:
    return [os.fsencode(file.path)[len(os.fsencode(root)) + 1 :] for file in files(str(root))]


def write(root: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(name)


TREE = [
    b"a-b/1",
    b"a.b",
    b"a/1",
    b"a/b/2",
    b"a/b.c",
    b"a0",
    b"B/x",
    b"new\nline/x\n",
    b"new\nline",
    b"\xff/\xfe",
    b"z" * 200,
    "ü".encode(),
]


@pytest.mark.parametrize("in_memory", [1, 2, 3, 200_000])
def test_the_order_is_that_of_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(listing, "_NAMES_IN_MEMORY", in_memory)
    tree = [name for name in TREE if name != b"new\nline"]
    for name in reversed(tree):
        write(tmp_path, name)
    assert names(tmp_path) == sorted(tree)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sets(
        st.binary(min_size=1, max_size=5).filter(
            lambda name: not set(name) & set(b"/\0") and not name.startswith(b".")
        )
    ),
    st.integers(1, 5),
)
def test_names_of_any_bytes_survive_the_disk(
    tmp_path: Path, found: set[bytes], in_memory: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_NAMES_IN_MEMORY", in_memory)
        folder = tmp_path / os.urandom(8).hex()
        folder.mkdir()
        for name in found:
            write(folder, name)
        assert names(folder) == sorted(found)


def test_sizes_hidden_names_and_links(tmp_path: Path) -> None:
    for name in (b"in/a.png", b"in/.hidden", b"in/.git/x", b"out/secret"):
        write(tmp_path, name)
    (tmp_path / "in/link").symlink_to(tmp_path / "out/secret")
    (tmp_path / "in/nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    assert [(Path(file.path).name, file.size) for file in files(str(tmp_path / "in"))] == [
        ("a.png", 8),
        ("link", 10),
        ("nowhere", 0),
    ]
    assert [file.size for file in files(str(tmp_path / "in/a.png"))] == [8]


def test_folders_in_folders_in_folders(tmp_path: Path) -> None:
    # Deeper than Python's stack.
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(600):
            os.mkdir("d")
            os.chdir("d")
        Path("x").touch()
    finally:
        os.chdir(here)
    assert [file.path for file in files(str(tmp_path))] == [f"{tmp_path}/{'d/' * 600}x"]


def test_what_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigurationError, match="cannot be listed: Permission denied"):
        list(files(str(tmp_path)))
    with pytest.raises(ConfigurationError, match="does not exist"):
        list(files(str(tmp_path / "gone")))


def test_other_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    store = pyarrow.fs._MockFileSystem()
    for path in (
        "bucket/in/a/1.png",
        "bucket/in/a.png",
        "bucket/in/.x/1.png",
        "bucket/other/1.png",
    ):
        store.create_dir(os.path.dirname(path), recursive=True)
        with store.open_output_stream(path) as stream:
            stream.write(path.encode())
    monkeypatch.setattr(listing, "resolve", lambda uri: (store, uri.removeprefix("gs://")))
    assert [file.path for file in files("gs://bucket/in")] == [
        "gs://bucket/in/a.png",
        "gs://bucket/in/a/1.png",
    ]
    assert [file.size for file in files("gs://bucket/in/a.png")] == [15]
    with pytest.raises(ConfigurationError, match="does not exist"):
        list(files("gs://bucket/gone"))


def test_a_link_to_itself_is_a_file_that_nobody_can_read(tmp_path: Path) -> None:
    write(tmp_path, b"a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert [(Path(file.path).name, file.size) for file in files(str(tmp_path))] == [
        ("a.png", 5),
        ("loop.png", 0),
    ]


def write_runs(root: Path) -> None:
    """Outputs of runs, and folders that look a little like them."""
    for name in (
        b"x.png",
        b"runs/1/parity/p.parquet",
        b"runs/1/config.json",
        b"runs/1/commits/part-00000000.json",
        b"runs/1/report/a.png",
    ):
        write(root, name)
    for name in (
        b"runs/2/manifest/00000.parquet",
        b"runs/2/manifest/index.json",
        b"runs/2/inputs/images/y.png",
        b"runs/3.png",
    ):
        write(root, name)
    for name in (b"data/annotations/z.png", b"data/config.json", b"data/manifest/list.parquet"):
        write(root, name)


LEFT = [
    b"data/annotations/z.png",
    b"data/config.json",
    b"data/manifest/list.parquet",
    b"runs/3.png",
    b"x.png",
]


def test_outputs_of_runs_are_no_images(tmp_path: Path) -> None:
    write_runs(tmp_path)
    runs: list[str] = []
    assert [
        os.fsencode(file.path)[len(os.fsencode(tmp_path)) + 1 :]
        for file in files(str(tmp_path), runs=runs)
    ] == LEFT
    assert runs == [f"{tmp_path}/runs/1", f"{tmp_path}/runs/2"]


def test_outputs_of_runs_in_s3_are_no_images(tmp_path: Path, bucket: str) -> None:
    write_runs(tmp_path)
    put(
        bucket,
        {
            f"photos/{path.relative_to(tmp_path)}": b"-"
            for path in tmp_path.rglob("*")
            if path.is_file()
        },
    )
    runs: list[str] = []
    found = [
        file.path.removeprefix(f"s3://{bucket}/photos/").encode()
        for file in files(f"s3://{bucket}/photos", runs=runs)
    ]
    assert found == LEFT and runs == [
        f"s3://{bucket}/photos/runs/1",
        f"s3://{bucket}/photos/runs/2",
    ]
    # The same without S3's own way of listing.
    filesystem, root = resolve(f"s3://{bucket}/photos")
    runs.clear()
    assert [
        file.path.removeprefix(f"s3://{root}/").encode()
        for file in listing._by_pyarrow(filesystem, root, "s3://", runs)
    ] == LEFT
    assert runs == [f"s3://{root}/runs/1", f"s3://{root}/runs/2"]


def test_an_output_is_not_given_as_images(tmp_path: Path) -> None:
    write_runs(tmp_path)
    with pytest.raises(
        ConfigurationError,
        match=r"images='.*/runs/1' is the output of a run; give the folder of its images",
    ):
        next(find(str(tmp_path / "runs/1")))


def test_an_output_among_the_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, b"photos/deep/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for output in ("photos", "photos/run", "photos/../photos/deep/run", "link/run"):
        config = Config(images=f"{tmp_path}/photos/", output=f"{tmp_path}/{output}")
        with pytest.raises(
            ConfigurationError, match=r"output='.*' lies in images='.*', .*give a folder beside it"
        ):
            refuse_output_among_images(config, Folder.at(config.output))
    for images, output in (("photos", "photos2"), ("photos/deep", "photos/run")):
        config = Config(images=f"{tmp_path}/{images}", output=f"{tmp_path}/{output}")
        refuse_output_among_images(config, Folder.at(config.output))
    # A run that was begun there before has its list already.
    write(tmp_path, b"photos/run/config.json")
    refuse_output_among_images(
        Config(images=f"{tmp_path}/photos", output=f"{tmp_path}/photos/run"),
        Folder.at(tmp_path / "photos/run"),
    )
    config = Config(images="s3://bucket/photos", output="s3://bucket/photos/run")
    with pytest.raises(ConfigurationError, match="lies in images"):
        refuse_output_among_images(config, NotThere.at(config.output))


class NotThere(Folder):
    """A folder in a bucket that nobody asks about."""

    @classmethod
    def at(cls, uri: str) -> "NotThere":
        return cls(pyarrow.fs.S3FileSystem(region="us-east-1"), uri.removeprefix("s3://"), uri)

    def exists(self, name: str = "") -> bool:
        return False
