"""The whole of MPA on real engines, small: what it leaves behind, resuming where it stopped, and
refusing to train on nothing.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from accounting import as_table, assert_accounted_for, rows
from mpa_ray import demo, parity_leveler, pipeline
from mpa_ray.config import Config
from mpa_ray.config.parse import merge, validate
from mpa_ray.demo import inputs, render
from mpa_ray.demo.presets import preset
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.report.run_record import RunRecord, Score, Training
from mpa_ray.schema import Verdict
from mpa_ray.stages import commits
from mpa_ray.steps import train_arm
from mpa_ray.steps.step import Run
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

IMAGES = 140
BAD = {"zero.png": b"", "text.png": b"this is no image", "notes.txt": b"left alone"}


def settings(root: Path, **changes: Any) -> Config:
    """The demo's settings on `root`/images, in small parts, trained by one worker."""
    small = {
        "demo": {"images": 0},
        "images": str(root / "images"),
        "output": str(root / "out"),
        "images_per_part": 32,
        "ablations": (),
        "pl": {"workers": 1, "holdout": 0.2},
        "evaluate": {"benchmark": str(root / "benchmark.parquet"), "lvlm": False},
    }
    return validate(merge(merge(preset("demo"), small), changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    render.write_images(folder / "images", kind="sign", count=IMAGES, seed=11)
    inputs.write(Folder.at(folder), task="textvqa", images=0, questions=64, seed=0)
    whole = (folder / "images" / "000000.png").read_bytes()
    for name, data in (BAD | {"truncated.png": whole[: len(whole) // 2]}).items():
        (folder / "images" / name).write_bytes(data)
    return folder


CPUS_LEFT_TO_PL: list[float] = []


@pytest.fixture(scope="module")
def record(ray_session: None, root: Path) -> dict[str, Any]:
    def level(*arguments: Any, **options: Any) -> dict[str, Any]:
        CPUS_LEFT_TO_PL.append(_free_cpus())
        return parity_leveler.level(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_arm, "level", level)
        return pipeline.run(settings(root))


def test_every_step_has_its_record_and_wrote_what_it_says(
    record: dict[str, Any], root: Path
) -> None:
    config = settings(root)
    output = Folder.at(config.output)
    steps = pipeline.steps(Run(asked_for=config, config=config, output=output, held=Lease()))
    assert [step.name for step in steps] == output.read_json("steps.json")
    assert list(record["stages"]) == [step.name for step in steps]
    for step in steps:
        for name in step.writes:
            assert Path(output.path, name).exists(), f"{step.name} did not write {name}"


def test_the_record_has_the_documented_keys(record: dict[str, Any], root: Path) -> None:
    rounds = {"rounds", "kept_round", "stopped"}
    assert record.keys() == RunRecord.__annotations__.keys() - rounds
    for arm in record["training"].values():
        assert arm.keys() == Training.__annotations__.keys()
    assert all(score.keys() == Score.__annotations__.keys() for score in record["evaluation"])
    for commit in commits.commits(Folder.at(root / "out")):
        assert commit.keys() == commits.Commit.__annotations__.keys()


def _free_cpus() -> float:
    """What is free of the session's four CPUs; Ray counts a second or two behind."""
    import ray

    for _ in range(100):
        if ray.available_resources().get("CPU", 0.0) == 4:
            break
        time.sleep(0.1)
    return ray.available_resources().get("CPU", 0.0)


def test_the_engines_are_gone_before_training_asks(record: dict[str, Any]) -> None:
    assert CPUS_LEFT_TO_PL == [4]


def test_where_it_ran_is_kept(record: dict[str, Any], root: Path) -> None:
    placed = record["placement"]
    assert {name: model["max_replicas"] for name, model in placed["models"].items()} == {
        "lvlm": 1,
        "svlm": 1,
    }
    assert placed["training"]["workers"] == record["config"]["pl"]["workers"] == 1
    assert record["training"]["mpa"]["workers"] == [[1, 1]]
    assert json.loads((root / "out" / "run.json").read_text())["placement"] == placed


def test_gpus_that_nobody_has_end_a_run_before_it_loads_anything(
    ray_session: None, root: Path, tmp_path: Path
) -> None:
    config = settings(
        root, output=str(tmp_path), lvlm={"gpus_per_replica": 4}, cluster={"patience_s": 2}
    )
    with pytest.raises(
        RunError,
        match=r"annotate and identify asks for 4 GPU on one node, and the largest node has"
        r" 0.*gpus_per_replica",
    ):
        pipeline.run(config)
    assert not (tmp_path / "commits").exists()


def test_every_image_is_accounted_for(record: dict[str, Any], root: Path) -> None:
    output = Folder.at(root / "out")
    assert_accounted_for(output)
    assert record["images"] == IMAGES + 3
    reasons = {
        Path(row["image_uri"]).name: row["reason"]
        for row in rows(output.child("quarantine"))
        if row["stage"] == "images"
    }
    assert reasons == {
        "zero.png": "empty",
        "text.png": "not_an_image",
        "truncated.png": "truncated",
    }
    assert (
        sum(record["quarantined"].values())
        + len({row["image_id"] for row in rows(output.child("annotations"))})
        == record["images"]
    )


def test_verdicts_follow_the_stored_answers(record: dict[str, Any], root: Path) -> None:
    from mpa_ray.tasks.matchers import MATCHERS

    judged = rows(Folder.at(root / "out").child("judgements"))
    exact = MATCHERS["exact"]
    assert {row["verdict"] for row in judged} >= {Verdict.PARITY, Verdict.SVLM_CORRECT}
    for row in judged:
        consistent = exact(row["lvlm_answer"], row["answer"])
        assert (row["verdict"] != Verdict.LVLM_INCONSISTENT) == consistent
        assert (row["svlm_answer"] is not None) == consistent, (
            "the S-VLM is asked only where the L-VLM agrees with itself"
        )
        if consistent:
            assert (row["verdict"] == Verdict.SVLM_CORRECT) == exact(
                row["svlm_answer"], row["answer"]
            )
    assert record["verdicts"][Verdict.PARITY] < len(judged) / 2


def test_tokens_are_the_sums_of_the_rows(record: dict[str, Any], root: Path) -> None:
    table = as_table(Folder.at(root / "out").child("judgements"))
    for name, total in record["tokens"].items():
        assert total == sum(value or 0 for value in table.column(name).to_pylist())
    assert record["tokens"]["annotation_prompt_tokens"] > 16 * IMAGES, (
        "an image is 16 tokens at least"
    )


def test_the_svlm_is_asked_where_the_lvlm_is_consistent(record: dict[str, Any]) -> None:
    verdicts = record["verdicts"]
    assert record["svlm_asked"] == verdicts[Verdict.PARITY] + verdicts[Verdict.SVLM_CORRECT]


def test_the_aligned_model_is_a_checkpoint_that_loads(record: dict[str, Any], root: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trained = AutoModelForImageTextToText.from_pretrained(root / "out" / "model")
    AutoProcessor.from_pretrained(root / "out" / "model")
    original = AutoModelForImageTextToText.from_pretrained(demo.SVLM)
    assert trained.dtype == original.dtype
    pairs = zip(trained.parameters(), original.parameters(), strict=True)
    assert all(not torch.equal(new, old) for new, old in pairs if new.dim() > 1), (
        "full fine-tuning moves every matrix"
    )


def test_scores_and_changes_are_reported(record: dict[str, Any], root: Path) -> None:
    scores = json.loads((root / "out" / "evaluation" / "metrics.json").read_text())
    assert [(score["model"], score["metric"]) for score in scores] == [
        (model, metric)
        for model in ("zero_shot", "mpa")
        for metric in ("textvqa_accuracy", "mpa_compat_accuracy")
    ]
    for score in scores:
        assert score["n"] == 64
        assert 0 <= score["ci95"][0] <= score["score"] <= score["ci95"][1] <= 100
    predictions = Folder.at(root / "out" / "evaluation" / "predictions").read_table("mpa.parquet")
    assert 100 * sum(predictions.column("textvqa_accuracy").to_pylist()) / 64 == pytest.approx(
        scores[2]["score"]
    )
    changes = record["training"]["mpa"]["holdout"]
    held_out = rows(Folder.at(root / "out" / "holdout" / "mpa"))
    assert sum(changes.values()) == len(held_out) > 0
    assert (root / "out" / "report" / "parity_samples.png").stat().st_size > 1000
    assert (root / "out" / "report" / "index.html").stat().st_size > 100_000


def test_held_out_rows_are_not_trained_on(record: dict[str, Any], root: Path) -> None:
    held_out = {row["sample_id"] for row in rows(Folder.at(root / "out" / "holdout" / "mpa"))}
    parity = {row["sample_id"] for row in rows(Folder.at(root / "out" / "parity"))}
    assert record["training"]["mpa"]["samples"] == len(parity - held_out)
    assert parity & held_out, "some parity rows are held out, or nothing could be learned there"


def test_a_lost_commit_is_done_again_and_nothing_else(record: dict[str, Any], root: Path) -> None:
    output = root / "out"
    before = {path: path.stat().st_mtime_ns for path in (output / "annotations").iterdir()}
    again = "part-00000002"
    (output / "commits" / f"{again}.json").unlink()
    (output / "run.json").unlink()
    (output / "quarantine" / f"{again}.parquet").write_bytes(b"left by an attempt that was killed")
    repeated = pipeline.run(settings(root))
    assert_accounted_for(Folder.at(output))
    assert {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time} == {
        again
    }
    assert repeated["verdicts"].keys() == record["verdicts"].keys()
    assert repeated["images"] == record["images"]
    assert repeated["evaluation"] == record["evaluation"], (
        "finished steps are taken from their records"
    )


def test_a_finished_run_is_shown_again(
    record: dict[str, Any], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.run(settings(root))["images"] == record["images"]
    assert "is finished" in capsys.readouterr().out


def test_another_run_in_the_output_is_refused_by_name(record: dict[str, Any], root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"annotate\.temperature was 1\.0 and is 0\.5"):
        pipeline.run(settings(root, annotate={"temperature": 0.5}))


def test_what_only_changes_the_speed_may_change(record: dict[str, Any], root: Path) -> None:
    assert (
        pipeline.run(settings(root, lvlm={"images_in_flight": 8}, pl={"workers": 2}))["images"]
        == record["images"]
    )


def test_a_training_that_no_gpu_holds_is_refused_before_anything_is_annotated(
    ray_session: None, root: Path, tmp_path: Path
) -> None:
    config = settings(
        root,
        output=str(tmp_path),
        pl={"gpus_per_worker": 1, "offload": False},
        cluster={"gpu_memory_gib": 1.5},
    )
    with pytest.raises(ConfigurationError, match=r"svlm\.model: training .* on 1 GPU takes 2 GiB"):
        pipeline.run(config)
    assert not (tmp_path / "annotations").exists()


def test_no_parity_sample_is_an_error_and_nothing_is_trained(
    ray_session: None, root: Path, tmp_path: Path
) -> None:
    """An S-VLM as good as the L-VLM has nothing to learn."""
    config = settings(
        root,
        output=str(tmp_path),
        lvlm={"engine": "sure_engine:load"},
        svlm={"engine": "sure_engine:load"},
    )
    with pytest.raises(RunError, match="no parity sample among"):
        pipeline.run(config)
    assert not (tmp_path / "model").exists()
    assert_accounted_for(Folder.at(tmp_path))


def test_a_stage_that_quarantines_everything_is_an_error(
    ray_session: None, root: Path, tmp_path: Path
) -> None:
    """A prompt the L-VLM answers without a question: each raw text is kept."""
    with pytest.raises(
        RunError, match=r"all \d+ images were quarantined \(pseudo_annotator/unparsable_annotation"
    ):
        models = {"lvlm": {"engine": "transformers"}, "svlm": {"engine": "transformers"}}
        pipeline.run(
            settings(root, output=str(tmp_path), prompt="What color is the sign?", **models)
        )
    assert_accounted_for(Folder.at(tmp_path))
    details = [
        row["detail"]
        for row in rows(Folder.at(tmp_path / "quarantine"))
        if row["reason"] == "unparsable_annotation"
    ]
    assert len(details) == IMAGES
    assert all(": " in detail for detail in details)
    assert len(set(details)) > 1, "the raw texts are kept"
