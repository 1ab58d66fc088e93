"""Rounds without models: shares of the images, when there is a further round, which model is kept,
and what is written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from pydantic import ValidationError
from run_folders import picture

from mpa_ray import cli, pipeline
from mpa_ray.config import Config, EvaluateSection, ModelSection, TrainingSection
from mpa_ray.errors import ConfigurationError, NothingToTeach, RunError
from mpa_ray.report import summary, write_report
from mpa_ray.report.model_card import model_card
from mpa_ray.steps import rounds
from mpa_ray.steps.step import Run
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease


def record(
    *,
    parity: int,
    learned: int,
    forgotten: int,
    score: float = 50.0,
    annotations: int = 100,
    at_most: float = 0.0,
) -> dict[str, Any]:
    """A run.json of one round."""
    tokens = [
        f"{call}_{kind}_tokens"
        for call in ("annotation", "lvlm_answer", "svlm_answer")
        for kind in ("prompt", "cached", "output")
    ]
    figure = {"benchmark": "b", "metric": "anls", "score": score, "ci95": [0.0, 99.0], "n": 9}
    paid = {
        "requests": 3,
        "prompt_tokens": 9,
        "cached_tokens": 0,
        "output_tokens": 1,
        "cost_usd": at_most,
        "at_most_usd": at_most,
    }
    arm = {
        "samples": parity,
        "seconds": 2.0,
        "loss": 0.1,
        "tokens_per_second": 9.0,
        "batch_size": 16,
        "learning_rate": 1e-5,
    }
    return {
        "images": annotations + 2,
        "annotations": annotations,
        "quarantined_images": 2,
        "quarantined": {"images/empty": 2},
        "verdicts": {
            "parity": parity,
            "svlm_correct": annotations - parity,
            "lvlm_inconsistent": 0,
        },
        "tokens": dict.fromkeys(tokens, 10),
        "training": {
            "mpa": arm
            | {"holdout": {"learned": learned, "forgotten": forgotten, "kept": 5, "still_wrong": 1}}
        },
        "evaluation": [{"model": model, **figure} for model in ("zero_shot", "mpa")],
        "ledger": {"annotate_and_identify": paid},
        "cost_usd": {"annotate_and_identify": at_most},
        "stages": {"annotate_and_identify": 4.0, "train_mpa": 1.0},
        "seconds": 4.0,
        "placement": {"cluster": {"nodes": []}},
    }


def untrained(why: str, **counts: Any) -> NothingToTeach:
    """How a round ends that found nothing to train on."""
    error = NothingToTeach(why)
    error.record = record(learned=0, forgotten=0, **counts) | {"training": {}, "evaluation": []}
    return error


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
        Folder.at(config.output).write_bytes(
            "model/config.json", f"round {len(self.configs)}".encode()
        )
        for score in found["evaluation"]:
            Folder.at(config.output).write_bytes(
                f"evaluation/predictions/{score['model']}.parquet",
                f"{score['model']} of round {len(self.configs)}".encode(),
            )
        return found


def go(
    config: Config, runs: Callable[[Config], dict[str, Any]], held: Lease | None = None
) -> dict[str, Any]:
    output = Folder.at(config.output)
    return rounds.run_rounds(
        config, output, shares=rounds.split(config, output), run=runs, held=held or Lease()
    )


def test_the_shares_are_the_images_each_once_by_a_fixed_rule(config: Config) -> None:
    shares = rounds.split(config, Folder.at(config.output))
    assert [(share.parts, share.images) for share in shares] == [(2, 4), (2, 4), (1, 2)]
    uris = [
        [
            Path(uri).name
            for part in range(share.parts)
            for uri in share.part(part).column("image_uri").to_pylist()
        ]
        for share in shares
    ]
    assert uris == [
        ["0.png", "1.png", "6.png", "7.png"],
        ["2.png", "3.png", "8.png", "9.png"],
        ["4.png", "5.png"],
    ]
    again = rounds.split(config, Folder.at(config.output))
    assert again == shares, "a second call finds them"


def test_fewer_parts_than_rounds(config: Config) -> None:
    with pytest.raises(
        ConfigurationError, match="rounds=6 and the 10 images are 5 parts of up to 2"
    ):
        rounds.split(config.model_copy(update={"rounds": 6}), Folder.at(config.output))


def test_each_round_starts_from_the_model_of_the_last(config: Config) -> None:
    runs = Runs(*(record(parity=parity, learned=9, forgotten=1) for parity in (30, 20, 10)))
    found = go(config, runs)
    first, second, third = runs.configs
    assert first.svlm == config.svlm and first.ablations == ("no_pi_all",) and first.evaluate.lvlm
    assert second.svlm.model == f"{config.output}/rounds/1/model" and second.svlm.revision is None
    assert third.svlm.model == f"{config.output}/rounds/2/model"
    assert not second.ablations and not second.evaluate.lvlm, (
        "comparisons belong to the first round"
    )
    assert {one.rounds for one in runs.configs} == {
        1
    } and second.output == f"{config.output}/rounds/2"
    assert {(one.pl.batch_size, one.pl.learning_rate) for one in runs.configs} == {(16, 1e-5)}, (
        "a path says nothing of Table 11"
    )
    assert (found["kept_round"], found["stopped"]) == (3, "all 3 rounds are done")
    assert (Path(config.output) / "model" / "config.json").read_text() == "round 3"


def test_the_record_is_the_sum_and_the_curve(config: Config) -> None:
    runs = Runs(
        *(
            record(parity=parity, learned=9, forgotten=1, score=score)
            for parity, score in ((30, 60.0), (20, 70.0), (10, 75.0))
        )
    )
    found = go(config, runs)
    assert (found["images"], found["annotations"], found["verdicts"]["parity"]) == (306, 300, 60)
    assert (
        found["quarantined_images"] == 6
        and found["quarantined"] == {"images/empty": 6}
        and found["tokens"]["annotation_prompt_tokens"] == 30
    )
    assert found["stages"] == {"round_1": 5.0, "round_2": 5.0, "round_3": 5.0}
    assert (found["seconds"], found["wall_seconds"]) == (12.0, 15.0) and list(
        found["placement"]
    ) == ["round_1", "round_2", "round_3"]
    assert [(point["parity_yield"], point["score"]) for point in found["rounds"]] == [
        (0.3, 60.0),
        (0.2, 70.0),
        (0.1, 75.0),
    ]
    assert [score["model"] for score in found["evaluation"]] == [
        "zero_shot",
        "round_1",
        "round_2",
        "round_3",
        "mpa",
    ]
    assert found["evaluation"][-1]["score"] == 75.0 and found["training"]["mpa"]["samples"] == 60
    whole = {"config": config.model_dump(mode="json"), **found}
    assert "round_3" in summary.table(whole) and "learned 9 and forgot 1" in model_card(
        config, whole
    )
    assert rounds.table(found["rounds"]).splitlines()[2].split() == [
        "2",
        "102",
        "100",
        "20",
        "20.0",
        "9",
        "1",
        "70.0",
    ]


def test_a_round_that_forgets_as_much_as_it_learns_is_the_last_and_is_not_kept(
    config: Config,
) -> None:
    found = go(
        config,
        Runs(record(parity=30, learned=9, forgotten=1), record(parity=20, learned=4, forgotten=4)),
    )
    assert (
        found["kept_round"] == 1
        and "round 2 forgot as much as it learned (4 against 4" in found["stopped"]
    )
    assert (Path(config.output) / "model" / "config.json").read_text() == "round 1"
    assert found["training"]["mpa"]["samples"] == 30 and len(found["rounds"]) == 2


def test_a_parity_yield_that_does_not_fall_ends_the_rounds(config: Config) -> None:
    found = go(
        config,
        Runs(record(parity=30, learned=9, forgotten=1), record(parity=30, learned=5, forgotten=4)),
    )
    assert found["kept_round"] == 2, "it learned more than it forgot"
    assert (
        found["stopped"]
        == "round 2 had as much to learn as the round before it (30.0% after 30.0% of annotations)"
    )


def test_where_no_round_helps_the_first_is_what_there_is(config: Config) -> None:
    found = go(config, Runs(record(parity=30, learned=1, forgotten=9)))
    assert (found["kept_round"], found["rounds"][0]["improved"]) == (1, False)


def test_nothing_left_to_learn_is_an_end_that_counts(config: Config) -> None:
    found = go(
        config,
        Runs(
            record(parity=30, learned=9, forgotten=1, at_most=4.0),
            untrained("no parity sample", parity=0, at_most=5.0),
        ),
    )
    assert (
        found["kept_round"] == 1
        and found["stopped"] == "round 2 had nothing to train on (no parity sample)"
    )
    assert (found["images"], found["annotations"], found["tokens"]["annotation_prompt_tokens"]) == (
        204,
        200,
        20,
    )
    assert (
        found["cost_usd"] == {"round_1": 4.0, "round_2": 5.0}
        and found["ledger"]["round_2"]["requests"] == 3
    )
    assert found["stages"] == {"round_1": 5.0, "round_2": 5.0} and found["seconds"] == 8.0
    last = found["rounds"][1]
    assert (last["parity_yield"], last["improved"], last["learned"], last["score"]) == (
        0.0,
        False,
        None,
        None,
    )
    assert rounds.table(found["rounds"]).splitlines()[2].split() == [
        "2",
        "102",
        "100",
        "0",
        "0.0",
        "-",
        "-",
        "-",
    ]
    assert [score["model"] for score in found["evaluation"]] == ["zero_shot", "round_1", "mpa"]
    with pytest.raises(NothingToTeach):
        go(config, Runs(untrained("no parity sample", parity=0)))


@pytest.mark.parametrize("counts", [{"parity": 2}, {"parity": 0, "annotations": 0}])
def test_a_later_round_that_cannot_train_keeps_the_good_ones(
    config: Config, counts: dict[str, int]
) -> None:
    """All of its few parity rows are held out, or all of its images are quarantined."""
    found = go(
        config,
        Runs(record(parity=30, learned=9, forgotten=1), untrained("no row to train on", **counts)),
    )
    assert found["kept_round"] == 1 and len(found["rounds"]) == 2
    assert (Path(config.output) / "model" / "config.json").read_text() == "round 1"


def test_the_report_shows_a_round_that_was_not_trained(config: Config) -> None:
    found = go(
        config,
        Runs(record(parity=30, learned=9, forgotten=1), untrained("no parity sample", parity=0)),
    )
    output = Folder.at(config.output)
    output.child("evaluation").delete_folder()
    write_report(output, record={"config": config.model_dump(mode="json"), **found})
    page = " ".join(output.read_bytes("report/index.html").decode().split())
    assert '<td class="num">204</td>' in page, "the images of both"
    row = page[page.index('href="../rounds/2/report/index.html"') :].partition("</tr>")[0]
    assert row.count('<td class="num">–</td>') == 3, "learned, forgotten, score"


def test_the_rounds_predictions_lie_with_the_scores(config: Config) -> None:
    go(
        config,
        Runs(record(parity=30, learned=9, forgotten=1), record(parity=20, learned=4, forgotten=4)),
    )
    folder = Path(config.output) / "evaluation/predictions"
    assert {path.stem: path.read_text() for path in folder.iterdir()} == {
        "zero_shot": "zero_shot of round 1",
        "round_1": "mpa of round 1",
        "round_2": "mpa of round 2",
        "mpa": "mpa of round 1",
    }


def test_a_kill_while_the_model_is_replaced_leaves_no_finished_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison is added to a finished run; its model is being copied again."""
    records = [record(parity=30, learned=1, forgotten=9)]
    go(config, Runs(*records))
    output = Folder.at(config.output)
    output.write_json("run.json", {"training": {"mpa": {}}})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "copy_from", killed)
        with pytest.raises(KeyboardInterrupt):
            go(config, Runs(*records))
    assert not output.exists("run.json")
    go(config, Runs(*records))
    assert output.exists("model/config.json")


