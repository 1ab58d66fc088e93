"""Places by one spelling each, and models that are folders told from hub names."""

import shutil
from pathlib import Path

import pytest

from mpa_ray import demo
from mpa_ray.config import Config, EvaluateSection, LabeledSection, ModelSection, identity
from mpa_ray.config.hyperparameters import with_hyperparameters
from mpa_ray.config.locations import lasting
from mpa_ray.schema import absolute


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "spelling",
    [
        "photos",
        "photos/",
        "./photos",
        "x/../photos//",
        "~/photos",
        "{home}/photos",
        "file://{home}/photos/",
        "/{home}/photos",
    ],
)
def test_a_local_path_has_one_spelling(home: Path, spelling: str) -> None:
    assert absolute(spelling.format(home=home)) == f"{home}/photos"


@pytest.mark.parametrize(
    "uri", ["s3://bucket/photos", "s3://bucket/photos//", "gs://bucket/photos/"]
)
def test_of_a_uri_the_slash_at_the_end_goes(uri: str) -> None:
    assert absolute(uri) == uri.rstrip("/")
    assert absolute("s3://") == "s3://"


def test_every_setting_that_is_a_place_is_made_absolute(home: Path) -> None:
    labels = LabeledSection(benchmark="b", images="i/")
    config = Config(
        annotations="a/",
        output="./o",
        evaluate=EvaluateSection(benchmark="b", images="i/"),
        labels=labels,
    )
    assert (config.annotations, config.output) == (f"{home}/a", f"{home}/o")
    for section in (config.evaluate, config.labels):
        assert (section.benchmark, section.images) == (f"{home}/b", f"{home}/i")
    assert (Config(images="i/").images, Config(parity="p/").parity) == (f"{home}/i", f"{home}/p")
    assert Config().images == "" and Config().parity is None, "what is not set stays so"


def test_a_model_in_a_folder_is_a_place_and_a_hub_name_is_none(home: Path) -> None:
    shutil.copytree(demo.SVLM, home / "models/small")
    for engine in ("vllm", "transformers", "own_module:engine"):
        assert ModelSection(model="models/small/", engine=engine).model == f"{home}/models/small"
    assert ModelSection(model="~/models/none").model == f"{home}/models/none"
    assert ModelSection(model="Qwen/Qwen2-VL-2B-Instruct").model == "Qwen/Qwen2-VL-2B-Instruct"
    assert ModelSection(model="./x:y", engine="own_module:engine").model == "./x:y", (
        "what its own engine makes of it"
    )
    assert ModelSection(model="models/small", engine="openai").model == "models/small", (
        "the server's name"
    )
    (home / "config.json").touch()
    assert ModelSection().model == ""


def test_trusted_code_is_named_as_the_model_is(home: Path) -> None:
    shutil.copytree(demo.SVLM, home / "models/small")
    trusted = f"models/small@{'0' * 40}"
    assert (
        ModelSection(model="models/small", trust_remote_code=trusted).trust_remote_code == trusted
    )


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("/home/qwen2-vl-2b/models/TinyLLaVA-2-hf", 1e-4),
        ("/cache/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/0123", 1e-5),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 1e-4),
        ("/models/mine", 1e-5),
    ],
)
def test_the_folder_that_is_nearest_names_the_hyperparameters(model: str, rate: float) -> None:
    assert with_hyperparameters(Config().pl, model).learning_rate == rate


def test_what_a_submission_uploads_is_the_same_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known_as = []
    for upload in (
        "session_1/runtime_resources/working_dir_files/_ray_pkg_a",
        "session_2/runtime_resources/working_dir_files/_ray_pkg_b",
    ):
        (tmp_path / upload).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / upload)
        config = Config(images="s3://b/i", evaluate=EvaluateSection(benchmark="data/val.parquet"))
        assert config.evaluate.benchmark == f"{tmp_path}/{upload}/data/val.parquet"
        known_as.append(identity(config))
    assert known_as[0] == known_as[1]
    assert identity(Config(images="photos"))["images"] == f"{Path.cwd()}/photos", (
        "whose places are in a run's list of them"
    )
    assert lasting("/data/val.parquet") == "/data/val.parquet"
