"""The Parity Leveler on real Ray Train and DeepSpeed, and the choice of what each arm trains on."""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from conftest import parity_rows
from mpa_ray import demo
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.errors import NothingToTeach, RunError
from mpa_ray.images.decode import image_id_of
from mpa_ray.images.draw import is_held_out
from mpa_ray.parity_leveler import _runtime_env, _scaling, level
from mpa_ray.schema import JUDGEMENTS, PARITY, Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.training.arms import Arm, arms, count_rows, settings_of, training_folders
from mpa_ray.training.tracking import Tracking
from tests.training.test_tracking import points


def config_with(*, model: str = str(demo.SVLM), **pl: Any) -> Config:
    settings = {
        "gpus_per_worker": 0,
        "cpus_per_worker": 1,
        "precision": "float32",
        "batch_size": 4,
        "micro_batch_size": 2,
        "holdout": 0.0,
    }
    return Config(
        svlm=ModelSection(model=model, gpus_per_replica=0), pl=TrainingSection(**(settings | pl))
    )


def test_the_settings_of_each_arm() -> None:
    """Human labels are no pseudo-labels: none of them is held out, and MPA's LoRA is not theirs."""
    names = [
        "no_pi_same_size",
        "no_pi_all",
        "consistent",
        "human_labels",
        "few_shot_full",
        "few_shot_lora",
    ]
    config = Config(
        ablations=names,
        labels={"benchmark": "x"},
        pl={"holdout": 0.2, "lora_rank": 4, "learning_rate": 3e-5},
    )
    found = {arm.name: settings_of(arm, config) for arm in arms(config)}
    assert {name: (settings.holdout, settings.lora_rank) for name, settings in found.items()} == {
        "mpa": (0.2, 4),
        "no_pi_same_size": (0.2, 0),
        "no_pi_all": (0.2, 0),
        "consistent": (0.2, 0),
        "human_labels": (0.0, 0),
        "few_shot_full": (0.0, 0),
        "few_shot_lora": (0.0, 16),
    }
    assert all(settings.learning_rate == 3e-5 for settings in found.values())


@pytest.mark.parametrize(
    ("workers", "min_workers", "expected"),
    [(None, None, 1), (4, None, 4), (4, 4, 4), (4, 2, (2, 4)), (2, 1, (1, 2))],
)
def test_a_group_is_elastic_between_its_fewest_and_its_most_workers(
    workers: int | None, min_workers: int | None, expected: Any
) -> None:
    settings = TrainingSection(
        workers=workers, min_workers=min_workers, gpus_per_worker=0, cpus_per_worker=2
    )
    found = _scaling(settings, dict)
    assert (found["num_workers"], found["use_gpu"], found["label_selector"]) == (
        expected,
        False,
        None,
    )
    assert found["resources_per_worker"]["CPU"] == 2
    labeled = _scaling(TrainingSection(node_labels={"pool": "a"}), dict)
    assert (labeled["num_workers"], labeled["use_gpu"], labeled["label_selector"]) == (
        1,
        True,
        {"pool": "a"},
    )


