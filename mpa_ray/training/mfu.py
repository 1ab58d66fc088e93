"""Model FLOPs utilization (MFU): the share of a GPU's arithmetic that training uses, after
Chowdhery et al. (PaLM, 2022), appendix B.
"""

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


def flops_per_token(model: Any) -> int:
    """What a token takes, forward and backward: 6 FLOPs a weight that is trained, and 4 a frozen
    one, of which no gradient is made.

    Embeddings are looked up and the head is computed for answer tokens alone, so neither counts.
    What gradient checkpointing computes again is not counted, by definition; attention over the
    sequence and the vision tower's patches, more than the tokens they become, are not counted
    either, so the true share is a little higher.

    Args:
        model: of transformers, or PEFT's around one, before its weights are split over workers.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    left_out = {
        id(weight) for module in ends if module is not None for weight in module.parameters()
    }
    return sum(
        (6 if weight.requires_grad else 4) * weight.numel()
        for weight in model.parameters()
        if id(weight) not in left_out
    )


def mfu(*, tokens_per_second: float, flops_per_token: int, workers: int, gpu: str) -> float | None:
    """Between 0 and 1; None for a GPU that is not known, and for the CPU.

    Args:
        tokens_per_second: of all workers together, image tokens included.
        flops_per_token: see there.
        workers: GPUs.
        gpu: its name as `torch.cuda.get_device_name` gives it; "" for the CPU.
    """
    peak = next((flops for part, flops in _PEAK if part in gpu), None)
    return None if peak is None else flops_per_token * tokens_per_second / (workers * peak)