def test_a_lost_lease_ends_the_rounds(config: Config) -> None:
    held, runs = Lease(), Runs(record(parity=30, learned=1, forgotten=9))

    def loses(config: Config) -> dict[str, Any]:
        held.lost.set()
        return runs(config)

    with pytest.raises(RunError, match="taken over"):
        go(config, loses, held)
    assert not (Path(config.output) / "model").exists()


def test_another_error_ends_the_run(config: Config) -> None:
    with pytest.raises(RunError, match="the disk is full"):
        go(config, Runs(record(parity=30, learned=9, forgotten=1), RunError("the disk is full")))


def test_the_budget_is_one_for_all_rounds(config: Config) -> None:
    prices = {
        "usd_per_million_input_tokens": 1.0,
        "usd_per_million_output_tokens": 1.0,
        "max_cost_usd": 10.0,
    }
    paid = config.model_copy(update={"lvlm": ModelSection(model="gpt", engine="openai", **prices)})
    runs = Runs(
        record(parity=30, learned=9, forgotten=1, at_most=4.0),
        record(parity=20, learned=9, forgotten=1, at_most=6.0),
    )
    with pytest.raises(
        RunError, match=r"lvlm.max_cost_usd=10.0 is spent by the rounds before round 3"
    ):
        go(paid, runs)
    assert [one.lvlm.max_cost_usd for one in runs.configs] == [10.0, 6.0]


