"""What training leaves behind: checkpoints to resume from, on any number of workers and at any ZeRO
stage, and the trained model itself.

DeepSpeed's own checkpoints are cut for one number of workers. Here every parameter is gathered
whole, one at a time, and the workers share the writing; a restart takes what it needs. Per
parameter: the float32 weights and Adam's two moments, 12 bytes in all.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_ray.errors import StorageError
from mpa_ray.storage.folder import Folder

if TYPE_CHECKING:
    import torch
    from ray.train import Checkpoint

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Of a parameter: its weight and both moments, in float32.
_BYTES_OF_STATE = 12
_PROGRESS = "progress.json"
KEPT = 2
"""Checkpoints that are kept; another one is there while it is written."""


def require_room(
    target: Folder,
    *,
    parameters: int,
    dtype: "torch.dtype",
    trained: int,
    written: int,
    to_come: int,
) -> None:
    """Spare a training that its disk has no room for.

    Args:
        target: where the model goes; its checkpoints go to the same disk. An object store has room.
        parameters: of the model.
        dtype: that it is saved in.
        trained: of the parameters, those that are in checkpoints.
        written: how many checkpoints were made so far.
        to_come: how many will be.

    Raises:
        StorageError: there is less room than that takes.
    """
    if not target.is_local:
        return
    place = Path(target.path)
    while not place.exists():
        place = place.parent
    further = min(to_come, KEPT + 1 - min(written, KEPT))
    needed = parameters * dtype.itemsize + further * trained * _BYTES_OF_STATE
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{target.uri}: {free / 2**30:.2f} GiB are free on its disk, and the model and"
            f" {further} checkpoints take"
            f" {needed / 2**30:.2f}; make room and give the same command again"
        )


def save_state(
    engine: Any, folder: Path, progress: dict[str, Any], *, rank: int, workers: int
) -> None:
    """Write this worker's share of a checkpoint: every `workers`-th parameter. All workers must
    call it, because gathering needs them all.

    Args:
        engine: DeepSpeed's.
        folder: an empty local folder.
        progress: what the training loop wants back, JSON.
        rank: of this worker.
        workers: how many there are.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    trained = [
        (name, parameter)
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    ]
    for number, (name, parameter) in enumerate(trained):
        whole = {"weight": safe_get_full_fp32_param(parameter)}
        whole |= {moment: safe_get_full_optimizer_state(parameter, moment) for moment in _MOMENTS}
        if number % workers == rank:
            tensors |= {
                f"{kind}/{name}": tensor.detach().float().cpu().clone().contiguous()
                for kind, tensor in whole.items()
            }
    save_file(tensors, folder / f"state-{rank:04d}.safetensors")
    if rank == 0:
        (folder / _PROGRESS).write_text(json.dumps(progress))


def load_state(engine: Any, checkpoint: "Checkpoint") -> dict[str, Any]:
    """Put a checkpoint's weights and moments into `engine`, whatever number of workers wrote it.
    Return its progress.

    The engine must have taken a step (any), because DeepSpeed makes the moments with the first. All
    workers must call it.
    """
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
    from safetensors import safe_open

    parameters = dict(engine.module.named_parameters())
    with checkpoint.as_directory() as folder:
        progress = json.loads((Path(folder) / _PROGRESS).read_text())
        for path in sorted(Path(folder).glob("state-*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    kind, _, name = key.partition("/")
                    value = tensors.get_tensor(key).to(engine.device)
                    if kind != "weight":
                        safe_set_full_optimizer_state(parameters[name], value, kind)
                        continue
                    safe_set_full_fp32_param(parameters[name], value)
                    # The weights the forward pass uses are a copy, which DeepSpeed would refresh
                    # only after the next step.
                    partitioned = hasattr(parameters[name], "ds_id")
                    with deepspeed.zero.GatheredParameters(
                        [parameters[name]], modifier_rank=0, enabled=partitioned
                    ):
                        parameters[name].data.copy_(value)
    _set_adam_step(engine, len(progress["curve"]))
    return progress


def _set_adam_step(engine: Any, step: int) -> None:
    """Adam corrects its moments by the number of steps taken."""
    import torch

    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        if "step" in state:
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), step)


def save_model(
    engine: Any, processor: Any, target: Folder, *, dtype: "torch.dtype", rank: int
) -> None:
    """Write the trained model to `target` as `from_pretrained` and vLLM load it, in the precision
    `dtype`. All workers must call it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(engine.module, "merge_and_unload"):
        # LoRA: its weights are whole in every worker (ZeRO stage 3 is refused), and merged they are
        # an ordinary checkpoint.
        if rank == 0:
            merged = engine.module.merge_and_unload()
            # Not `state_dict`, which has tied weights twice.
            state = {
                name: parameter.detach().to("cpu", dtype)
                for name, parameter in merged.named_parameters()
            }
            _upload(merged, state, processor, target, dtype)
        return
    state = {}
    for name, parameter in engine.module.named_parameters():
        whole = safe_get_full_fp32_param(parameter)
        if rank == 0:
            state[name] = whole.detach().to("cpu", dtype)
    if rank == 0:
        _upload(engine.module, state, processor, target, dtype)


def _upload(
    model: Any,
    parameters: dict[str, "torch.Tensor"],
    processor: Any,
    target: Folder,
    dtype: "torch.dtype",
) -> None:
    saved = set(model.state_dict())
    state = parameters | {
        name: buffer.cpu() for name, buffer in model.named_buffers() if name in saved
    }
    with tempfile.TemporaryDirectory(prefix="mpa-model-") as local:
        model.save_pretrained(local, state_dict=state)
        # `save_pretrained` writes the precision the model was trained in, and who loads the folder
        # would take it for that of the weights.
        config = Path(local) / "config.json"
        config.write_text(
            json.dumps(
                _with_dtype(json.loads(config.read_text()), str(dtype).removeprefix("torch.")),
                indent=2,
            )
            + "\n"
        )
        processor.save_pretrained(local)
        target.upload(local)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A model's configuration, its parts' included, with another precision wherever one is
    named.
    """
    return {
        name: dtype
        if name == "dtype"
        else _with_dtype(value, dtype)
        if isinstance(value, dict)
        else value
        for name, value in config.items()
    }
