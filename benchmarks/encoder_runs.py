"""How often vLLM's vision encoder runs, for benchmarks and tests: vLLM keeps that for itself.

The prefix cache's `num_cached_tokens` does not tell it: an image all of whose full blocks were
cached is encoded again when one token of it lies in a block that was not.

    lvlm.engine = encoder_runs:load        an engine that counts, and writes into $ENCODER_RUNS
"""

import os
from pathlib import Path
from typing import Any

from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.engines.vllm import VllmEngine

FILE = "ENCODER_RUNS"


class EncoderRuns:
    """Mixed into vLLM's worker by its `worker_extension_cls`; called through `collective_rpc`."""

    model_runner: Any

    def start_counting_encoder_runs(self) -> None:
        """Count from now on. The scheduler says with each step which images have to be encoded for
        it.
        """
        execute = self.model_runner.execute_model
        self._encoder_runs = 0

        def counting(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._encoder_runs += sum(map(len, scheduler_output.scheduled_encoder_inputs.values()))
            return execute(scheduler_output, *args, **kwargs)

        self.model_runner.execute_model = counting

    def count_encoder_runs(self) -> int:
        """Images encoded so far, each time it was done."""
        return self._encoder_runs


class CountingEngine:
    """vLLM as `mpa_ray` runs it, with the count. One of its worker processes is asked: each of a
    replica's workers encodes its part of the same images.
    """

    def __init__(self, model: ModelSection) -> None:
        options = {"worker_extension_cls": f"{__name__}.{EncoderRuns.__name__}"}
        self._vllm = VllmEngine(
            model.model_copy(
                update={"engine": "vllm", "engine_options": model.engine_options | options}
            )
        )
        self._counts = False
        self._open = 0

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        """As `Engine.ask`; the count so far is written whenever no request is left."""
        if not self._counts:
            self._counts = True
            await self._call("start_counting_encoder_runs")
        self._open += 1
        try:
            return await self._vllm.ask(image, prompt, image_id=image_id, sampling=sampling)
        finally:
            self._open -= 1
            if not self._open and FILE in os.environ:
                Path(os.environ[FILE]).write_text(str(await self.encoder_runs()))

    async def encoder_runs(self) -> int:
        """Images encoded since the first request, each time it was done."""
        return (await self._call("count_encoder_runs"))[0]

    async def _call(self, name: str) -> Any:
        return await self._vllm._core.call_worker(name)

    def close(self) -> None:
        """Free the device."""
        self._vllm.close()


def load(model: ModelSection) -> CountingEngine:
    """The engine, for `lvlm.engine=encoder_runs:load`."""
    return CountingEngine(model)
