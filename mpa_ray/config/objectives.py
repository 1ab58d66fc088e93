"""The training objectives by name; each is the file of that name in
`mpa_ray/training/objectives/`.
"""

from typing import Literal

OBJECTIVES: dict[str, str] = {
    "answer_nll": "negative log likelihood of the answer tokens (Eq. 3)",
}
"""What each one minimizes, as a model card states it."""

ObjectiveName = Literal[tuple(OBJECTIVES)]  # type: ignore[valid-type]
