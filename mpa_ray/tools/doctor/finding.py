"""What a check of the doctor says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.observability.clean_text import visible_line

State = Literal["ok", "warning", "failed"]
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        state: "failed" where a run could not work.
        what: was looked at.
        said: what it is like.
        fix: what to do, where something should be done.
    """

    state: State
    what: str
    said: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.state:8} {self.what}: {self.said}"
        if self.fix:
            text += f"\nfix: {self.fix}"
        # Whatever a name or a server says is set in below the state: no finding can be forged.
        return f"\n{'':9}".join(map(visible_line, text.split("\n")))


def named_models(config: Config) -> dict[str, LocalModelSection]:
    """The models the run would ask, by their sections."""
    jury = {f"jury.{number}": juror for number, juror in enumerate(config.jury)}
    named = ({"lvlm": config.lvlm} if config.asks_lvlm else {}) | jury | {"svlm": config.svlm}
    return {name: model for name, model in named.items() if model.model}