@pytest.mark.parametrize(
    ("changes", "says", "says_not"),
    [
        (
            {},
            [
                "fully fine-tuned on what",
                "every weight was trained",
                "loss: negative log likelihood of the answer tokens (Eq. 3), last step",
                "no human label was used",
            ],
            ["LoRA"],
        ),
        (
            {"pl": TrainingSection(lora_rank=4)},
            ["fine-tuned with LoRA of rank 4 on what", "LoRA of rank 4 on all linear layers"],
            ["fully"],
        ),
        (
            {"parity": "runs/fixed/parity"},
            ["on the parity set `runs/fixed/parity`", "whether people wrote or changed"],
            ["no human label"],
        ),
        (
            {"ablations": ("human_labels",)},
            ["human labels trained the comparisons alone"],
            ["no human label"],
        ),
    ],
)
def test_the_card_says_how_it_was_trained_and_by_whose_labels(
    config: Config, changes: dict[str, Any], says: list[str], says_not: list[str]
) -> None:
    card = model_card(config.model_copy(update=changes), record(parity=30, learned=9, forgotten=1))
    assert all(text in card for text in says) and not any(text in card for text in says_not), card


def test_the_hub_reads_the_scores_of_the_model_itself(config: Config) -> None:
    run = record(parity=30, learned=9, forgotten=1)
    run["evaluation"] = [
        {"model": model, "benchmark": "okvqa_val", "metric": metric, "ci95": None, "n": 9}
        | {"score": score}
        for model, scored in (("zero_shot", (51.0, 60.0)), ("mpa", (57.25, 100 / 3)))
        for metric, score in zip(("vqa_accuracy", "exact_match"), scored, strict=True)
    ]
    data = ModelCard(model_card(config, run)).data
    assert (data.base_model, data.model_name) == (config.svlm.model, "Qwen2-VL-2B-Instruct-mpa")
    assert [
        (score.dataset_name, score.metric_type, score.metric_value) for score in data.eval_results
    ] == [("okvqa_val", "vqa_accuracy", 57.2), ("okvqa_val", "exact_match", 33.3)]
    run["evaluation"] = []
    data = ModelCard(model_card(config, run)).data
    assert data.eval_results is None and data.to_dict()["library_name"] == "transformers"


