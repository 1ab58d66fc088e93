"""The S-VLMs that can be trained for comparison (`ablations`): a further one is a line here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

# The paper does not give it; 16 is what most recipes for models of this size take.
_LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison trains on, and how.

    Attributes:
        train_on: "consistent" or "all" pseudo-labels, or people's "labels".
        label: for people.
        same_size_as_parity: draws only as many rows as the parity set has.
        few_shot: of people's labels, takes `few_shot` of them and not all.
        lora_rank: of LoRA; 0 trains every weight.
    """

    train_on: Literal["consistent", "all", "labels"]
    label: str
    same_size_as_parity: bool = False
    few_shot: bool = False
    lora_rank: int = 0


COMPARISONS: dict[str, Comparison] = {
    "no_pi_same_size": Comparison(
        train_on="all", label="without PI, same size", same_size_as_parity=True
    ),
    "no_pi_all": Comparison(train_on="all", label="without PI, all pseudo-labels"),
    "consistent": Comparison(train_on="consistent", label="all self-consistent rows"),
    "human_labels": Comparison(train_on="labels", label="human labels"),
    "few_shot_full": Comparison(
        train_on="labels", label="few-shot, full fine-tuning", few_shot=True
    ),
    "few_shot_lora": Comparison(
        train_on="labels", label="few-shot, LoRA", few_shot=True, lora_rank=_LORA_RANK
    ),
}

LABELED_ARMS = frozenset(name for name, arm in COMPARISONS.items() if arm.train_on == "labels")
FEW_SHOT_ARMS = frozenset(name for name, arm in COMPARISONS.items() if arm.few_shot)

# The table is the one source of the names; what type checkers read cannot be computed.
if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = Literal[tuple(COMPARISONS)]
