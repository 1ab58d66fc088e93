"""Where the embedded pair lies."""

from pathlib import Path

LVLM = Path(__file__).parent / "lvlm"
SVLM = Path(__file__).parent / "svlm"
