"""What may be done with an output that is there: comparisons are added, labels change until they
are used, a finished run is shown.

No model is loaded; the steps are replaced.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpa_ray import demo, pipeline
from mpa_ray.config import Config, identity
from mpa_ray.config.parse import validate
from mpa_ray.errors import ConfigurationError
from mpa_ray.report import summary
from mpa_ray.steps.step import Run

Call = Callable[..., list[str]]


@pytest.fixture
def made() -> list[Config]:
    """The configurations of the runs that were made."""
    return []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and models, in the current folder."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images/a.png")
    for name in (demo.LVLM, demo.SVLM):
        shutil.copytree(name, tmp_path / name.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(made: list[Config], place: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs with the given settings on one output; gives back what was trained there."""

    def one_run(run: Run) -> dict[str, Any]:
        config, output = run.config, run.output
        made.append(config)
        output.write_json("config.json", identity(run.asked_for))
        record = {
            "config": config.model_dump(mode="json"),
            "training": {name: {} for name in ("mpa", *config.ablations)},
        }
        for name in record["training"]:
            output.write_json(f"stages/train_{name}.json", {"seconds": 1.0})
        output.write_json("run.json", record)
        return record

    monkeypatch.setattr(pipeline, "_run", one_run)
    monkeypatch.setattr(summary, "table", lambda record: "what it found")

    def run(*ablations: str, **settings: Any) -> list[str]:
        tree = {
            "images": "images",
            "output": "out",
            "lvlm": {"model": "lvlm"},
            "svlm": {"model": "svlm"},
            "ablations": ablations,
        }
        return list(pipeline.run(validate(tree | settings))["training"])

    return run


def test_comparisons_are_added_and_stay(call: Call, made: list[Config]) -> None:
    assert call() == ["mpa"]
    assert call("no_pi_all") == ["mpa", "no_pi_all"]
    assert call("consistent") == ["mpa", "no_pi_all", "consistent"]
    assert [config.ablations for config in made] == [
        (),
        ("no_pi_all",),
        ("no_pi_all", "consistent"),
    ]
    assert call("no_pi_all") == call() == ["mpa", "no_pi_all", "consistent"]
    assert len(made) == 3, "what is there is shown, and nothing is run"


def test_comparisons_on_human_labels_are_added_too(
    call: Call, made: list[Config], place: Path
) -> None:
    labels = {"labels": {"benchmark": "train.parquet"}}
    assert call() == ["mpa"]
    assert call("human_labels", **labels) == ["mpa", "human_labels"]
    assert call("few_shot_full", few_shot=10, **labels) == ["mpa", "human_labels", "few_shot_full"]
    with pytest.raises(
        ConfigurationError,
        match=r"another run: labels.benchmark was '.*/train.parquet' and is '.*/other.parquet'",
    ):
        call("few_shot_lora", few_shot=10, labels={"benchmark": "other.parquet"})
    with pytest.raises(ConfigurationError, match="another run: few_shot was 10 and is 20"):
        call("few_shot_lora", few_shot=20, **labels)
    assert call("no_pi_all")[1:] == ["human_labels", "few_shot_full", "no_pi_all"]
    assert made[-1].few_shot == 10 and made[-1].labels.benchmark == str(place / "train.parquet"), (
        "those that were used"
    )
    assert call("few_shot_lora", few_shot=10, **labels)[-1] == "few_shot_lora"


def test_labels_that_no_training_has_seen_may_be_others(call: Call, place: Path) -> None:
    """As after a file of labels that could not be read."""
    call()
    settings = json.loads((place / "out/config.json").read_text())
    (place / "out/config.json").write_text(
        json.dumps(settings | {"labels.benchmark": "broken.parquet", "few_shot": 7})
    )
    assert call("few_shot_full", labels={"benchmark": "train.parquet"}) == ["mpa", "few_shot_full"]


def test_labels_that_a_training_has_begun_with_stay(call: Call, place: Path) -> None:
    call()
    settings = json.loads((place / "out/config.json").read_text())
    (place / "out/config.json").write_text(
        json.dumps(settings | {"labels.benchmark": "first.parquet"})
    )
    (place / "out/checkpoints/few_shot_lora").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="labels.benchmark was"):
        call("few_shot_lora", labels={"benchmark": "train.parquet"})


def test_a_finished_run_is_shown_when_what_it_was_made_from_is_gone(
    call: Call, made: list[Config], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"evaluate": {"benchmark": "benchmark.parquet"}}
    call(**settings)
    for name in ("images", "lvlm", "svlm"):
        shutil.rmtree(place / name)
    assert call(**settings) == ["mpa"]
    assert "is finished; this is what it holds\nwhat it found" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="another run: seed was 0 and is 1"):
        call(seed=1, **settings)
    with pytest.raises(ConfigurationError, match="/images' does not exist"):
        call("no_pi_all", **settings)
    assert len(made) == 1
