"""A local folder as the engine uses it: whole files or none, and what is not there."""

import errno
import os
import pickle
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.storage.folder import Folder, in_parallel, is_remote, patiently, resolve

TABLE = pa.table({"n": list(range(10)), "text": [str(n) for n in range(10)]})


def test_bytes_json_and_tables_come_back(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    assert not folder.exists()
    folder.write_bytes("a/b/c.bin", b"\0\1")
    folder.write_json("x.json", {"text": "ünïcödé", "number": 1.5})
    folder.write_table("t.parquet", TABLE, row_group_size=4)
    assert folder.read_bytes("a/b/c.bin") == b"\0\1"
    assert folder.read_json("x.json") == {"text": "ünïcödé", "number": 1.5}
    assert folder.read_table("t.parquet") == TABLE
    assert folder.read_table("t.parquet", ["text"]) == TABLE.select(["text"])
    assert pq.ParquetFile(tmp_path / "run/t.parquet").num_row_groups == 3
    assert folder.exists() and folder.exists("a/b/c.bin") and not folder.exists("a/b/d.bin")


def test_writing_replaces(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write_bytes("a", b"a long first version")
    folder.write_bytes("a", b"second")
    assert folder.read_bytes("a") == b"second"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = Folder.at(tmp_path)
    folder.write_bytes("a", b"first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="No space left on device. Fix the storage"):
        folder.write_bytes("a", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert folder.read_bytes("a") == b"first"


def test_names_are_sorted_files_without_hidden_ones(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for name in ("b.json", "a.json", ".a.json.0123", "c.parquet", "sub/d.json"):
        folder.write_bytes(name, b"{}")
    assert folder.names(".json") == ["a.json", "b.json"]
    assert folder.names() == ["a.json", "b.json", "c.parquet"]
    assert folder.child("nowhere").names() == []


def test_a_file_in_a_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = Folder.at(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="file is a file; give a folder"):
        folder.names()
    assert not folder.exists("config.json")


def test_tables_come_in_the_order_of_names(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for name in ("2", "0", "1"):
        folder.write_table(f"part-{name}.parquet", pa.table({"n": [int(name)]}))
    assert [table.column("n").to_pylist() for table in folder.tables()] == [[0], [1], [2]]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "seed=3")
    folder.write_table("t.parquet", TABLE)
    assert folder.read_table("t.parquet").column_names == ["n", "text"]


def test_deleting_what_is_not_there_is_fine(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    folder.delete("a")
    folder.delete_folder()
    folder.write_bytes("a", b"")
    folder.delete("a")
    assert not folder.exists("a") and folder.exists()
    folder.delete_folder()
    assert not folder.exists()


def test_upload_and_download(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a").write_bytes(b"a")
    folder = Folder.at(tmp_path / "store")
    folder.upload(tmp_path / "in")
    folder.download(tmp_path / "out")
    assert (tmp_path / "out/deep/a").read_bytes() == b"a"


def test_workers_get_a_folder_as_it_is(tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(Folder.at(tmp_path).child("run")))
    folder.write_bytes("a", b"x")
    assert (tmp_path / "run/a").read_bytes() == b"x"
    assert folder.uri == f"{tmp_path}/run" and folder.is_local


def test_paths_of_one_folder_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uris = {
        Folder.at(name).uri
        for name in (
            "run",
            "run/",
            "./run",
            f"{tmp_path}/run",
            f"file://{tmp_path}/run",
            "x/../run",
        )
    }
    assert uris == {f"{tmp_path}/run"}


@pytest.mark.parametrize("uri", ["http://host/x", "ftp://host/x", "hdfs://host/x", "S3://bucket/x"])
def test_other_schemes_are_refused_by_name(uri: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"is not supported; use a local path, s3:// or gs://"
    ):
        resolve(uri)


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens there: whoever asks for more than a path fails at once.
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("s3_settings")
@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a.png", "bucket/a.png"),
        ("s3://bucket/my photos/ü.png", "bucket/my photos/ü.png"),
        ("s3://bucket/a%20b%23%3F.png", "bucket/a b#?.png"),
        ("s3://bucket/a&b=c+d,(e)~.png", "bucket/a&b=c+d,(e)~.png"),
    ],
)
def test_names_in_an_object_store(uri: str, path: str) -> None:
    assert is_remote(uri)
    assert resolve(uri)[1] == path


@pytest.mark.usefixtures("s3_settings")
@pytest.mark.parametrize("uri", ["s3://bucket/a?b.png", "s3://bucket/100%.png"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket"):
        resolve(uri)


def test_a_file_is_created_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert folder.create_json("commits/a.json", {"by": "first"})
    assert not folder.create_json("commits/a.json", {"by": "second"})
    assert folder.read_json("commits/a.json") == {"by": "first"}
    assert [path.name for path in (tmp_path / "commits").iterdir()] == ["a.json"]


def test_what_killed_writers_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    left = tmp_path / "annotations" / f".part-00000001.parquet.{'0a' * 16}"
    young = tmp_path / "annotations" / f".part-00000002.parquet.{'0b' * 16}"
    kept = [
        tmp_path / "annotations/part-00000001.parquet",
        tmp_path / ".lock",
        tmp_path / "annotations/.hidden.parquet",
    ]
    for path in (left, young, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"-")
    for path in (left, *kept):
        os.utime(path, (0, 0))
    folder.delete_unfinished()
    assert not left.exists() and young.exists() and all(path.exists() for path in kept)


def test_entries_are_names_with_sizes(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for name in ("b.json", "a.json", ".a.json.0123", "sub/d.json"):
        folder.write_bytes(name, b"{}" * len(name))
    assert folder.entries(".json") == [("a.json", 12, ""), ("b.json", 12, "")]
    assert folder.child("nowhere").entries() == []


def test_work_in_parallel_keeps_its_order_and_runs_no_more_than_it_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    results = in_parallel(work, iter(range(1000)))
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(begun) < 100, "it runs far ahead of who reads"
    assert list(results) == [number * number for number in range(5, 1000)]


class _OtherClass(OSError):
    """With the number alone."""


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no number"), _OtherClass(errno.ENOENT, "gone")]
)
def test_a_name_that_leads_nowhere_is_not_tried_again(error: OSError) -> None:
    """Either sign is enough: the class, or the number."""
    tries = []

    def work() -> None:
        tries.append(1)
        raise error

    with pytest.raises(FileNotFoundError, match="s3://b/x"):
        patiently(work, "s3://b/x")
    assert len(tries) == 1
