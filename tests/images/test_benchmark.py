"""A benchmark in an output: read once, read again where its files have changed, and never changed
under models that were scored.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from mpa_ray.config import EvaluateSection, LabeledSection
from mpa_ray.demo import inputs
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import benchmark
from mpa_ray.storage.folder import Folder


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    written(200)
    return Folder.at("out/questions")


def written(count: int, *, seed: int = 0) -> None:
    """benchmark.parquet with `count` questions."""
    inputs._write_labeled(
        Folder.at("."), "benchmark.parquet", task="textvqa", count=count, seed=seed
    )


def ids(questions: Folder) -> list[str]:
    return [
        question_id
        for table in questions.tables(["question_id"])
        for question_id in table.column(0).to_pylist()
    ]


def test_a_benchmark_is_read_once(questions: Folder) -> None:
    settings = EvaluateSection(benchmark="benchmark.parquet")
    assert benchmark.prepare(settings, questions) == 2 and len(ids(questions)) == 200
    questions.delete("part-00000001.parquet")
    assert benchmark.prepare(settings, questions) == 2
    os.utime("benchmark.parquet", (0, 0))
    assert benchmark.prepare(settings, questions) == 2, (
        "the same questions in a file that was written again"
    )
    Path("benchmark.parquet").unlink()
    assert benchmark.prepare(settings, questions) == 2, "a file that is gone tells nothing"
    assert len(ids(questions)) == 128, "nothing was read again"


def test_a_file_that_has_changed_is_read_again_until_models_are_scored(questions: Folder) -> None:
    settings, predictions = (
        EvaluateSection(benchmark="benchmark.parquet"),
        Folder.at("out/predictions"),
    )
    benchmark.prepare(settings, questions, predictions=predictions)
    written(50)
    assert benchmark.prepare(settings, questions, predictions=predictions) == 1
    assert len(ids(questions)) == 50, "what was read before is gone"
    predictions.write_table("zero_shot.parquet", pa.table({"question_id": ["0"]}))
    written(50, seed=1)
    with pytest.raises(
        ConfigurationError,
        match=r"evaluate.benchmark='.*/benchmark.parquet' has changed since models were scored on"
        r" it",
    ):
        benchmark.prepare(settings, questions, predictions=predictions)
    written(50)
    assert benchmark.prepare(settings, questions, predictions=predictions) == 1


def test_what_older_versions_have_read_stays(questions: Folder) -> None:
    """With a relative path, and nothing of the files."""
    benchmark.prepare(EvaluateSection(benchmark="benchmark.parquet"), questions)
    source = {"benchmark": "benchmark.parquet", "format": "parquet", "images": None}
    questions.write_bytes("index.json", json.dumps({"source": source, "parts": 2}).encode())
    written(50)
    assert benchmark.prepare(EvaluateSection(benchmark="benchmark.parquet"), questions) == 2
    assert (
        benchmark.prepare(EvaluateSection(benchmark="benchmark.parquet", images="."), questions)
        == 1
    ), "another benchmark is read"


def test_of_okvqa_the_questions_file_counts_too(tmp_path: Path) -> None:
    from mpa_ray.tasks.benchmark_readers import files_of

    names = ["mscoco_val2014_annotations.json", "OpenEnded_mscoco_val2014_questions.json"]
    assert [path.name for path in files_of("okvqa", tmp_path / names[0])] == names
    (tmp_path / "test_human.json").touch()
    (tmp_path / "png").mkdir()
    assert [path.name for path in files_of("chartqa", tmp_path)] == ["test_human.json"]


def test_what_is_wrong_names_the_setting(questions: Folder) -> None:
    for section, name in ((EvaluateSection, "evaluate"), (LabeledSection, "labels")):
        with pytest.raises(
            ConfigurationError,
            match=f"{name}.benchmark='.*/none.parquet': annotations_path is .*no file",
        ):
            benchmark.prepare(section(benchmark="none.parquet"), questions)
