"""Rounds without models: shares of the images, when there is a further round, which model is kept, and what is written."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from run_folders import picture

from mpa_ray import cli, pipeline, rounds, summary
from mpa_ray.config import Config, EvaluateSection, ModelSection
from mpa_ray.errors import ConfigurationError, NothingToTeach, RunError
from mpa_ray.model_card import model_card
from mpa_ray.storage import Folder


def record(
    *, parity: int, learned: int, forgotten: int, score: float = 50.0, annotations: int = 100, at_most: float = 0.0
) -> dict[str, Any]:
    """A run.json of one round."""
    tokens = [f"{call}_{kind}_tokens" for call in ("annotation", "lvlm_answer", "svlm_answer") for kind in ("prompt", "cached", "output")]
    figure = {"benchmark": "b", "metric": "anls", "score": score, "ci95": [0.0, 99.0], "n": 9}
    paid = {"requests": 3, "prompt_tokens": 9, "cached_tokens": 0, "output_tokens": 1, "cost_usd": at_most, "at_most_usd": at_most}
    arm = {"samples": parity, "seconds": 2.0, "loss": 0.1, "tokens_per_second": 9.0, "batch_size": 16, "learning_rate": 1e-5}
    return {
        "images": annotations + 2,
        "annotations": annotations,
        "quarantined": {"images/empty": 2},
        "verdicts": {"parity": parity, "svlm_correct": annotations - parity, "lvlm_inconsistent": 0},
        "tokens": dict.fromkeys(tokens, 10),
        "encoder_runs": {"pseudo_annotator": 100},
        "training": {"mpa": arm | {"holdout": {"learned": learned, "forgotten": forgotten, "kept": 5, "still_wrong": 1}}},
        "evaluation": [{"model": model, **figure} for model in ("zero_shot", "mpa")],
        "ledger": {"annotate_and_identify": paid},
        "cost_usd": {"annotate_and_identify": at_most},
        "stages": {"annotate_and_identify": 4.0, "train_mpa": 1.0},
    }


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for number in range(10):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    return Config(
        images=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        images_per_part=2,
        rounds=3,
        lvlm=ModelSection(model="a/large"),
        svlm=ModelSection(model="Qwen/Qwen2-VL-2B-Instruct", revision="main"),
        ablations=("no_pi_all",),
        evaluate=EvaluateSection(benchmark="b.parquet", lvlm=True),
    )


class Runs:
    """Stands where pipeline.run does: gives out records and leaves a model folder for each."""

    def __init__(self, *records: dict[str, Any] | Exception) -> None:
        self.records = list(records)
        self.configs: list[Config] = []

    def __call__(self, config: Config) -> dict[str, Any]:
        self.configs.append(config)
        found = self.records[len(self.configs) - 1]
        if isinstance(found, Exception):
            raise found
        Folder.at(config.output).write_bytes("model/config.json", f"round {len(self.configs)}".encode())
        return found


def go(config: Config, runs: Runs) -> dict[str, Any]:
    output = Folder.at(config.output)
    return rounds.run_rounds(config, output, shares=rounds.split(config, output), run=runs)


def test_the_shares_are_the_images_each_once_by_a_fixed_rule(config: Config) -> None:
    shares = rounds.split(config, Folder.at(config.output))
    assert [(share.parts, share.images) for share in shares] == [(2, 4), (2, 4), (1, 2)]
    uris = [[Path(uri).name for part in range(share.parts) for uri in share.part(part).column("image_uri").to_pylist()] for share in shares]
    assert uris == [["0.png", "1.png", "6.png", "7.png"], ["2.png", "3.png", "8.png", "9.png"], ["4.png", "5.png"]]
    again = rounds.split(config, Folder.at(config.output))
    assert again == shares, "a second call finds them"


def test_fewer_parts_than_rounds(config: Config) -> None:
    with pytest.raises(ConfigurationError, match="rounds=6 and the 10 images are 5 parts of up to 2"):
        rounds.split(config.model_copy(update={"rounds": 6}), Folder.at(config.output))


def test_each_round_starts_from_the_model_of_the_last(config: Config) -> None:
    runs = Runs(*(record(parity=parity, learned=9, forgotten=1) for parity in (30, 20, 10)))
    found = go(config, runs)
    first, second, third = runs.configs
    assert first.svlm == config.svlm and first.ablations == ("no_pi_all",) and first.evaluate.lvlm
    assert second.svlm.model == f"{config.output}/rounds/1/model" and second.svlm.revision is None
    assert third.svlm.model == f"{config.output}/rounds/2/model"
    assert not second.ablations and not second.evaluate.lvlm, "comparisons belong to the first round"
    assert {one.rounds for one in runs.configs} == {1} and second.output == f"{config.output}/rounds/2"
    assert {(one.pl.batch_size, one.pl.learning_rate) for one in runs.configs} == {(16, 1e-5)}, "a path says nothing of Table 11"
    assert (found["kept_round"], found["stopped"]) == (3, "all 3 rounds are done")
    assert (Path(config.output) / "model" / "config.json").read_text() == "round 3"


def test_the_record_is_the_sum_and_the_curve(config: Config) -> None:
    runs = Runs(*(record(parity=parity, learned=9, forgotten=1, score=score) for parity, score in ((30, 60.0), (20, 70.0), (10, 75.0))))
    found = go(config, runs)
    assert (found["images"], found["annotations"], found["verdicts"]["parity"]) == (306, 300, 60)
    assert found["quarantined"] == {"images/empty": 6} and found["tokens"]["annotation_prompt_tokens"] == 30
    assert found["encoder_runs"] == {"pseudo_annotator": 300}
    assert found["stages"] == {"round_1": 5.0, "round_2": 5.0, "round_3": 5.0}
    assert [(point["parity_yield"], point["score"]) for point in found["rounds"]] == [(0.3, 60.0), (0.2, 70.0), (0.1, 75.0)]
    assert [score["model"] for score in found["evaluation"]] == ["zero_shot", "round_1", "round_2", "round_3", "mpa"]
    assert found["evaluation"][-1]["score"] == 75.0 and found["training"]["mpa"]["samples"] == 60
    whole = {"config": config.model_dump(mode="json"), **found}
    assert "round_3" in summary.table(whole) and "learned 9 and forgot 1" in model_card(config, whole)
    assert rounds.table(found["rounds"]).splitlines()[2].split() == ["2", "102", "100", "20", "20.0", "9", "1", "70.0"]


def test_a_round_that_forgets_as_much_as_it_learns_is_the_last_and_is_not_kept(config: Config) -> None:
    found = go(config, Runs(record(parity=30, learned=9, forgotten=1), record(parity=20, learned=4, forgotten=4)))
    assert found["kept_round"] == 1 and "round 2 forgot as much as it learned (4 against 4" in found["stopped"]
    assert (Path(config.output) / "model" / "config.json").read_text() == "round 1"
    assert found["training"]["mpa"]["samples"] == 30 and len(found["rounds"]) == 2


def test_a_parity_yield_that_does_not_fall_ends_the_rounds(config: Config) -> None:
    found = go(config, Runs(record(parity=30, learned=9, forgotten=1), record(parity=30, learned=5, forgotten=4)))
    assert found["kept_round"] == 2, "it learned more than it forgot"
    assert found["stopped"] == "round 2 had as much to learn as the round before it (30.0% after 30.0% of annotations)"


def test_where_no_round_helps_the_first_is_what_there_is(config: Config) -> None:
    found = go(config, Runs(record(parity=30, learned=1, forgotten=9)))
    assert (found["kept_round"], found["rounds"][0]["improved"]) == (1, False)


def test_nothing_left_to_learn_is_an_end_and_not_an_error(config: Config) -> None:
    found = go(config, Runs(record(parity=30, learned=9, forgotten=1), NothingToTeach("no parity sample among 100")))
    assert found["kept_round"] == 1 and found["stopped"].startswith("round 2 found no parity sample")
    with pytest.raises(NothingToTeach):
        go(config, Runs(NothingToTeach("no parity sample among 100")))


def test_another_error_ends_the_run(config: Config) -> None:
    with pytest.raises(RunError, match="the disk is full"):
        go(config, Runs(record(parity=30, learned=9, forgotten=1), RunError("the disk is full")))


def test_the_budget_is_one_for_all_rounds(config: Config) -> None:
    prices = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 1.0, "max_cost_usd": 10.0}
    paid = config.model_copy(update={"lvlm": ModelSection(model="gpt", engine="openai", **prices)})
    runs = Runs(record(parity=30, learned=9, forgotten=1, at_most=4.0), record(parity=20, learned=9, forgotten=1, at_most=6.0))
    with pytest.raises(RunError, match=r"lvlm.max_cost_usd=10.0 is spent by the rounds before round 3"):
        go(paid, runs)
    assert [one.lvlm.max_cost_usd for one in runs.configs] == [10.0, 6.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 2, "pl": {"holdout": 0}}, "held-out rows tell when to stop"),
        ({"rounds": 2, "annotations": "a"}, "a round annotates fresh images"),
        ({"rounds": 0}, "greater than 0"),
    ],
)
def test_rounds_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(settings)


def test_the_pipeline_makes_rounds(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--rounds` on the command line, with runs that make no model; a finished run is shown again."""
    monkeypatch.setattr(pipeline, "_check_inputs", lambda config: None)
    records = {1: record(parity=30, learned=9, forgotten=1), 2: record(parity=20, learned=2, forgotten=3)}

    def one_run(config: Config, output: Folder, held: Any) -> dict[str, Any]:
        output.write_bytes("model/config.json", b"{}")
        return records[int(output.uri.rpartition("/")[2])]

    monkeypatch.setattr(pipeline, "_run", one_run)
    argv = ["--images", config.images, "--output", config.output, "--images_per_part", "2", "--rounds", "3"]
    asked = cli.parse(Config(lvlm=config.lvlm, svlm=config.svlm), argv)
    found = pipeline.run(asked)
    output = Folder.at(config.output)
    assert found == output.read_json("run.json") and found["kept_round"] == 1
    assert output.read_json("evaluation/metrics.json") == found["evaluation"]
    assert output.read_json("config.json")["rounds"] == 3 and output.exists("model/README.md")
    assert pipeline.run(asked) == found