def test_memory_of_gpus_is_in_segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    grown = {"env_vars": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}
    assert _runtime_env(TrainingSection()) == grown
    assert _runtime_env(TrainingSection(gpus_per_worker=0)) == {}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert _runtime_env(TrainingSection()) == {
        "env_vars": {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    }, "what is set stays"


@pytest.mark.parametrize(
    ("workers", "stage", "precision"),
    [
        (1, 2, "float32"),
        (2, 3, "float32"),
        (2, 2, "bfloat16"),
        pytest.param(2, 1, "float32", marks=pytest.mark.slow),
    ],
)
def test_workers_stages_and_precisions_train_alike(
    ray_session: None, parity_folder: Path, tmp_path: Path, workers: int, stage: int, precision: str
) -> None:
    """Whatever the number of workers, the ZeRO stage and the precision, the loss curve is that of
    one worker at stage 2 in float32.
    """
    config = config_with(workers=workers, zero_stage=stage, precision=precision, learning_rate=5e-4)
    target = Folder.at(tmp_path / "model")
    tracking = Tracking(names=("tensorboard",), folder=Folder.at(tmp_path / "tensorboard"), run="r")
    result = level(
        config,
        [Folder.at(parity_folder)],
        name="run",
        target=target,
        work=Folder.at(tmp_path / "work"),
        tracking=tracking,
    )
    assert result["samples"] == result["timed_samples"] == 24
    losses = [row[1] for row in target.read_json("training_log.json")["rows"]]
    shown = points(Folder.at(tmp_path / "tensorboard"))
    assert shown.keys() == {
        "loss_per_sample",
        "nats_per_token",
        "learning_rate",
        "tokens_per_second",
    }
    assert shown["loss_per_sample"] == pytest.approx(dict(enumerate(losses, 1)))
    assert len(losses) == 6
    # Weights and activations of 8 bits of mantissa round at every step.
    assert losses == pytest.approx(
        _same_as_the_first(losses), rel=2e-2 if precision == "float32" else 0.1
    )
    assert losses[-1] < losses[0]


def test_adapters_are_merged_into_the_weights(
    ray_session: None, parity_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With LoRA, the target is a model like any other: the published names, and none of the
    adapters'. The S-VLM is given by a relative path, which in the folders of Ray Train's workers
    leads nowhere.
    """
    monkeypatch.chdir(demo.SVLM.parent)
    config = config_with(model="svlm", workers=1, learning_rate=1e-2, lora_rank=4)
    target = Folder.at(tmp_path / "model")
    result = level(
        config,
        [Folder.at(parity_folder)],
        name="run",
        target=target,
        work=Folder.at(tmp_path / "work"),
    )
    assert result["samples"] == 24
    losses = [row[1] for row in target.read_json("training_log.json")["rows"]]
    assert losses[-1] < losses[0]
    before, after = (
        load_file(demo.SVLM / "model.safetensors"),
        load_file(tmp_path / "model/model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before), (
        "nothing was learned"
    )


@pytest.mark.parametrize("when", [{"checkpoint_every": 1}, {"checkpoint_every_s": 0.001}])
def test_checkpoints_are_uploaded_while_training_goes_on(
    ray_session: None, parity_folder: Path, tmp_path: Path, when: dict[str, float]
) -> None:
    """What is left of them is whole: every worker's part and the progress, and none on the nodes'
    own disks.
    """
    work = Folder.at(tmp_path / "work")
    level(
        config_with(workers=2, learning_rate=1e-3, epochs=3, **when),
        [Folder.at(parity_folder)],
        name="run",
        target=Folder.at(tmp_path / "model"),
        work=work,
    )
    kept = sorted((tmp_path / "work/run").glob("checkpoint_*"))
    kept = [folder for folder in kept if folder.is_dir()]
    assert 1 <= len(kept) <= 2
    for folder in kept:
        assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
            "progress.json",
            "state-0000.safetensors",
            "state-0001.safetensors",
        ]
    made = work.read_json(f"run/{kept[-1].name}/progress.json")
    assert 1 <= made["checkpoints"] <= len(made["curve"]) < 18
    digest = sha256(work.child("run").uri.encode()).hexdigest()[:16]
    assert not list(Path(tempfile.gettempdir()).glob(f"mpa-checkpoint-{digest}-*"))


def test_ctrl_c_ends_a_training_and_stays_the_callers(
    ray_session: None, parity_folder: Path, tmp_path: Path
) -> None:
    """Ray Train would take the signal for itself, for as long as the process lives."""
    import ray

    work, handlers = Folder.at(tmp_path / "work"), [signal.getsignal(signal.SIGINT)]

    def press() -> None:
        while not work.exists("run/progress.json"):
            time.sleep(0.1)
        handlers.append(signal.getsignal(signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        level(
            config_with(workers=1, epochs=200),
            [Folder.at(parity_folder)],
            name="run",
            target=Folder.at(tmp_path / "model"),
            work=work,
        )
    handlers.append(signal.getsignal(signal.SIGINT))
    assert handlers == [handlers[0]] * 3
    for _ in range(300):
        if ray.available_resources().get("CPU") == 4:
            break
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == 4, "its workers are gone"
    assert not (tmp_path / "model").exists()


def test_an_error_of_the_runs_own_is_one_line_and_not_tried_again(
    ray_session: None, parity_folder: Path, tmp_path: Path
) -> None:
    folder = Folder.at(parity_folder)
    rows = folder.read_table("part-00000000.parquet").to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:40]
    folder.write_table("part-00000000.parquet", pa.Table.from_pylist(rows, schema=PARITY))
    config = config_with(workers=1, max_failures=-1)
    with pytest.raises(
        RunError,
        match=rf"^{parity_folder}/part-00000000.parquet, sample {rows[3]['sample_id']}: its image"
        r" cannot be read .*$",
    ):
        level(
            config,
            [folder],
            name="run",
            target=Folder.at(tmp_path / "model"),
            work=Folder.at(tmp_path / "work"),
        )


_FIRST: list[list[float]] = []


def _same_as_the_first(losses: list[float]) -> list[float]:
    """The curve of the first case, which the later ones are compared with."""
    _FIRST.append(losses)
    return _FIRST[0]


def judged(count: int, folder: Path) -> pa.Table:
    """Judgements over images on disk: a third of each verdict, in turn."""
    rows = []
    for number, row in enumerate(parity_rows(count).to_pylist()):
        path = folder / f"{number:04d}.png"
        path.write_bytes(row["image"]["bytes"])
        rows.append(
            {
                "image_id": image_id_of(str(path)),
                "image_uri": str(path),
                "sample_id": f"{image_id_of(str(path))}-0",
                "question": row["question"],
                "answer": row["answer"],
                "verdict": str(list(Verdict)[number % 3]),
            }
        )
    return pa.Table.from_pylist(rows, schema=JUDGEMENTS)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    images = tmp_path / "images"
    images.mkdir()
    table = judged(90, images)
    folder = Folder.at(tmp_path / "out")
    for part in range(3):
        folder.write_table(f"judgements/part-{part:08d}.parquet", table.slice(30 * part, 30))
    from mpa_ray.images.parts import with_image_struct, with_images

    for part in range(3):
        rows = table.slice(30 * part, 30)
        parity = rows.filter(
            pa.array([verdict == Verdict.PARITY for verdict in rows.column("verdict").to_pylist()])
        )
        folder.write_table(
            f"parity/part-{part:08d}.parquet",
            with_image_struct(with_images(parity, max_image_bytes=10**6)),
        )
    return folder


def verdicts_trained_on(folders: list[Folder], output: Folder, holdout: float) -> Counter[str]:
    """Which verdicts the rows of training folders have, the held-out ones left out as training
    leaves them out.
    """
    verdict_of = {
        sample: verdict
        for table in output.child("judgements").tables(["sample_id", "verdict"])
        for sample, verdict in zip(*(column.to_pylist() for column in table.columns), strict=True)
    }
    ids = [
        sample
        for folder in folders
        for table in folder.tables(["sample_id"])
        for sample in table.column(0).to_pylist()
    ]
    assert len(ids) == len(set(ids)), "a row is trained on twice"
    return Counter(verdict_of[sample] for sample in ids if not is_held_out(sample, holdout))


def test_each_arm_trains_on_its_rows(ray_session: None, output: Folder) -> None:
    config = config_with(holdout=0.2)
    rows = [row for table in output.child("judgements").tables() for row in table.to_pylist()]
    expected = Counter(row["verdict"] for row in rows if not is_held_out(row["sample_id"], 0.2))
    size = expected[Verdict.PARITY]

    def chosen(arm: Arm) -> Counter[str]:
        return verdicts_trained_on(training_folders(arm, output, config), output, 0.2)

    assert chosen(Arm(name="mpa", train_on="parity")) == {Verdict.PARITY: size}
    assert chosen(Arm(name="all", train_on="all")) == expected
    assert chosen(Arm(name="consistent", train_on="consistent")) == {
        v: expected[v] for v in (Verdict.PARITY, Verdict.SVLM_CORRECT)
    }
    same = chosen(Arm(name="same", train_on="all", same_size_as_parity=True))
    assert same.total() == size
    assert len(same) == 3, f"drawn from all annotations, found {same}"
    replayed = chosen(Arm(name="replayed", train_on="parity", replay=0.5))
    assert replayed == {Verdict.PARITY: size, Verdict.SVLM_CORRECT: round(0.5 * size)}


def test_arms_of_a_configuration() -> None:
    config = config_with(replay=0.25).model_copy(
        update={"ablations": ("no_pi_all", "no_pi_same_size")}
    )
    assert [arm.name for arm in arms(config)] == ["mpa", "no_pi_all", "no_pi_same_size"]
    assert arms(config)[0].replay == 0.25


def test_nothing_to_train_on_is_refused_before_ray_train_starts(tmp_path: Path) -> None:
    with pytest.raises(NothingToTeach, match="no row to train on"):
        level(
            config_with(),
            [Folder.at(tmp_path)],
            name="run",
            target=Folder.at(tmp_path / "m"),
            work=Folder.at(tmp_path / "w"),
        )


def test_held_out_rows_are_not_counted(parity_folder: Path) -> None:
    folders = [Folder.at(parity_folder)]
    assert count_rows(folders, 0.0) == 24
    assert 0 < count_rows(folders, 0.4) < 24


def test_a_lost_image_is_named(ray_session: None, output: Folder, tmp_path: Path) -> None:
    (tmp_path / "images" / "0001.png").unlink()
    with pytest.raises(
        Exception, match=r"0001\.png: could be read when it was annotated and cannot now"
    ):
        training_folders(Arm(name="all", train_on="all"), output, config_with())
