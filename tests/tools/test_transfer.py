"""A model on another benchmark: scored once, and never under another's name; and the job that does
it.
"""

import json
import os
import runpy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import demo
from mpa_ray.config import Config, EvaluateSection, ModelSection
from mpa_ray.demo import inputs
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import benchmark
from mpa_ray.placement import ray_session
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables import transfer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of our own layout and a model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    inputs.write(Folder.at(tmp_path), task="textvqa", images=0, questions=4, seed=0)
    shutil.copytree(demo.SVLM, tmp_path / "small")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def evaluate(
        model: ModelSection, *, name: str, config: Config, output: Folder
    ) -> list[dict[str, Any]]:
        names.append(name)
        benchmark.prepare(config.evaluate, output.child("evaluation/questions"))
        metrics = benchmark.metrics_of(config.evaluate, config.task_spec.metric)
        return [
            {"model": name, "benchmark": "b", "metric": metric, "score": 38.1, "ci95": None, "n": 4}
            for metric in metrics
        ]

    monkeypatch.setattr(transfer, "evaluate", evaluate)
    monkeypatch.setattr(ray_session, "ray_session", nullcontext)
    return names


def score(
    *,
    name: str = "mpa",
    model: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    section = EvaluateSection(**({"benchmark": "benchmark.parquet"} | (evaluate or {})))
    found = ModelSection(**({"model": "small"} | (model or {})))
    return transfer.score_alone(
        found, name=name, config=Config(evaluate=section, **settings), output=Folder.at("scores")
    )


def test_a_model_is_scored_once_however_its_folder_is_spelled(
    asked: list[str], place: Path
) -> None:
    first = score()
    assert (
        score()
        == score(model={"model": f"{place}/small/"}, evaluate={"benchmark": "./benchmark.parquet"})
        == first
    )
    assert score(model={"max_replicas": 3, "images_in_flight": 2}) == first, (
        "which changes its speed alone"
    )
    score(name="zero_shot", model={"model": "c/d"})
    assert asked == ["mpa", "zero_shot"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": {"model": "c/d"}}, "svlm.model was '.*/small' and is 'c/d'"),
        ({"model": {"max_pixels": 999}}, "svlm.max_pixels was 401408 and is 999"),
        ({"model": {"chat_template": "x"}}, "svlm.chat_template was None and is 'x'"),
        ({"model": {"engine": "transformers"}}, "svlm.engine was 'vllm' and is 'transformers'"),
        ({"model": {"revision": "main"}}, "svlm.revision was None and is 'main'"),
        ({"task": "chartqa"}, "task was 'textvqa' and is 'chartqa'"),
        ({"evaluate": {"max_tokens": 4}}, "evaluate.max_tokens was 32 and is 4"),
        (
            {"evaluate": {"benchmark": "other.parquet"}},
            r"evaluate.benchmark was '.*/benchmark.parquet' and is '.*/other.parquet'",
        ),
    ],
)
def test_scores_of_other_settings_are_not_passed_off(
    asked: list[str], place: Path, settings: dict[str, Any], told: str
) -> None:
    score()
    with pytest.raises(
        ConfigurationError,
        match=rf"holds other scores as 'mpa': {told}.*Give another output or name",
    ):
        score(**settings)
    assert asked == ["mpa"]


def test_files_that_have_changed_are_noticed(asked: list[str], place: Path) -> None:
    first = score()
    (place / "small/README.md").write_text("which has no say")
    os.utime(place / "benchmark.parquet", (0, 0))
    assert score() == first, "the same questions, written again"
    inputs.write(Folder.at(place), task="textvqa", images=0, questions=3, seed=0)
    with pytest.raises(ConfigurationError, match="the benchmark has changed"):
        score()
    (place / "benchmark.parquet").unlink()
    assert score() == first, "a file that is gone tells nothing"
    os.utime(place / "small/model.safetensors", (0, 0))
    with pytest.raises(ConfigurationError, match="the model's files have changed"):
        score()


def test_scores_of_older_versions_are_shown_with_a_word(
    asked: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = score()
    kept = place / "scores/scores/mpa.json"
    record = {
        "asked": {"model": "small", "benchmark": "benchmark.parquet", "format": "parquet"},
        "scores": first,
    }
    kept.write_text(json.dumps(record))
    assert score() == first and "did not keep the settings" in capsys.readouterr().out
    with pytest.raises(
        ConfigurationError, match="the score was textvqa_accuracy and is relaxed_accuracy"
    ):
        score(task="chartqa")
    with pytest.raises(ConfigurationError, match="svlm.model was"):
        score(model={"model": "c/d"})
    kept.write_text(json.dumps(record | {"benchmark": {}, "asked": {"svlm.gone": 1}}))
    with pytest.raises(ConfigurationError, match="another version"):
        score()
    assert asked == ["mpa"]


def test_the_jobs_flags() -> None:
    parse = runpy.run_path(str(ROOT / "jobs" / "evaluate.py"))["parse"]
    argv = [
        "--model",
        str(demo.SVLM),
        "--benchmark",
        "b.json",
        "--format",
        "textcaps",
        "--images",
        "i",
        "--output",
        "o",
    ]
    argv += ["--max_tokens", "64"]
    job, config = parse([*argv, "--serve.engine", "transformers", "--serve.gpus_per_replica", "0"])
    assert (job.name, config.output) == ("model", os.path.abspath("o"))
    assert (config.svlm.model, config.svlm.engine) == (str(demo.SVLM), "transformers")
    assert config.evaluate == EvaluateSection(
        benchmark="b.json", format="textcaps", images="i", max_tokens=64
    )
    for flag in ("--model", "--benchmark", "--output"):
        left = argv[: argv.index(flag)] + argv[argv.index(flag) + 2 :]
        with pytest.raises(ConfigurationError, match=f"{flag} is not set"):
            parse(left)
    assert parse([*argv, "--model", os.path.relpath(demo.SVLM)])[1].svlm.model == str(demo.SVLM), (
        "by the workers too"
    )
    with pytest.raises(ConfigurationError, match="holds no config.json"):
        parse(["--model", str(ROOT / "docs"), "--benchmark", "b", "--output", "o"])
