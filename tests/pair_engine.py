"""An engine without a model for runs in Ray: every reply follows from the image's id, its pixels
and the question alone.
"""

import hashlib

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, RequestRejected, Sampling


class PairEngine:
    def __init__(self, model: ModelSection) -> None:
        self._name, self._max_pixels = model.model, model.max_pixels

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        assert image.width * image.height <= self._max_pixels, "an image over the model's bound"
        drawn = hashlib.sha256(
            f"{image_id} {self._name} {prompt} {sampling.seed}".encode() + image.tobytes()
        ).digest()
        if "Question: " in prompt:
            text = (
                "nothing"
                if drawn[0] < 25
                else f"Question: What is {drawn[1] % 4} in {image_id[:4]}? Answer: {drawn[2] % 2}"
            )
        else:
            text = str(drawn[0] % 2)
        if drawn[3] < 25:
            raise RequestRejected(f"{self._name} refuses")
        return Reply(
            text=text, prompt_tokens=9, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def close(self) -> None:
        pass


def load(model: ModelSection) -> PairEngine:
    return PairEngine(model)
