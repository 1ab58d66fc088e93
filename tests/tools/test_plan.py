"""What a run will take, told from a smaller one; and the forecast held against the whole run."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.config.parse import merge, validate
from mpa_ray.demo import render
from mpa_ray.demo.presets import preset
from mpa_ray.errors import ConfigurationError
from mpa_ray.stages.commits import TOKEN_COLUMNS, add_up
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.planning.plan import Hardware, Range, Stage, forecast, table, with_prices
from mpa_ray.tools.planning.probe import probe, sample
from mpa_ray.tools.planning.rates import rates_of, read_rates

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    lvlm=ModelSection(model="A", max_replicas=3),
    svlm=ModelSection(model="B", max_replicas=1),
    pl=TrainingSection(workers=2, holdout=0.1),
)
STAGES = {
    "annotate_and_identify": {"seconds": 140.0},
    "demo_inputs": {"seconds": 5.0},
    "evaluate_mpa": {"seconds": 30.0},
    "holdout_mpa": {"seconds": 70.0, "learned": 5, "forgotten": 1, "kept": 10, "still_wrong": 4},
    "train_mpa": {"seconds": 90.0, "loop_seconds": 60.0, "samples": 30, "timed_samples": 30},
    "train_few_shot_full": {
        "seconds": 50.0,
        "loop_seconds": 20.0,
        "samples": 100,
        "timed_samples": 100,
    },
}


def commit(
    part: int, *, committed: float, call: float = 0.0, images: int = 10, prompt: int = 1000
) -> dict[str, Any]:
    tokens = {name: 0 for name in TOKEN_COLUMNS} | {
        "annotation_prompt_tokens": prompt,
        "lvlm_answer_output_tokens": 100,
    }
    verdicts = {"parity": 3, "svlm_correct": 6}
    counts = {
        "images": images,
        "annotations": images,
        "quarantined": {"images/empty": 1},
        "verdicts": verdicts,
        "tokens": tokens,
    }
    return {"part": part, "call": call, "committed": committed, **counts}


# 40 s of loading, then 2 s an image.
STEADY = [commit(part, committed=40.0 + 20.0 * (part + 1)) for part in range(10)]


def of(
    rates: Any, *, config: Config = CONFIG, images: int = 1000, **hardware: Any
) -> dict[str, Stage]:
    return {
        stage.name: stage
        for stage in forecast(rates, config, images=images, hardware=Hardware(**hardware)).stages
    }


def test_loading_is_told_apart_from_the_rate() -> None:
    rates = rates_of(STEADY, stages=STAGES, paid={})
    assert (rates.startup_s, rates.seconds_per_image) == (pytest.approx(40.0), pytest.approx(2.0))
    found = of(rates)["annotate_and_identify"]
    assert (found.gpus, found.seconds.expected) == (4, pytest.approx(40 + 2 * 1000))
    assert of(rates, gpus=8)["annotate_and_identify"].seconds.expected == pytest.approx(
        40 + 2 * 1000 / 2
    ), "twice the GPUs"


def test_a_call_that_was_killed_and_one_that_went_on_tell_one_rate() -> None:
    first = [commit(part, committed=100 + 30 + 20.0 * (part + 1), call=100.0) for part in range(4)]
    second = [
        commit(4 + part, committed=5000 + 50 + 20.0 * (part + 1), call=5000.0) for part in range(4)
    ]
    rates = rates_of(first + second, stages={}, paid={})
    assert (rates.startup_s, rates.seconds_per_image) == (
        pytest.approx(40.0),
        pytest.approx(2.0),
    ), "the time between them is no work"


@pytest.mark.parametrize(
    ("ahead", "message"),
    [(-3600, "-3,440 s after"), (3600, "3,760 s after its call began, which took 240 s")],
)
def test_commits_of_a_machine_with_another_clock_tell_no_rate(ahead: float, message: str) -> None:
    stages = {"annotate_and_identify": {"seconds": 240.0, "calls": [[0.5, 240.0]]}}
    rates_of(STEADY, stages=stages, paid={})
    commits = [*STEADY[:5], STEADY[5] | {"committed": STEADY[5]["committed"] + ahead}, *STEADY[6:]]
    with pytest.raises(
        ConfigurationError, match=f"part 5 was committed {message}.*clocks of the machines differ"
    ):
        rates_of(commits, stages=stages, paid={})


def test_training_grows_with_the_images_and_shrinks_with_the_workers() -> None:
    rates = rates_of(STEADY, stages=STAGES, paid={})
    found = of(rates, workers=4)
    assert found["train_mpa"].seconds.expected == pytest.approx(30 + 60 * 10 / 2)
    assert found["train_mpa"].gpus == 4
    assert found["train_few_shot_full"].seconds.expected == pytest.approx(30 + 20 / 2), (
        "there are as many labels as before"
    )
    assert found["evaluate_mpa"].seconds.expected == 30, "and as many questions"
    # 20 rows at 2 s a row are 40 of the 70 seconds.
    assert found["holdout_mpa"].seconds.expected == pytest.approx(30 + 40 * 10)
    assert "demo_inputs" not in found


@pytest.mark.parametrize(
    "told",
    [
        {"samples": 60, "timed_samples": 30},
        # Of an earlier version, whose seconds are those of the last group of workers: from the
        # third step on, in batches of 15.
        {"samples": 60, "workers": [[1, 1], [3, 2]], "batch_size": 15},
    ],
)
def test_a_training_of_which_only_a_part_was_timed(told: dict[str, Any]) -> None:
    step = {"seconds": 90.0, "loop_seconds": 30.0} | told
    found = of(rates_of(STEADY, stages={"train_mpa": step}, paid={}))["train_mpa"]
    assert found.seconds.expected == pytest.approx(60 + 60 * 10), "the 60 samples took 60 s"


def test_stages_are_planned_in_the_order_in_which_they_ran() -> None:
    found = of(
        rates_of(
            STEADY,
            stages={"train_mpa": STAGES["train_mpa"], "evaluate_mpa": {"seconds": 1.0}},
            paid={},
        )
    )
    assert list(found) == ["annotate_and_identify", "train_mpa", "evaluate_mpa"]


def test_nodes_are_paid_whole() -> None:
    hardware = Hardware(gpus_per_node=8, usd_per_gpu_hour=2.0)
    stage = Stage(name="x", gpus=9, seconds=Range(3600.0, 1800.0, 7200.0))
    assert stage.nodes(hardware) == 2
    assert stage.usd(hardware) == Range(32.0, 16.0, 64.0)


def test_an_api_is_paid_by_its_tokens_and_does_not_grow_with_our_gpus() -> None:
    rates = rates_of(STEADY, stages={}, paid={})
    config = with_prices(CONFIG, input_tokens=2.0, cached_tokens=None, output_tokens=10.0)
    found = forecast(rates, config, images=1000, hardware=Hardware())
    # 100 tokens in and 10 out an image.
    assert found.api_usd is not None and found.api_usd.expected == pytest.approx(
        1000 * (100 * 2 + 10 * 10) / 1e6
    )
    assert forecast(rates, CONFIG, images=1000, hardware=Hardware()).api_usd is None
    api = config.model_copy(
        update={"lvlm": config.lvlm.model_copy(update={"engine": "openai", "max_replicas": 1})}
    )
    assert of(rates, config=api, gpus=8)["annotate_and_identify"].seconds.expected == pytest.approx(
        40 + 2 * 1000
    )


def test_what_an_api_billed_beside_the_annotations_is_paid_again() -> None:
    # The ledger of 100 images has half as many tokens more than their annotations: replies that
    # could not be parsed.
    account = {
        "prompt_tokens": 15_000,
        "cached_tokens": 0,
        "output_tokens": 1_500,
        "cost_usd": 0.045,
    }
    rates = rates_of(
        STEADY,
        stages={},
        paid={"annotate_and_identify": account, "jury_0": account | {"cost_usd": 0.01}},
    )
    config = with_prices(CONFIG, input_tokens=2.0, cached_tokens=None, output_tokens=10.0)
    found = forecast(rates, config, images=1000, hardware=Hardware())
    assert found.api_usd is not None and found.api_usd.expected == pytest.approx(0.45 + 0.1)


def test_one_price_alone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the prices of input and of output"):
        with_prices(CONFIG, input_tokens=1.0, cached_tokens=None, output_tokens=None)


def test_too_few_parts_tell_no_rate() -> None:
    with pytest.raises(ConfigurationError, match="4 parts are committed, and at least 5"):
        rates_of(STEADY[:4], stages={}, paid={})
    with pytest.raises(ConfigurationError, match="0 parts"):
        rates_of([], stages={}, paid={})


def test_a_shorter_last_part_does_not_count_as_the_others() -> None:
    last = commit(10, committed=300.0, images=2, prompt=100_000)
    assert (
        rates_of([*STEADY, last], stages={}, paid={}).tokens["annotation_prompt_tokens"]
        == [100.0] * 10
    )


def test_parts_of_large_images_count_by_their_images() -> None:
    # 50 images in parts of 10 at 1 s each, then as many in parts of 2, which ended by their bytes,
    # at 3 s and with three times the tokens.
    commits = [commit(part, committed=40.0 + 10 * (part + 1)) for part in range(5)]
    commits += [
        commit(5 + part, committed=90.0 + 6 * (part + 1), images=2, prompt=600)
        for part in range(25)
    ]
    rates = rates_of(commits, stages={}, paid={})
    assert rates.tokens["annotation_prompt_tokens"] == [100.0] * 5 + [300.0] * 8
    found = of(rates, images=10_000)["annotate_and_identify"].seconds
    assert rates.seconds_per_image == pytest.approx(2.0, rel=0.1)
    assert found.low < found.expected < found.high and 10_000 * 2 in found


def test_parts_that_are_too_unlike_tell_no_rate() -> None:
    commits = [
        commit(part, committed=100.0 * (part + 1), images=1 if part else 100) for part in range(8)
    ]
    with pytest.raises(
        ConfigurationError,
        match="the 8 parts that are committed differ too much in their numbers of images",
    ):
        rates_of(commits, stages={}, paid={})


@pytest.mark.parametrize("parts", [8, 12, 16])
def test_the_demos_whole_run_lies_in_the_range_told_from_its_first_parts(parts: int) -> None:
    """tests/demo_commits.json are the commits of a real run of the demo with 4,000 images."""
    commits = json.loads((ROOT / "tests/demo_commits.json").read_text())
    rates = rates_of(commits[:parts], stages={}, paid={})
    rest = add_up(commits[parts:])
    found = forecast(rates, validate(preset("demo")), images=rest["images"], hardware=Hardware())
    assert rest["verdicts"]["parity"] in found.parity
    assert sum(rest["quarantined"].values()) in found.quarantined
    for name, count in rest["tokens"].items():
        assert count in found.tokens[name], name
    assert found.parity.high < 1.4 * found.parity.low, "a range that says something"


def test_the_table_says_it_all() -> None:
    rates = rates_of(STEADY, stages=STAGES, paid={})
    hardware = Hardware(gpus=8, gpus_per_node=8, usd_per_gpu_hour=1.5)
    text = table(forecast(rates, CONFIG, images=10_000, hardware=hardware), rates, CONFIG, hardware)
    assert text.startswith(
        "PA and PI were measured at 0.50 images/s on 4 GPUs after 40 s of loading, over 100 images"
    )
    lines = {line.partition("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["parity set"][2] == "3,000"
    assert lines["L-VLM tokens in"][3] == "1,000,000"
    assert lines["annotate_and_identify"][1:8] == ["8", "1", "2", "h", "47", "min", "22.3"]
    assert lines["annotate_and_identify"][-1] == "$33.47"
    assert "GPUs, each paid while its stage runs: $" in text


def test_a_sample_is_drawn_evenly() -> None:
    counts: Counter[str] = Counter()
    for seed in range(3000):
        drawn, listed = sample(map(str, range(10)), 3, seed=seed, what="x")
        assert len(set(drawn)) == 3 and listed == 10
        counts.update(drawn)
    assert all(800 < count < 1000 for count in counts.values()), counts
    assert sorted(sample(iter("abc"), 5, seed=0, what="x")[0]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 2}, "rounds=2: a probe is of one round"),
        ({"annotations": "x", "demo": {"images": 0}}, "annotations='.*x': a probe is of one round"),
        ({}, "--probe 100: with 64 images in flight it takes 320"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = validate(merge(merge(preset("demo"), {"output": str(tmp_path / "probe")}), changes))
    with pytest.raises(ConfigurationError, match=message):
        probe(config, count=100)
    assert not (tmp_path / "probe").exists()


def plan(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, str(ROOT / "jobs/plan.py"), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--rates", "{}/none", "--count", 5],
            "--rates {}/none: there is no finished run; give the output folder of one",
        ),
        (["--rates", "{}/run"], "--count is not set; give the number of images to plan for"),
        (
            ["--rates", "{}/run", "--count", 5, "--seed", 4],
            "--seed: --rates takes no flags of a run; for other settings run a --probe",
        ),
        (
            ["--rates", "{}/run", "--count", 5],
            "0 parts are committed, and at least 5 of one call tell a rate",
        ),
        (
            ["--rates", "{}/rounds", "--count", 5],
            "--rates {}/rounds: a run of 3 rounds has a rate in each; give {}/rounds/rounds/1",
        ),
        (["--probe", 5, "--images", "x"], "--output is not set"),
    ],
)
def test_what_no_plan_can_be_made_of_is_one_line(
    tmp_path: Path, flags: list[object], message: str
) -> None:
    for name, rounds in (("run", 1), ("rounds", 3)):
        Folder.at(tmp_path / name).write_json("config.json", {"images": "x", "rounds": rounds})
        Folder.at(tmp_path / name).write_json("run.json", {"config": {}})
    said = plan(*(str(flag).format(tmp_path) for flag in flags), code=2)
    assert f"error: {message.replace('{}', str(tmp_path))}" in said


def test_a_probe_of_a_folder_and_a_plan_from_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'benchmarks'}:{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    render.write_images(tmp_path / "images", kind="sign", count=150, seed=3)
    flags = [
        "--preset",
        "demo",
        "--demo.images",
        0,
        "--images",
        tmp_path / "images",
        "--output",
        tmp_path / "probe",
        "--ablations",
        "[]",
    ]
    for model in ("lvlm", "svlm"):
        # With so good an S-VLM there is nothing to train on, which spares the test the training,
        # and is no reason not to plan.
        flags += [f"--{model}.engine", "instant:lvlm", f"--{model}.images_in_flight", 8]
    said = plan("--probe", 96, "--count", 10**6, "--cards", 4, *flags)
    assert "probe: 96 of 150 images, drawn at random" in said and "no parity sample among" in said
    assert "\n1,000,000 images" in said and "\nannotate_and_identify      4 " in said
    assert Folder.at(tmp_path / "probe/manifest").read_json("probe.json") == {
        "listed": 150,
        "drawn": 96,
    }
    assert len(list((tmp_path / "probe/commits").iterdir())) == 12
    assert "\n150 images" in plan("--probe", 96, *flags)


@pytest.mark.slow
def test_a_probes_forecast_holds_a_real_run(ray_session: None, tmp_path: Path) -> None:
    """The embedded pair on vLLM: a probe of 384 images, and a run of 1,500."""
    from mpa_ray import pipeline

    def config(name: str, images: int) -> Config:
        changes = {
            "output": str(tmp_path / name),
            "ablations": (),
            "demo": {"images": images, "questions": 16},
            "seed": len(name),
        }
        return validate(merge(preset("demo"), changes))

    small, listed = probe(config("probe", 1500), count=384)
    assert listed == 1500
    assert "\n9,000 images" in plan("--rates", tmp_path / "probe/run.json", "--count", 9000), (
        "stored rates plan without a model"
    )
    rates = read_rates(Folder.at(small.output), small)
    found = forecast(rates, small, images=1500, hardware=Hardware())
    truth = pipeline.run(config("whole", 1500))
    assert truth["verdicts"]["parity"] in found.parity
    for name, count in truth["tokens"].items():
        assert count in found.tokens[name], name
    assert {stage.name for stage in found.stages} >= {
        "annotate_and_identify",
        "train_mpa",
        "holdout_mpa",
    }
