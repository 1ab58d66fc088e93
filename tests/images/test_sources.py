"""What a run starts from, beside images: folders of Parquet files that are listed once and must
stay what they were.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from run_folders import judged, write_run

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images import frozen
from mpa_ray.images.parts import part_name
from mpa_ray.images.sources import parity_set, source_of
from mpa_ray.report.run_folder import new_folder
from mpa_ray.storage import folder as storage
from mpa_ray.storage.folder import Folder


def run_of(root: Path, *, parts: int, answered: bool = True) -> Folder:
    """A finished run with three annotations a part."""
    lvlm = "red" if answered else None
    row = {"answer": "red", "lvlm": lvlm, "svlm": "red", "verdict": "svlm_correct"}
    run = write_run(
        root,
        [
            [judged(f"{root}/images/{part}-{n}.png", **row) for n in range(3)]
            for part in range(parts)
        ],
    )
    run.write_json("config.json", {})
    run.write_json("stages/annotate_and_identify.json", {"seconds": 1.0})
    return run


def given(run: Folder) -> Config:
    return Config(annotations=run.child("annotations").uri)


def test_a_parity_set_is_counted(parity_folder: Path, tmp_path: Path) -> None:
    assert parity_set(Config(parity=str(parity_folder)), Folder.at(tmp_path / "out")).rows == 24


def test_what_is_no_parity_set_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"parity='.*nowhere' holds no Parquet file; give the parity/ folder of a run",
    ):
        parity_set(Config(parity=str(tmp_path / "nowhere")), Folder.at(tmp_path / "out"))
    Folder.at(parity_folder).write_table(
        "part-00000002.parquet", pa.table({"image_id": ["x"], "question": ["y"]})
    )
    with pytest.raises(
        ConfigurationError,
        match="part-00000002.parquet lacks sample_id, image, answer; give the parity/ folder",
    ):
        parity_set(Config(parity=str(parity_folder)), Folder.at(tmp_path / "out"))


def test_a_parity_set_that_grew_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    """Training reads the whole folder, in an order that follows from its files."""
    config, output = Config(parity=str(parity_folder)), Folder.at(tmp_path / "out")
    parity_set(config, output)
    shutil.copy(parity_folder / part_name(1), parity_folder / part_name(2))
    with pytest.raises(
        ConfigurationError,
        match=r"parity='.*': 1 files came after this run's first call; remove them",
    ):
        parity_set(config, output)


def test_what_are_no_annotations_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"annotations='.*' holds no Parquet file; give the annotations/ folder",
    ):
        source_of(Config(annotations=str(tmp_path / "nowhere")), Folder.at(tmp_path))
    with pytest.raises(
        ConfigurationError,
        match=r"part-00000000.parquet lacks image_uri, .*; jobs/import_annotations.py makes such",
    ):
        source_of(Config(annotations=str(parity_folder)), Folder.at(tmp_path))
    (parity_folder / part_name(0)).write_bytes(b"no Parquet")
    with pytest.raises(
        ConfigurationError, match=r"part-00000000.parquet cannot be read as Parquet"
    ):
        source_of(Config(annotations=str(parity_folder)), Folder.at(tmp_path))
    assert not (tmp_path / "manifest").exists()


@pytest.mark.parametrize("stored", ["local", "s3"])
def test_files_that_come_later_change_nothing(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str], stored: str
) -> None:
    """Parts are committed out of order, so files of a source that is still written come anywhere in
    the list.
    """
    run = run_of(tmp_path / "run", parts=6)
    folder = (
        run.child("annotations") if stored == "local" else Folder.at(f"s3://{bucket}/annotations")
    )
    if stored == "s3":
        folder.copy_from(run.child("annotations"))
    early = folder.read_bytes(part_name(0))
    folder.delete(part_name(0))
    config, output = Config(annotations=folder.uri), Folder.at(tmp_path / "out")
    first = source_of(config, output)
    assert (first.parts, first.rows) == (5, 15)
    folder.write_bytes(part_name(0), early)
    again = source_of(config, output)
    assert (again.parts, again.rows) == (5, 15)
    for part in range(5):
        assert again.read(part).equals(first.read(part))
        assert again.read(part).column("image_uri")[0].as_py().endswith(f"/{part + 1}-0.png")
    assert "1 files came after this run's first call and are ignored" in capsys.readouterr().out


@pytest.mark.parametrize("stored", ["local", "s3"])
def test_files_that_are_gone_or_changed_are_named(tmp_path: Path, bucket: str, stored: str) -> None:
    run = run_of(tmp_path / "run", parts=4)
    folder = (
        run.child("annotations") if stored == "local" else Folder.at(f"s3://{bucket}/annotations")
    )
    if stored == "s3":
        folder.copy_from(run.child("annotations"))
    config, output = Config(annotations=folder.uri), Folder.at(tmp_path / "out")
    source_of(config, output)
    whole = folder.read_bytes(part_name(2))
    folder.delete(part_name(2))
    with pytest.raises(
        ConfigurationError,
        match=rf"annotations='.*': {part_name(2)} is gone since this run's first call",
    ):
        source_of(config, output)
    # As many rows of as many bytes as before.
    rows = folder.read_table(part_name(1))
    folder.write_table(part_name(2), rows)
    assert abs(len(folder.read_bytes(part_name(2))) - len(whole)) < 10
    with pytest.raises(
        ConfigurationError,
        match=rf"annotations='.*': {part_name(2)} is changed since this run's first call",
    ):
        source_of(config, output)
    folder.write_bytes(part_name(2), whole)
    assert source_of(config, output).rows == 12


def test_a_file_that_changes_while_the_run_goes_is_no_part(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", parts=3).child("annotations")
    source = source_of(Config(annotations=folder.uri), Folder.at(tmp_path / "out"))
    folder.write_table(part_name(1), folder.read_table(part_name(0)))
    folder.delete(part_name(2))
    assert source.read(0).num_rows == 3
    with pytest.raises(RunError, match=rf"{part_name(1)} was changed since this run listed it"):
        source.read(1)
    with pytest.raises(RunError, match=rf"{part_name(2)} is gone"):
        source.read(2)


def test_what_is_not_finished_is_no_source(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", parts=2)
    run.delete("stages/annotate_and_identify.json")
    with pytest.raises(
        ConfigurationError,
        match=r"the run in .*/run has not finished annotating and identifying; finish it first",
    ):
        source_of(given(run), Folder.at(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="has not finished annotating"):
        parity_set(Config(parity=run.child("annotations").uri), Folder.at(tmp_path / "out"))
    imported = Folder.at(tmp_path / "imported")
    with pytest.raises(KeyboardInterrupt), new_folder(imported, by="jobs/import_annotations.py"):
        imported.child("annotations").write_table(
            part_name(0), run.child("annotations").read_table(part_name(0))
        )
        raise KeyboardInterrupt
    with pytest.raises(
        ConfigurationError,
        match=r"jobs/import_annotations.py has not finished .*/imported; give it the same command",
    ):
        source_of(given(imported), Folder.at(tmp_path / "out"))
    with new_folder(imported, by="jobs/import_annotations.py"):
        assert not imported.child("annotations").exists(), "it starts again"
        imported.child("annotations").write_table(
            part_name(0), run.child("annotations").read_table(part_name(0))
        )
    assert source_of(given(imported), Folder.at(tmp_path / "out")).rows == 3
    with (
        pytest.raises(ConfigurationError, match="holds files already"),
        new_folder(imported, by="jobs/import_annotations.py"),
    ):
        pass


@pytest.mark.parametrize("answered", [True, False])
def test_whether_the_lvlm_is_needed_is_known_without_reading_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    folder = run_of(tmp_path / "run", parts=2, answered=answered).child("annotations")
    monkeypatch.setattr(
        pa.parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("rows were read")
    )
    assert source_of(Config(annotations=folder.uri), Folder.at(tmp_path / "out")).needs_lvlm == (
        not answered
    )


def test_a_file_without_statistics_is_counted(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", parts=1, answered=False).child("annotations")
    table = folder.read_table(part_name(0))
    pa.parquet.write_table(table, f"{folder.path}/{part_name(0)}", write_statistics=False)
    assert source_of(Config(annotations=folder.uri), Folder.at(tmp_path / "out")).needs_lvlm


def test_files_are_looked_at_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_reads: Callable[[], int]
) -> None:
    """Thousands of files behind a store that takes 30 ms a request: minutes, and not hours."""
    monkeypatch.setattr(frozen, "_FILES_PER_ROW_GROUP", 7)
    folder = run_of(tmp_path / "run", parts=40).child("annotations")
    source = source_of(Config(annotations=folder.uri), Folder.at(tmp_path / "out"))
    assert slow_reads() > 20
    assert [
        source.read(part).column("image_uri")[0].as_py().rpartition("/")[2]
        for part in (0, 6, 7, 39)
    ] == [*("0-0.png", "6-0.png", "7-0.png", "39-0.png")]


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Reads that wait until others wait beside them; the result says how many did at most."""
    import threading

    waiting, most, lock = 0, 0, threading.Lock()
    plain = storage.Folder._read_parquet

    def read(self: Folder, *arguments: object) -> object:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        threading.Event().wait(0.03)
        try:
            return plain(self, *arguments)
        finally:
            with lock:
                waiting -= 1

    monkeypatch.setattr(storage.Folder, "_read_parquet", read)
    return lambda: most