def test_names_cannot_leave_the_cards_metadata(config: Config) -> None:
    hostile = "a\n---\n# <b>`hi`</b> {{ 1 }}\nlicense: mit\u202e\x1b[31m"
    run = record(parity=30, learned=9, forgotten=1)
    for score in run["evaluation"]:
        score.update(benchmark=hostile, metric=hostile)
    text = model_card(config.model_copy(update={"svlm": ModelSection(model=hostile)}), run)
    card = ModelCard(text)
    front = text[: text.index("# A vision-language model")]
    assert card.text.startswith("\n# A vision-language model") and card.data.license is None
    assert card.data.base_model == hostile and "\u202e" not in front and "\x1b" not in front
    [score] = card.data.eval_results
    assert score.dataset_name == score.metric_type == hostile


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
    """`--rounds` on the command line, with runs that make no model; a finished run is shown
    again.
    """
    monkeypatch.setattr(pipeline, "check_inputs", lambda config: None)
    records = {
        1: record(parity=30, learned=9, forgotten=1),
        2: record(parity=20, learned=2, forgotten=3),
    }

    def one_run(run: Run) -> dict[str, Any]:
        run.output.write_bytes("model/config.json", b"{}")
        run.held.check()
        return records[int(run.output.uri.rpartition("/")[2])]

    monkeypatch.setattr(pipeline, "_run", one_run)
    argv = [
        "--images",
        config.images,
        "--output",
        config.output,
        "--images_per_part",
        "2",
        "--rounds",
        "3",
    ]
    asked = cli.parse(Config(lvlm=config.lvlm, svlm=config.svlm), argv)
    found = pipeline.run(asked)
    output = Folder.at(config.output)
    assert found == output.read_json("run.json") and found["kept_round"] == 1
    assert output.read_json("evaluation/metrics.json") == found["evaluation"]
    assert output.read_json("config.json")["rounds"] == 3 and output.exists("model/README.md")
    assert pipeline.run(asked) == found
