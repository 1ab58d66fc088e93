"""Engines of a test's own that answer at once and always alike; `half` annotates every other time,
`wrong` answers wrongly.
"""

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply


class SureEngine:
    def __init__(self, model: ModelSection) -> None:
        self._name, self._asked = model.model, {}

    async def ask(self, image, prompt, *, image_id, sampling) -> Reply:
        text = "wrong" if self._name == "wrong" else "a sign"
        if "Question: " in prompt:
            number = self._asked[image_id] = self._asked.get(image_id, -1) + 1
            text = f"Question: What is it, {number}?, Answer: a sign"
            if self._name == "half" and number % 2:
                text = "I cannot say."
        return Reply(
            text=text, prompt_tokens=10, cached_tokens=0, output_tokens=3, finish_reason="stop"
        )

    def close(self) -> None:
        pass


def load(model: ModelSection) -> SureEngine:
    return SureEngine(model)
