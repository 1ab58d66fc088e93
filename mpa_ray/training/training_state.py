"""What training leaves behind: checkpoints to resume from, on any number of workers and at any ZeRO
stage, and the trained model itself.

DeepSpeed's own checkpoints are cut for one number of workers. Here every worker writes its part of
each parameter and where in the parameter that begins, without asking the others; a restart puts the
parts together. Per parameter: the float32 weights and Adam's two moments, 12 bytes in all.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_ray.errors import RunError, StorageError
from mpa_ray.storage.folder import Folder

if TYPE_CHECKING:
    import torch
    from ray.train import Checkpoint

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Of a parameter: its weight and both moments, in float32.
BYTES_OF_STATE = 12
_PROGRESS = "progress.json"
# In a file's metadata: by parameter, where in it the file's part begins.
_STARTS = "starts"
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
    needed = parameters * dtype.itemsize + further * trained * BYTES_OF_STATE
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{target.uri}: {free / 2**30:.2f} GiB are free on its disk, and the model and"
            f" {further} checkpoints take"
            f" {needed / 2**30:.2f}; make room and give the same command again"
        )


def save_state(engine: Any, folder: Path, progress: dict[str, Any], *, rank: int) -> None:
    """Write this worker's part of a checkpoint: of every parameter what its optimizer steps.

    Args:
        engine: DeepSpeed's; it has taken a step.
        folder: an empty local folder.
        progress: what the training loop wants back, JSON.
        rank: of this worker.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    starts: dict[str, int] = {}
    for name, parameter in engine.module.named_parameters():
        start, parts = _own_part(parameter, rank) if parameter.requires_grad else (0, {})
        for kind, part in parts.items():
            tensors[f"{kind}/{name}"] = part.detach().float().cpu().clone().contiguous()
            starts[name] = start
    save_file(
        tensors, folder / f"state-{rank:04d}.safetensors", metadata={_STARTS: json.dumps(starts)}
    )
    if rank == 0:
        (folder / _PROGRESS).write_text(json.dumps(progress))


def _own_part(parameter: Any, rank: int) -> tuple[int, dict[str, "torch.Tensor"]]:
    """Where in the flat parameter this worker's part begins, and the part of its weights and of
    each moment; {} where it has none.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if hasattr(parameter, "ds_id"):
        # ZeRO stage 3: parts of one size, the last ones filled up.
        size = parameter.ds_tensor.numel()
        start = rank * size
        length = max(0, min(size, parameter.ds_numel - start))
        own = {"weight": safe_get_local_fp32_param(parameter)} | {
            moment: safe_get_local_optimizer_state(parameter, moment) for moment in _MOMENTS
        }
        return start, {kind: part.flatten()[:length] for kind, part in own.items() if length}
    fragment = parameter._hp_mapping
    if fragment is None:
        return 0, {}
    own = {"weight": fragment.get_hp_fragment()} | {
        moment: fragment.get_hp_fragment(moment) for moment in _MOMENTS
    }
    return fragment.lp_fragment_address.start, own


def load_state(engine: Any, checkpoint: "Checkpoint") -> dict[str, Any]:
    """Put a checkpoint's weights and moments into `engine`, whatever number of workers wrote it.
    Return its progress.

    The engine must have taken a step (any), because DeepSpeed makes the moments with the first. All
    workers must call it.
    """
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    with checkpoint.as_directory() as folder, ExitStack() as files:
        progress = json.loads((Path(folder) / _PROGRESS).read_text())
        whole = _Parts(sorted(Path(folder).glob("state-*.safetensors")), files)
        for name, parameter in engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            shape = getattr(parameter, "ds_shape", parameter.shape)
            for moment in _MOMENTS:
                value = whole.read(f"{moment}/{name}", shape).to(engine.device)
                safe_set_full_optimizer_state(parameter, value, moment)
            value = whole.read(f"weight/{name}", shape).to(engine.device)
            safe_set_full_fp32_param(parameter, value)
            # The weights the forward pass uses are a copy, which DeepSpeed would refresh only after
            # the next step.
            with deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")
            ):
                parameter.data.copy_(value)
    _set_adam_step(engine, len(progress["curve"]))
    return progress


class _Parts:
    """A checkpoint's tensors, put together from the files of its workers.

    Args:
        paths: of the files.
        opened: closes them.
    """

    def __init__(self, paths: list[Path], opened: ExitStack) -> None:
        from safetensors import safe_open

        # By tensor: the files that have a part of it, and where that begins. Checkpoints of earlier
        # versions have each tensor whole in one file, and name no beginnings.
        self._places: dict[str, list[tuple[Any, int]]] = {}
        for path in paths:
            file = opened.enter_context(safe_open(path, framework="pt"))
            starts = json.loads((file.metadata() or {}).get(_STARTS, "{}"))
            for key in file.keys():  # noqa: SIM118 - not a dict
                start = starts.get(key.partition("/")[2], 0)
                self._places.setdefault(key, []).append((file, start))

    def read(self, key: str, shape: Sequence[int]) -> "torch.Tensor":
        """The whole tensor `key`, float32, of that shape.

        Raises:
            RunError: the checkpoint has not all of it.
        """
        import torch

        whole, found = torch.zeros(math.prod(shape)), 0
        for file, start in self._places.get(key, []):
            part = file.get_tensor(key).flatten()
            whole[start : start + len(part)] = part
            found += len(part)
        if found != len(whole):
            raise RunError(
                f"a training checkpoint has {found:,} of the {len(whole):,} numbers of {key};"
                " remove its folder, the newest under checkpoints/, and give the same command again"
            )
        return whole.reshape(shape)


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
