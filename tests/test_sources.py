"""What a run starts from, beside images: folders of Parquet files that are checked by their footers."""

from pathlib import Path

import pyarrow as pa
import pytest

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.inputs.sources import parity_rows, source_of
from mpa_ray.storage import Folder


def test_a_parity_set_is_counted(parity_folder: Path) -> None:
    assert parity_rows(Config(parity=str(parity_folder))) == 24


def test_what_is_no_parity_set_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"parity='.*nowhere' holds no Parquet file; give the parity/ folder of a run"):
        parity_rows(Config(parity=str(tmp_path / "nowhere")))
    Folder.at(parity_folder).write_table("part-00000002.parquet", pa.table({"image_id": ["x"], "question": ["y"]}))
    with pytest.raises(ConfigurationError, match="part-00000002.parquet lacks sample_id, image, answer; give the parity/ folder"):
        parity_rows(Config(parity=str(parity_folder)))


def test_what_are_no_annotations_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"annotations='.*' holds no Parquet file; give the annotations/ folder"):
        source_of(Config(annotations=str(tmp_path / "nowhere")), Folder.at(tmp_path))
    with pytest.raises(ConfigurationError, match=r"part-00000000.parquet lacks image_uri, .*; jobs/import_annotations.py makes such"):
        source_of(Config(annotations=str(parity_folder)), Folder.at(tmp_path))
