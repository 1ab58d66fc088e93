"""Files under a folder, as a stream in the order of their paths' bytes."""

import os
from pathlib import Path

import pyarrow.fs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpa_ray.errors import ConfigurationError
from mpa_ray.inputs import listing
from mpa_ray.inputs.listing import files


def names(root: Path) -> list[bytes]:
    return [os.fsencode(file.path)[len(os.fsencode(root)) + 1 :] for file in files(str(root))]


def write(root: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(name)


TREE = [b"a-b/1", b"a.b", b"a/1", b"a/b/2", b"a/b.c", b"a0", b"B/x", b"new\nline/x\n", b"new\nline", b"\xff/\xfe", b"z" * 200, "ü".encode()]


@pytest.mark.parametrize("in_memory", [1, 2, 3, 200_000])
def test_the_order_is_that_of_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(listing, "_NAMES_IN_MEMORY", in_memory)
    tree = [name for name in TREE if name != b"new\nline"]
    for name in reversed(tree):
        write(tmp_path, name)
    assert names(tmp_path) == sorted(tree)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.binary(min_size=1, max_size=5).filter(lambda name: not set(name) & set(b"/\0") and not name.startswith(b"."))),
    st.integers(1, 5),
)
def test_names_of_any_bytes_survive_the_disk(tmp_path: Path, found: set[bytes], in_memory: int) -> None:
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
    assert [(Path(file.path).name, file.size) for file in files(str(tmp_path / "in"))] == [("a.png", 8), ("link", 10), ("nowhere", 0)]
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
    for path in ("bucket/in/a/1.png", "bucket/in/a.png", "bucket/in/.x/1.png", "bucket/other/1.png"):
        store.create_dir(os.path.dirname(path), recursive=True)
        with store.open_output_stream(path) as stream:
            stream.write(path.encode())
    monkeypatch.setattr(listing, "resolve", lambda uri: (store, uri.removeprefix("gs://")))
    assert [file.path for file in files("gs://bucket/in")] == ["gs://bucket/in/a.png", "gs://bucket/in/a/1.png"]
    assert [file.size for file in files("gs://bucket/in/a.png")] == [15]
    with pytest.raises(ConfigurationError, match="does not exist"):
        list(files("gs://bucket/gone"))
