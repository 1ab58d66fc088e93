"""Model FLOPs utilization (MFU): the share of a card's arithmetic that training uses, after Chowdhery et al. (PaLM, 2022), appendix B."""

# Dense bf16 tensor FLOP/s without sparsity, by a part of the card's name, from NVIDIA's data sheets. The first that fits counts.
_PEAK = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX A6000", 155e12),
    ("A10G", 70e12),
    ("L4", 121e12),
)


def mfu(*, tokens_per_second: float, parameters: int, workers: int, card: str) -> float | None:
    """Between 0 and 1; None for a card that is not known, and for the CPU.

    A token takes 6 FLOPs a parameter, forward and backward. What gradient checkpointing computes again is not counted, by definition;
    attention over the sequence and the vision tower's patches, more than the tokens they become, are not counted either, so the true share
    is a little higher.

    Args:
        tokens_per_second: of all workers together, image tokens included.
        parameters: of the whole model.
        workers: cards.
        card: its name as `torch.cuda.get_device_name` gives it; "" for the CPU.
    """
    peak = next((flops for part, flops in _PEAK if part in card), None)
    return None if peak is None else 6 * parameters * tokens_per_second / (workers * peak)
