"""Comparisons are added to a finished run, and the record keeps those it has; no model, the steps are replaced."""

from pathlib import Path
from typing import Any

import pytest

from mpa_ray import pipeline, summary
from mpa_ray.config import Config, ModelSection
from mpa_ray.storage import Folder


def test_comparisons_are_added_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []

    def one_run(config: Config, output: Folder, held: Any) -> dict[str, Any]:
        made.append(config.ablations)
        record = {"training": {name: {} for name in ("mpa", *config.ablations)}}
        output.write_json("run.json", record)
        return record

    monkeypatch.setattr(pipeline, "check", lambda config, output: None)
    monkeypatch.setattr(pipeline, "_run", one_run)
    monkeypatch.setattr(summary, "table", lambda record: "")

    def call(*ablations: str) -> list[str]:
        models = {"lvlm": ModelSection(model="a/b"), "svlm": ModelSection(model="c/d")}
        config = Config(images="i", output=str(tmp_path), ablations=ablations, **models)
        return list(pipeline.run(config)["training"])

    assert call() == ["mpa"]
    assert call("no_pi_all") == ["mpa", "no_pi_all"]
    assert call("consistent") == ["mpa", "no_pi_all", "consistent"]
    assert made == [(), ("no_pi_all",), ("no_pi_all", "consistent")]
    assert call("no_pi_all") == call() == ["mpa", "no_pi_all", "consistent"]
    assert len(made) == 3, "what is there is shown, and nothing is run"
