"""vLLM: what it is told of a model, and what it is asked.

Requests run as they come: there is no batch and so no barrier between batches.
"""

import asyncio
import os
from typing import Any

from PIL import Image

from mpa_ray.config import LocalModelSection
from mpa_ray.engines.protocol import Reply, Sampling
from mpa_ray.engines.vllm_core import Core, load_core
from mpa_ray.models import checkpoint
from mpa_ray.models.chat_template import load_processor, takes_parts, user_prompt
from mpa_ray.models.gpu_memory import ENGINE_GIB, USED
from mpa_ray.models.size import GIB, ModelSize, size_of

# vLLM's own switch. At 1 the model runs in a process of its own on the CPU too.
_OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
_WORKER_EXTENSION = "mpa_ray.engines.vllm_worker.TakesWeights"
# The least holds one image of any family; the most is vLLM's default. An engine in a process of its
# own has the cache twice.
_LEAST_CACHE_GIB, _MOST_CACHE_GIB = 0.25, 4.0


def load(model: LocalModelSection, **_: object) -> "VllmEngine":
    """See `mpa_ray.engines.load`."""
    return VllmEngine(model)


class VllmEngine:
    """One model on one or several GPUs, or on the CPU (`mpa_ray.engines.vllm_core`)."""

    def __init__(self, model: LocalModelSection) -> None:
        on_cpu = model.gpus == 0
        if on_cpu:
            _set_up_cpu(model)
        else:
            # Ray sets it to an actor's CPUs. Without it vLLM loads weights with as many threads as
            # torch has here, and then serves and prepares images with one: more spin.
            os.environ.pop("OMP_NUM_THREADS", None)
        from vllm.engine.arg_utils import AsyncEngineArgs

        size = size_of(model)
        options = {
            "max_num_seqs": model.in_flight,
            "tensor_parallel_size": max(1, int(model.gpus)),
            **({} if on_cpu else _gpu_memory(model, size)),
            **processor_cache(model, size),
            # Compiling pays after many thousands of images; on the CPU it takes longer than a small
            # run.
            "enforce_eager": on_cpu,
            # Blocks of 128, the default of the CPU build, would seldom end where the text that both
            # prompts share does.
            **({"distributed_executor_backend": "uni", "block_size": 32} if on_cpu else {}),
            **model.engine_options,
        }
        self._folder = checkpoint.local(model.model)
        arguments = AsyncEngineArgs(
            model=self._folder,
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            limit_mm_per_prompt={"image": 1, "video": 0},
            enable_prefix_caching=True,
            enable_log_requests=False,
            disable_log_stats=True,
            mm_processor_kwargs=model.processor_options or None,
            **checkpoint.arguments(model),
            **{"worker_extension_cls": _WORKER_EXTENSION, **options},
        )
        here = on_cpu and os.environ[_OWN_PROCESS] == "0"
        self._core = load_core(arguments, threads_here=_threads(model) if here else 0)
        self._processor = load_processor(model)
        self._image_word = None if takes_parts(self._processor) else _image_word(self._core)

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        from vllm import SamplingParams, TextPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        request: TextPrompt = {
            "prompt": user_prompt(self._processor, prompt, image_word=self._image_word),
            "multi_modal_data": {"image": image},
            # Spares vLLM from hashing the pixels again for the second question.
            "multi_modal_uuids": {"image": image_id},
        }
        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=sampling.form)
            if sampling.form
            else None,
        )
        final = await self._core.generate(request, parameters)
        completion = final.outputs[0]
        return Reply(
            text=completion.text,
            prompt_tokens=len(final.prompt_token_ids or ()),
            cached_tokens=final.num_cached_tokens or 0,
            output_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason or "stop",
        )

    async def take_weights(self, model: LocalModelSection) -> bool:
        """See `mpa_ray.engines.protocol.TakesWeights`."""
        folder = await asyncio.to_thread(checkpoint.local, model.model)
        # vLLM keeps the old tensor where a checkpoint lacks it, and only logs that.
        fits = await asyncio.to_thread(checkpoint.same_tensors, self._folder, folder)
        if not fits or "worker_extension_cls" in model.engine_options:
            return False
        await self._core.replace_weights(folder)
        self._folder = folder
        return True

    def close(self) -> None:
        self._core.close()


def _image_word(core: Core) -> str:
    """What vLLM replaces by the image in a prompt of this model."""
    from vllm.model_executor.model_loader import get_model_cls

    model: Any = get_model_cls(core.model_config)
    return model.get_placeholder_str("image", 1)


def processor_cache(model: LocalModelSection, size: ModelSize | None) -> dict[str, float]:
    """How much memory of the node, not of the GPU, keeps what the processor made of an image, from
    its first question to its last; vLLM's default where the size is not known.
    """
    if size is None:
        return {}
    # 16 bits a number, of twice the images in flight: others come and go between two questions.
    gib = 4 * size.image.values * model.in_flight / GIB
    return {"mm_processor_cache_gb": min(_MOST_CACHE_GIB, max(_LEAST_CACHE_GIB, gib))}


def _gpu_memory(model: LocalModelSection, size: ModelSize | None) -> dict[str, Any]:
    from vllm.platforms import current_platform

    return memory_options(model, gpu_bytes=current_platform.get_device_total_memory(), size=size)


def memory_options(
    model: LocalModelSection, *, gpu_bytes: int, size: ModelSize | None
) -> dict[str, Any]:
    """What vLLM is told of a GPU's memory. On a GPU that is shared, the KV cache's size too: else
    vLLM measures what is used on the GPU while the model loads, and an engine that loads beside it
    would be counted in.
    """
    if (
        model.gpus >= 1
        or size is None
        or model.engine_options.keys() & {"gpu_memory_utilization", "kv_cache_memory_bytes"}
    ):
        return {"gpu_memory_utilization": USED * min(1.0, model.gpus)}
    kv_bytes = int(USED * model.gpus * gpu_bytes - size.weight_bytes - ENGINE_GIB * GIB)
    return {"gpu_memory_utilization": USED * model.gpus} | (
        {"kv_cache_memory_bytes": kv_bytes} if kv_bytes > 0 else {}
    )


def _threads(model: LocalModelSection) -> int:
    return max(1, int(model.cpus))


def _set_up_cpu(model: LocalModelSection) -> None:
    """vLLM's CPU build reads its settings from the environment; what the user has set stays, but
    for the number of threads, which is `cpus_per_replica`.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Ray sets OMP_NUM_THREADS to an actor's CPUs, at least 1; binding threads to cores makes actors
    # on one node fight over the first ones.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(_threads(model))
    os.environ.setdefault(_OWN_PROCESS, "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
