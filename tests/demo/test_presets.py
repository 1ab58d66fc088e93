"""Presets are whole configurations that can be run, and Table 11 is as printed."""

from pathlib import Path

import pytest

from mpa_ray import cli, demo
from mpa_ray.config import Config, TrainingSection, hyperparameters
from mpa_ray.config.parse import validate
from mpa_ray.demo import presets


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_preset_is_valid(name: str) -> None:
    config = validate(presets.preset(name))
    assert config.svlm.model or config.lvlm.model


def test_the_demo_needs_nothing_but_an_output() -> None:
    config = validate(presets.preset("demo"))
    assert config.missing() == ["--output"]
    assert (config.lvlm.model, config.svlm.model) == (str(demo.LVLM), str(demo.SVLM))
    assert (
        config.lvlm.gpus_per_replica
        == config.svlm.gpus_per_replica
        == config.pl.gpus_per_worker
        == 0
    )


@pytest.mark.parametrize("name", ["images", "annotations", "parity"])
@pytest.mark.parametrize("by", ["flag", "file"])
def test_with_inputs_of_ones_own_the_demo_is_its_models_alone(
    name: str, by: str, tmp_path: Path
) -> None:
    settings = tmp_path / "own.yaml"
    settings.write_text(f"{name}: {tmp_path}")
    argv = [
        "--preset",
        "demo",
        "--output",
        "o",
        *(["--config", str(settings)] if by == "file" else [f"--{name}", str(tmp_path)]),
    ]
    config = cli.parse(Config(), argv)
    assert (config.demo.images, config.ablations, config.evaluate.benchmark) == (0, (), None)
    assert getattr(config, name) == str(tmp_path) and config.svlm.model == str(demo.SVLM)
    assert cli.parse(Config(**{name: str(tmp_path)}), argv[:4]).demo.images == 0, (
        "as of a job of one's own"
    )
    assert cli.parse(
        Config(), [*argv, "--ablations", "human_labels", "--labels.benchmark", "l"]
    ).ablations == ("human_labels",)


@pytest.mark.parametrize(
    ("model", "batch_size", "rate"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 16, 1e-5),
        ("OpenGVLab/InternVL2-2B", 16, 4e-5),
        ("OpenGVLab/InternVL2-4B", 6, 4e-5),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 16, 1e-4),
        ("bczhou/TinyLLaVA-2.0B", 16, 1e-4),
        ("/models/my-own", 16, 1e-5),
    ],
)
def test_table_11(model: str, batch_size: int, rate: float) -> None:
    filled = hyperparameters.with_hyperparameters(TrainingSection(), model)
    assert (filled.batch_size, filled.learning_rate) == (batch_size, rate)


def test_what_is_set_stays() -> None:
    filled = hyperparameters.with_hyperparameters(
        TrainingSection(batch_size=3, warmup=0.5), "OpenGVLab/InternVL2-4B"
    )
    assert (filled.batch_size, filled.learning_rate, filled.warmup) == (3, 4e-5, 0.5)
    filled = hyperparameters.with_hyperparameters(
        TrainingSection(learning_rate=3e-6), "OpenGVLab/InternVL2-4B"
    )
    assert (filled.batch_size, filled.learning_rate) == (6, 3e-6)
