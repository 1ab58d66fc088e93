"""Engines without a model, of which the S-VLM's is wrong about half of the images until a first
round has trained it, and right from there on. LEARNING_SECONDS in the environment is how long a
reply takes.
"""

import asyncio
import os

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, Sampling


class Engine:
    def __init__(self, *, always_right: bool) -> None:
        self._always_right = always_right

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        await asyncio.sleep(float(os.environ.get("LEARNING_SECONDS", "0")))
        if "Question:" in prompt and "Answer:" in prompt:
            text = f"Question: What is number {image_id[:6]}?\nAnswer: {image_id[:4]}"
        else:
            text = image_id[:4] if self._always_right or int(image_id[0], 16) < 8 else "nothing"
        return Reply(
            text=text, prompt_tokens=100, cached_tokens=0, output_tokens=10, finish_reason="stop"
        )

    def close(self) -> None:
        pass


def lvlm(model: ModelSection) -> Engine:
    return Engine(always_right=True)


def svlm(model: ModelSection) -> Engine:
    return Engine(always_right="rounds/1/model" in model.model)
