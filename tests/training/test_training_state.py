"""Real DeepSpeed on one worker of this machine: what is saved is what was trained."""

import os
import socket
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import demo
from mpa_ray.config import TrainingSection
from mpa_ray.errors import RunError, StorageError
from mpa_ray.storage.folder import Folder
from mpa_ray.training import training_state

usage = namedtuple("usage", ("total", "used", "free"))


@pytest.mark.parametrize(
    ("steps", "needed"),
    [
        # A model of 10 parameters of 2 bytes; 4 of them are trained, and 12 bytes each in a
        # checkpoint.
        ({"written": 0, "to_come": 0}, 20),
        ({"written": 0, "to_come": 1}, 20 + 48),
        ({"written": 0, "to_come": 9}, 20 + 3 * 48),
        # Two are kept, and lie there already.
        ({"written": 5, "to_come": 4}, 20 + 48),
        ({"written": 5, "to_come": 0}, 20),
    ],
)
def test_a_disk_without_room_is_found_before_the_first_step(
    steps: dict[str, int], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def room(free: int, target: Folder) -> None:
        monkeypatch.setattr(
            training_state.shutil, "disk_usage", lambda place: usage(10**9, 0, free)
        )
        training_state.require_room(target, parameters=10, dtype=torch.bfloat16, trained=4, **steps)

    target = Folder.at(tmp_path / "not/there/yet")
    room(needed, target)
    with pytest.raises(StorageError, match="make room and give the same command again"):
        room(needed - 1, target)
    room(0, Folder(filesystem=None, path="bucket/run", uri="s3://bucket/run"))  # type: ignore[arg-type]


SETTINGS = {
    "gpus_per_worker": 0,
    "precision": "float32",
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "holdout": 0.0,
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def process_group_of_one() -> None:
    """A process group of one: DeepSpeed wants one."""
    process_group(rank=0, workers=1, port=free_port())


def process_group(*, rank: int, workers: int, port: int) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _engine(settings: TrainingSection, workers: int = 1) -> tuple[Any, Any]:
    import deepspeed
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_ray.training.set_up import deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(
        demo.SVLM, dtype=getattr(torch, settings.precision)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(settings, workers),
        dist_init_required=not torch.distributed.is_initialized(),
    )
    return engine.train() or engine, AutoProcessor.from_pretrained(demo.SVLM)


def _batches(folder: Path, processor: Any, model: Any) -> list[list[dict[str, Any]]]:
    from mpa_ray.models.chat_template import end_tokens
    from mpa_ray.training.collator import Collator
    from mpa_ray.training.training_data import TrainingSet

    samples = TrainingSet(
        [Folder.at(folder)],
        holdout=0.0,
        max_pixels=10**6,
        max_image_pixels=10**7,
        max_image_bytes=10**7,
    )
    collator = Collator(processor, end_tokens=end_tokens(model))
    return [
        [collator([samples[i], samples[i + 1]]), collator([samples[i + 2], samples[i + 3]])]
        for i in range(0, 24, 4)
    ]


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return model(
            **{name: value for name, value in batch.items() if name != "labels"}
        ).logits.float()


def _save_and_reload(folder: Path, target: Path, stage: int) -> dict[str, Any]:
    """Two steps, logits, save, reload, logits."""
    import torch
    from transformers import AutoModelForImageTextToText

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.train_loop import take_step
    from mpa_ray.training.training_state import save_model

    process_group_of_one()
    engine, processor = _engine(TrainingSection(**SETTINGS, zero_stage=stage))
    batches = _batches(folder, processor, engine.module)
    for micro_batches in batches[:2]:
        take_step(engine, answer_loss, micro_batches, scale=1 / 4, rate=1e-3)
    engine.eval()
    trained = _logits(engine, batches[0][0])
    save_model(engine, processor, Folder.at(target), dtype=torch.float32, rank=0)
    reloaded, report = AutoModelForImageTextToText.from_pretrained(
        target, dtype=torch.float32, output_loading_info=True
    )
    original = AutoModelForImageTextToText.from_pretrained(demo.SVLM, dtype=torch.float32)
    return {
        "difference": (trained - _logits(reloaded.eval(), batches[0][0])).abs().max().item(),
        "moved": (trained - _logits(original.eval(), batches[0][0])).abs().max().item(),
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_saved_model_gives_the_trained_logits(
    ray_session: None, parity_folder: Path, tmp_path: Path, stage: int
) -> None:
    import ray

    # In a process of its own: DeepSpeed and its process group stay in it.
    found = ray.get(
        ray.remote(num_cpus=1, max_calls=1)(_save_and_reload).remote(
            parity_folder, tmp_path / "model", stage
        )
    )
    assert found["difference"] < 1e-4, found
    assert found["moved"] > 1e-2, "training changed nothing, so the comparison proves nothing"
    assert not found["missing"] and not found["unexpected"], found


def _resume(folder: Path, work: Path, stage: int) -> tuple[list[float], list[float]]:
    """Losses of six steps in one go, and of three, a checkpoint, and three in a fresh engine."""
    from ray.train import Checkpoint

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.train_loop import take_step
    from mpa_ray.training.training_state import load_state, save_state

    process_group_of_one()
    settings = TrainingSection(**SETTINGS, zero_stage=stage)
    engine, processor = _engine(settings)
    batches = _batches(folder, processor, engine.module)
    whole = []
    for number, micro_batches in enumerate(batches):
        whole.append(take_step(engine, answer_loss, micro_batches, scale=1 / 4, rate=1e-3)[0])
        if number == 2:
            work.mkdir()
            save_state(engine, work, {"samples": 12, "curve": [[1], [2], [3]]}, rank=0)
    again, _ = _engine(settings)
    take_step(again, answer_loss, batches[0], scale=0.0, rate=0.0)
    progress = load_state(again, Checkpoint.from_directory(work))
    assert progress["samples"] == 12
    resumed = whole[:3] + [
        take_step(again, answer_loss, micro_batches, scale=1 / 4, rate=1e-3)[0]
        for micro_batches in batches[3:]
    ]
    return whole, resumed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_training_continues_as_if_never_stopped(
    ray_session: None, parity_folder: Path, tmp_path: Path, stage: int
) -> None:
    import ray

    whole, resumed = ray.get(
        ray.remote(num_cpus=1, max_calls=1)(_resume).remote(
            parity_folder, tmp_path / "state", stage
        )
    )
    assert resumed == pytest.approx(whole, rel=1e-3)
    assert whole[3:] != pytest.approx(whole[:3], rel=1e-2)


def _whole(engine: Any) -> dict[str, Any]:
    """Every parameter's weights and moments, gathered by DeepSpeed, under a checkpoint's names."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name, parameter in engine.module.named_parameters():
        found[f"weight/{name}"] = safe_get_full_fp32_param(parameter).cpu().clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            state = safe_get_full_optimizer_state(parameter, moment)
            found[f"{moment}/{name}"] = state.cpu().clone()
    return found


def _write(folder: Path, state: Path, stage: int, rank: int, port: int) -> dict[str, Any]:
    """One of two workers: two steps, and its part of a checkpoint, without a word to the other."""
    import torch

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.train_loop import take_step
    from mpa_ray.training.training_state import save_state

    process_group(rank=rank, workers=2, port=port)
    engine, processor = _engine(TrainingSection(**SETTINGS, zero_stage=stage), workers=2)
    for micro_batches in _batches(folder, processor, engine.module)[:2]:
        take_step(engine, answer_loss, micro_batches[rank : rank + 1], scale=1 / 2, rate=1e-3)
    whole = _whole(engine)
    torch.distributed.all_reduce = torch.distributed.all_gather = None
    save_state(engine, state, {"samples": 8, "curve": [[1], [2]]}, rank=rank)
    return whole


def _read(folder: Path, state: Path, stage: int) -> dict[str, Any]:
    from ray.train import Checkpoint

    from mpa_ray.training.objectives.answer_nll import answer_loss
    from mpa_ray.training.train_loop import take_step
    from mpa_ray.training.training_state import load_state

    process_group_of_one()
    engine, processor = _engine(TrainingSection(**SETTINGS, zero_stage=stage))
    micro_batches = _batches(folder, processor, engine.module)[0]
    take_step(engine, answer_loss, micro_batches, scale=0.0, rate=0.0)
    load_state(engine, Checkpoint.from_directory(state))
    return _whole(engine)


@pytest.mark.parametrize(("stage", "then"), [(1, 3), (2, 1), (3, 2)])
def test_workers_write_their_parts_and_another_number_at_another_stage_reads_them(
    ray_session: None, parity_folder: Path, tmp_path: Path, stage: int, then: int
) -> None:
    import ray
    import torch
    from safetensors.torch import save_file

    state, earlier, port = tmp_path / "state", tmp_path / "earlier", free_port()
    state.mkdir()
    write: Any = ray.remote(num_cpus=1, max_calls=1)(_write)
    read: Any = ray.remote(num_cpus=1, max_calls=1)(_read)
    wrote, _ = ray.get([write.remote(parity_folder, state, stage, rank, port) for rank in range(2)])
    sizes = [path.stat().st_size for path in state.glob("state-*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes), "each of them has half"
    # As versions wrote it that gathered every parameter.
    earlier.mkdir()
    keys = sorted(wrote)
    for rank in range(2):
        save_file(
            {key: wrote[key] for key in keys[rank::2]}, earlier / f"state-{rank:04d}.safetensors"
        )
    (earlier / "progress.json").write_text((state / "progress.json").read_text())
    for found in ray.get([read.remote(parity_folder, at, then) for at in (state, earlier)]):
        assert found.keys() == wrote.keys()
        for key, tensor in found.items():
            assert torch.equal(tensor, wrote[key]), key


def test_a_checkpoint_that_lacks_a_worker_s_part_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "state-0000.safetensors"
    save_file({"weight/a": torch.ones(6)}, file, metadata={"starts": '{"a": 0}'})
    with (
        ExitStack() as files,
        pytest.raises(RunError, match="has 6 of the 12 numbers of weight/a; remove"),
    ):
        training_state._Parts([file], files).read("weight/a", (3, 4))
