"""The training objectives by name; each is the file of that name in
`mpa_ray/training/objectives/`.
"""

from typing import TYPE_CHECKING, Literal

OBJECTIVES: dict[str, str] = {
    "answer_nll": "negative log likelihood of the answer tokens (Eq. 3)",
}
"""What each one minimizes, as a model card states it."""

# The table is the one source of the names; what type checkers read cannot be computed.
if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
