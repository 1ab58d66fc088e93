"""Eq. 3 of the paper: the answer's negative log likelihood, summed over its tokens and averaged
over the samples of a batch.
"""

from typing import TYPE_CHECKING, Any

from mpa_ray.config import TrainingSection
from mpa_ray.training.collator import IGNORED, Collator
from mpa_ray.training.objective import Batch, Objective, answer_logits

if TYPE_CHECKING:
    import torch


def load(model: Any, collator: Collator, settings: TrainingSection) -> Objective:
    """Return Eq. 3. It needs neither the model nor a setting."""
    return Objective(collate=collator, loss=answer_loss)


def answer_loss(model: Any, batch: Batch) -> tuple["torch.Tensor", int]:
    """Return the summed negative log likelihood of the answer tokens, and how many they are."""
    import torch

    logits, targets = answer_logits(model, batch)
    loss = torch.nn.functional.cross_entropy(
        logits, targets.to(logits.device), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())
