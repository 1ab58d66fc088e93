"""transformers' `generate`, for machines where vLLM cannot load. It batches what waits, by equal
sampling; there is no prefix cache.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from mpa_ray.config import LocalModelSection
from mpa_ray.engines.protocol import EngineDied, Reply, RequestRejected, Sampling
from mpa_ray.models import checkpoint
from mpa_ray.models.chat_template import (
    end_tokens,
    image_arguments,
    load_processor,
    settle_generation,
    user_prompt,
)
from mpa_ray.models.patch_embedding import as_matrix_products

_Request = tuple[Image.Image, str, Sampling, asyncio.Future[Reply]]


def load(model: LocalModelSection, **_: object) -> "TransformersEngine":
    """See `mpa_ray.engines.load`."""
    return TransformersEngine(model)


class TransformersEngine:
    """One model on one GPU, or on the CPU. The model runs in a thread; requests that come
    meanwhile are its next batch.
    """

    def __init__(self, model: LocalModelSection) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self._device = "cuda" if model.gpus else "cpu"
        self._processor = load_processor(model)
        self._image_arguments = image_arguments(model)
        dtype = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint.local(model.model), dtype=dtype, **checkpoint.arguments(model)
        )
        as_matrix_products(loaded)
        settle_generation(loaded, self._processor)
        self._model = loaded.to(self._device).eval()
        self._max_model_len = model.max_model_len
        self._batch_size = model.in_flight
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((image, prompt, sampling, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Serve the waiting requests, batch by batch, until none is left."""
        loop = asyncio.get_running_loop()
        # One turn of the loop, so that requests made at the same time come into the same batch.
        await asyncio.sleep(0)
        while self._waiting:
            first = _kind(self._waiting[0][2])
            batch = [request for request in self._waiting if _kind(request[2]) == first][
                : self._batch_size
            ]
            chosen = {id(request) for request in batch}
            self._waiting = [request for request in self._waiting if id(request) not in chosen]
            served = loop.run_in_executor(
                self._thread, self._serve, [request[:3] for request in batch]
            )
            # Waited for and not awaited: whatever it raises is each request's to raise, or the
            # others would wait for ever.
            await asyncio.wait([served])
            error = served.exception()
            if isinstance(error, RuntimeError):
                # Out of memory, or a broken device.
                error = EngineDied(f"transformers: {error}")
            results = [error] * len(batch) if error else served.result()
            for (*_, future), result in zip(batch, results, strict=True):
                if future.cancelled():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _serve(
        self, requests: list[tuple[Image.Image, str, Sampling]]
    ) -> list[Reply | BaseException]:
        """A batch; where the processor refuses one of its images (an extreme shape, say), each by
        itself, to find out which.
        """
        try:
            return self._generate(requests)
        except ValueError as error:
            if len(requests) == 1:
                return [RequestRejected(str(error))]
            return [result for request in requests for result in self._serve([request])]

    def _generate(
        self, requests: list[tuple[Image.Image, str, Sampling]]
    ) -> list[Reply | BaseException]:
        import torch

        prompts = [user_prompt(self._processor, prompt) for _, prompt, _ in requests]
        # Replies begin where prompts end, so prompts of different lengths are aligned at their
        # ends.
        layout = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        pictures = [[image] for image, _, _ in requests]
        inputs: Any = self._processor(
            text=prompts, images=pictures, **self._image_arguments, **layout
        ).to(self._device, self._model.dtype)
        lengths = inputs["attention_mask"].sum(1).tolist()
        sampling = requests[0][2]
        if max(lengths) + sampling.max_tokens > self._max_model_len:
            return self._without_too_long(requests, lengths)
        drawn = (
            {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
            if sampling.temperature
            else {"do_sample": False}
        )
        # `generate` draws from torch's generator: one seed for the batch, taken from its first
        # request.
        torch.manual_seed(sampling.seed or 0)
        with torch.inference_mode():
            # A checkpoint's own penalty (Qwen2.5-VL's is 1.05) is left out, as vLLM leaves it out.
            tokens = self._model.generate(
                **inputs, max_new_tokens=sampling.max_tokens, repetition_penalty=1.0, **drawn
            )
        replies: list[Reply | BaseException] = []
        ends = end_tokens(self._model)
        for row, length in zip(
            tokens[:, inputs["input_ids"].shape[1] :].tolist(), lengths, strict=True
        ):
            count = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
            stopped = row[count - 1] in ends if row else True
            text = self._processor.tokenizer.decode(row[:count], skip_special_tokens=True)
            replies.append(
                Reply(
                    text=text,
                    prompt_tokens=length,
                    cached_tokens=0,
                    output_tokens=count,
                    finish_reason="stop" if stopped else "length",
                )
            )
        return replies

    def _without_too_long(
        self, requests: list[tuple[Image.Image, str, Sampling]], lengths: list[int]
    ) -> list[Reply | BaseException]:
        bound = self._max_model_len - requests[0][2].max_tokens
        rest = iter(
            self._generate(
                [
                    request
                    for request, length in zip(requests, lengths, strict=True)
                    if length <= bound
                ]
            )
            if min(lengths) <= bound
            else []
        )
        return [
            next(rest)
            if length <= bound
            else RequestRejected(
                f"the prompt is {length} tokens long, at most {bound} fit (max_model_len)"
            )
            for length in lengths
        ]

    def close(self) -> None:
        self._thread.shutdown()
        del self._model


def _kind(sampling: Sampling) -> tuple[int, float, float]:
    """Requests of one kind can share a call of `generate`; only their seeds differ."""
    return sampling.max_tokens, sampling.temperature, sampling.top_p
