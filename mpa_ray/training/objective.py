"""What a training objective is, how its file is found, and what its loss is made of."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mpa_ray.config import TrainingSection
from mpa_ray.training.collator import IGNORED, Collator
from mpa_ray.training.training_data import Sample

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]


class Collate(Protocol):
    """Turns samples into a batch; `Collator` is one.

    A batch has `input_ids`, `attention_mask` and `labels` of shape (sequences, longest), and what
    else the model takes. `labels` are `IGNORED` wherever a token is not learned, and in every
    sequence of a sample that is not among the first `learned`.
    """

    def __call__(self, samples: list[Sample], *, learned: int | None = None) -> Batch: ...


class Loss(Protocol):
    """Runs the model on a batch, whose `labels` are on the CPU and whose other tensors are where
    the model is.

    Returns the loss, summed over the samples with labels, and the number of answer tokens. The
    training loop divides the sum over all workers by the samples of the optimizer step, and shows
    the loss per sample and per token. A batch without labels still runs the model once, as the
    other workers wait in their passes, and gives a loss of 0 with a gradient of 0, and 0 tokens.
    """

    def __call__(self, model: Any, batch: Batch) -> tuple["torch.Tensor", int]: ...


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimizes.

    Attributes:
        collate: makes the batches, in a thread that reads ahead.
        loss: computes the loss of a batch.
    """

    collate: Collate
    loss: Loss


class LoadObjective(Protocol):
    """Makes an objective in a training worker: the `load` of an objective's file.

    `model` is the S-VLM as training starts from it, before adapters and DeepSpeed: an objective
    with a reference model copies it here. `collator` is that of the S-VLM.
    """

    def __call__(self, model: Any, collator: Collator, settings: TrainingSection) -> Objective: ...


def objective_loader(name: str) -> LoadObjective:
    """Return the `load` of the objective `name`, one of `mpa_ray.config.objectives.OBJECTIVES`."""
    # The file is imported here, by its name, so that a new one is named in that table alone.
    module = importlib.import_module(f"mpa_ray.training.objectives.{name}")
    loader: LoadObjective = module.load
    return loader


def answer_logits(model: Any, batch: Batch) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the float32 logits (tokens, vocabulary) that predict the answer tokens of a batch, and
    these tokens, on the CPU.

    The head is computed where an answer token is predicted and nowhere else: with a vocabulary of
    150,000, logits of the prompts would be the largest tensor of the step. `labels` may be on the
    CPU while the rest is on a GPU, which then need not be waited for.

    A batch without labels gives the logits of one position, whose token is `IGNORED`.
    """
    import torch

    labels = batch["labels"].cpu()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    device = inputs["input_ids"].device
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    predicting = targets != IGNORED
    if not predicting.any():
        # A filled-up micro-batch that teaches nothing: the passes are made all the same, because
        # the other workers wait in theirs.
        predicting[0, -1] = True
    positions = predicting.any(0).nonzero()[:, 0]
    places = predicting[:, positions].flatten().nonzero()[:, 0].to(device)

    # Models keep the same positions of every row; of those, an answer that is shorter or lies
    # elsewhere needs few.
    def needed(_: Any, given: tuple["torch.Tensor", ...]) -> tuple["torch.Tensor", ...]:
        return (given[0].flatten(0, 1)[places],)

    hook = getattr(model, "module", model).get_output_embeddings().register_forward_pre_hook(needed)
    try:
        logits = model(**inputs, logits_to_keep=positions.to(device), use_cache=False).logits
    finally:
        hook.remove()
    return logits.float(), targets[predicting]
