"""Where vLLM's engine runs: in a process of its own, or in this one.

On a GPU it has a process of its own: the processor's work on one image overlaps the model's on
others. On the CPU both have the same cores, and a process of its own only costs: it loads vLLM a
second time, and every request and reply is sent from one to the other.
"""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from mpa_ray.engines.protocol import EngineDied, RequestRejected

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams, TextPrompt
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

T = TypeVar("T")


class Core(Protocol):
    """A loaded vLLM."""

    model_config: "ModelConfig"

    async def call_worker(self, method: str, *args: Any) -> list[Any]:
        """What a method of vLLM's worker gives, in each of the workers.

        Raises:
            EngineDied: the engine broke.
        """

    async def generate(self, prompt: "TextPrompt", sampling: "SamplingParams") -> "RequestOutput":
        """The finished output of a request.

        Raises:
            RequestRejected: vLLM does not take the request.
            EngineDied: the engine broke.
        """

    async def replace_weights(self, folder: str) -> None:
        """Go on with the weights of the checkpoint in `folder`, and forget what was computed with
        the old ones. No request is in the engine.

        Raises:
            EngineDied: the engine broke.
        """

    def close(self) -> None:
        """Free the device."""


class OwnProcess:
    """vLLM's async engine, whose model runs in a process of its own that ends with this one."""

    def __init__(self, arguments: "AsyncEngineArgs") -> None:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM has defaults for a GPU by what it is used for, and none for its async engine by
        # itself: a prefill would run in chunks of 2,048 tokens, and the encoder cache hold as many,
        # on any GPU.
        self._engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self.model_config = self._engine.model_config
        self._request_ids = itertools.count()

    async def generate(self, prompt: "TextPrompt", sampling: "SamplingParams") -> "RequestOutput":
        """See `Core.generate`."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        final = None
        try:
            async for output in self._engine.generate(
                prompt, sampling, request_id=str(next(self._request_ids))
            ):
                final = output
        except (ValueError, VLLMClientError) as error:
            # vLLM checks a request before it queues it: too long, or an image its processor cannot
            # take.
            raise RequestRejected(str(error)) from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineDied(f"vLLM's engine died: {error}") from error
        assert final is not None, "vLLM ended a request without an output"
        return final

    async def call_worker(self, method: str, *args: Any) -> list[Any]:
        """See `Core.call_worker`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._engine.collective_rpc(method, args=args)
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine died: {error}") from error

    async def replace_weights(self, folder: str) -> None:
        """See `Core.replace_weights`."""
        await self.call_worker("take_weights", folder)
        await self._engine.reset_prefix_cache()
        await self._engine.reset_encoder_cache()

    def close(self) -> None:
        """See `Core.close`."""
        self._engine.shutdown()


class ThisProcess:
    """vLLM's engine in this process, on the CPU. One thread makes every call to it, steps included,
    in the order in which they come.

    vLLM keeps some of an engine's state once for a process, so a process has one of these at a
    time.

    Args:
        arguments: of the engine.
        threads: of each of torch's operations.
    """

    is_taken: ClassVar[bool] = False

    def __init__(self, arguments: "AsyncEngineArgs", *, threads: int) -> None:
        import torch
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        # OMP_NUM_THREADS comes too late where torch has been imported before.
        self._thread = ThreadPoolExecutor(
            1, "vLLM", initializer=torch.set_num_threads, initargs=(threads,)
        )
        load = LLMEngine.from_engine_args
        self._engine = self._thread.submit(
            load, arguments, usage_context=UsageContext.LLM_CLASS
        ).result()
        self.model_config = self._engine.model_config
        ThisProcess.is_taken = True
        self._request_ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def generate(self, prompt: "TextPrompt", sampling: "SamplingParams") -> "RequestOutput":
        """See `Core.generate`."""
        from vllm.exceptions import VLLMClientError

        self._raise_if_broken()
        request_id = str(next(self._request_ids))
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = done
        try:
            await self._in_thread(self._engine.add_request, request_id, prompt, sampling)
            if self._stepping is None:
                self._stepping = asyncio.create_task(self._step_while_some_wait())
            await asyncio.wait([done, self._stepping], return_when=asyncio.FIRST_COMPLETED)
        except (ValueError, VLLMClientError) as error:
            raise RequestRejected(str(error)) from error
        finally:
            self._waiting.pop(request_id, None)
        if not done.done():
            self._raise_if_broken()
        output: RequestOutput = await done
        return output

    def _raise_if_broken(self) -> None:
        if self._stepping is not None and self._stepping.done():
            raise EngineDied(f"vLLM's engine died: {self._stepping.exception()!r}")

    async def _step_while_some_wait(self) -> None:
        """Step until nobody waits. What a step raises stays in the task, which is kept then: no
        request gets another.
        """
        while self._waiting:
            for output in await self._in_thread(self._engine.step):
                if output.finished and output.request_id in self._waiting:
                    self._waiting.pop(output.request_id).set_result(output)
        self._stepping = None

    async def call_worker(self, method: str, *args: Any) -> list[Any]:
        """See `Core.call_worker`."""
        return await self._in_thread(self._engine.collective_rpc, method, None, args)

    async def replace_weights(self, folder: str) -> None:
        """See `Core.replace_weights`."""
        await self.call_worker("take_weights", folder)
        await self._in_thread(self._engine.reset_prefix_cache)
        await self._in_thread(self._engine.reset_encoder_cache)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        """See `Core.close`."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._thread.submit(self._engine.engine_core.shutdown).result()
        del self._engine
        self._thread.submit(cleanup_dist_env_and_memory).result()
        self._thread.shutdown()
        ThisProcess.is_taken = False


def load_core(arguments: "AsyncEngineArgs", *, threads_here: int) -> Core:
    """Load vLLM, in this process where `threads_here` is not 0 and no other is in it."""
    if threads_here and not ThisProcess.is_taken:
        return ThisProcess(arguments, threads=threads_here)
    return OwnProcess(arguments)
