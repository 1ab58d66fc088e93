"""What is drawn by a sample's id: the same for ever, on any machine."""

import hashlib


def draw(sample_id: str, salt: str) -> float:
    """A number in [0, 1) that belongs to the sample for ever; another salt gives an independent
    one.
    """
    return int.from_bytes(hashlib.sha256(f"{salt}/{sample_id}".encode()).digest()[:8]) / 2**64


def is_held_out(sample_id: str, share: float) -> bool:
    """Whether the sample is kept out of training to see what was learned and forgotten."""
    return draw(sample_id, "holdout") < share
