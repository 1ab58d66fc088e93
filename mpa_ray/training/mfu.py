"""Model FLOPs utilization (MFU): the share of a GPU's arithmetic that training uses, after
Chowdhery et al. (PaLM, 2022), appendix B.
"""

from dataclasses import dataclass
from typing import Any

# Dense bf16 tensor FLOP/s without sparsity, by a part of the GPU's name, from NVIDIA's data
# sheets. The first that fits counts.
_PEAK = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX A6000", 155e12),
    ("A10G", 70e12),
    ("L4", 121e12),
)

# In the names of a vision tower's weights that are passed by tokens: Qwen2-VL's and its successors'
# mergers.
_MERGES = "merger"


@dataclass(frozen=True, kw_only=True)
class Flops:
    """What training computes: of a token through the language model, and of a number in
    `pixel_values` through the vision tower, both forward and backward.
    """

    per_token: float
    per_pixel_value: float

    def of(self, *, tokens: float, pixel_values: float) -> float:
        """FLOPs of so many."""
        return self.per_token * tokens + self.per_pixel_value * pixel_values


def flops_of(model: Any) -> Flops:
    """Count what passes each weight, forward and backward: 6 FLOPs a weight that is trained, and 4
    a frozen one, of which no gradient is made.

    The vision tower's weights are passed by patches, which are more than the tokens they become
    (four times with Qwen2-VL); what merges patches, by tokens. Embeddings are looked up and the
    head is computed for answer tokens alone, so neither counts. What gradient checkpointing
    computes again is not counted, by definition, and attention over the sequence and over the
    patches is not counted either, so the true share is higher (by 17% with Qwen2-VL-2B and images
    of 520 tokens).

    Args:
        model: of transformers, or PEFT's around one, before its weights are split over workers.
    """
    import torch

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    left_out = {
        id(weight) for module in ends if module is not None for weight in module.parameters()
    }
    tower = model.get_encoder(modality="image")
    convolution = next(
        (
            module
            for module in tower.modules()
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d))
        ),
        None,
    )
    by_patches = (
        {id(weight) for name, weight in tower.named_parameters() if _MERGES not in name}
        if convolution is not None
        else set()
    )
    patch_values = convolution.weight[0].numel() if convolution is not None else 1
    tokens = patches = 0
    for weight in model.parameters():
        flops = (6 if weight.requires_grad else 4) * weight.numel()
        if id(weight) in by_patches:
            patches += flops
        elif id(weight) not in left_out:
            tokens += flops
    return Flops(per_token=tokens, per_pixel_value=patches / patch_values)


def mfu(*, flops_per_second: float, workers: int, gpu: str) -> float | None:
    """Between 0 and 1; None for a GPU that is not known, and for the CPU.

    Args:
        flops_per_second: of all workers together.
        workers: GPUs.
        gpu: its name as `torch.cuda.get_device_name` gives it; "" for the CPU.
    """
    peak = next((flops for part, flops in _PEAK if part in gpu), None)
    return None if peak is None else flops_per_second / (workers * peak)
