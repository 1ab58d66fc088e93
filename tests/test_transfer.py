"""A model on another benchmark: scored once, and never under another's name; and the job that does it."""

import runpy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import demo, ray_session
from mpa_ray.config import Config, EvaluateSection, ModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import Folder
from mpa_ray.tables import transfer

ROOT = Path(__file__).parents[1]
CONFIG = Config(evaluate=EvaluateSection(benchmark="caps.json", format="textcaps"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def evaluate(model: ModelSection, *, name: str, config: Config, output: Folder) -> list[dict[str, Any]]:
        names.append(name)
        return [{"model": name, "benchmark": "caps", "metric": "cider", "score": 38.1, "ci95": None, "n": 3}]

    monkeypatch.setattr(transfer, "evaluate", evaluate)
    monkeypatch.setattr(ray_session, "ray_session", nullcontext)
    return names


def test_a_model_is_scored_once(asked: list[str], tmp_path: Path) -> None:
    model = ModelSection(model="a/b")
    first = transfer.score_alone(model, name="mpa", config=CONFIG, output=Folder.at(tmp_path))
    assert transfer.score_alone(model, name="mpa", config=CONFIG, output=Folder.at(tmp_path)) == first
    transfer.score_alone(ModelSection(model="c/d"), name="zero_shot", config=CONFIG, output=Folder.at(tmp_path))
    assert asked == ["mpa", "zero_shot"]


def test_scores_of_another_model_or_benchmark_are_not_passed_off(asked: list[str], tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    transfer.score_alone(ModelSection(model="a/b"), name="mpa", config=CONFIG, output=output)
    with pytest.raises(ConfigurationError, match="holds scores of"):
        transfer.score_alone(ModelSection(model="c/d"), name="mpa", config=CONFIG, output=output)
    other = CONFIG.model_copy(update={"evaluate": EvaluateSection(benchmark="other.json", format="textcaps")})
    with pytest.raises(ConfigurationError, match="give another output or name"):
        transfer.score_alone(ModelSection(model="a/b"), name="mpa", config=other, output=output)


def test_the_jobs_flags() -> None:
    parse = runpy.run_path(str(ROOT / "jobs" / "evaluate.py"))["parse"]
    argv = ["--model", str(demo.SVLM), "--benchmark", "b.json", "--format", "textcaps", "--images", "i", "--output", "o"]
    argv += ["--max_tokens", "64"]
    job, config = parse([*argv, "--serve.engine", "transformers", "--serve.gpus_per_replica", "0"])
    assert (job.name, config.output, config.svlm.model, config.svlm.engine) == ("model", "o", str(demo.SVLM), "transformers")
    assert config.evaluate == EvaluateSection(benchmark="b.json", format="textcaps", images="i", max_tokens=64)
    for flag in ("--model", "--benchmark", "--output"):
        left = argv[: argv.index(flag)] + argv[argv.index(flag) + 2 :]
        with pytest.raises(ConfigurationError, match=f"{flag} is not set"):
            parse(left)
    with pytest.raises(ConfigurationError, match="holds no config.json"):
        parse(["--model", str(ROOT / "docs"), "--benchmark", "b", "--output", "o"])
