"""Where a benchmark's result is kept, and what it runs on."""

from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from mpa_ray.tools.tables import result_file

RESULTS = Path(__file__).parent / "results"


def write(name: str, text: str, data: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Writes <date>-<name>.md for people and .json for programs; gives back the first."""
    return result_file.write(folder, name, text, data)


def gpus() -> int:
    """What a benchmark runs on where it is not told: a GPU where there is one (1), else the CPU
    (0).
    """
    return min(1, len(result_file.gpus()))


def cut(value: float, decimals: int) -> str:
    """A figure with so many decimals; the others are cut off, because no figure is rounded up."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR))
