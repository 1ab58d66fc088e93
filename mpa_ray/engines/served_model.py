"""A model in an engine actor: its engine, loaded again where it has died, and with other weights
where another model of its kind is asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from PIL import Image

from mpa_ray.config import LocalModelSection
from mpa_ray.engines import loading
from mpa_ray.engines.protocol import Engine, EngineDied, Reply, Sampling, TakesWeights
from mpa_ray.errors import RunError
from mpa_ray.observability import logs
from mpa_ray.schema import Stage
from mpa_ray.storage.folder import Folder

# Processes of a tensor-parallel engine that notice late that it died keep a GPU's memory so long.
_MEMORY_IS_BACK_S = 60.0
_PAUSE_S = 5.0


class ServedModel:
    """Loads `model` into this process.

    Args:
        model: which, and how.
        stage: who asks it.
        output: the run's folder, where a paid model's ledger is kept.
    """

    def __init__(self, model: LocalModelSection, *, stage: Stage, output: Folder | None) -> None:
        self.stage = stage
        self.max_pixels = model.max_pixels
        self._model = model
        self._load = partial(loading.load, stage=stage, output=output)
        began = time.monotonic()
        self._engine = self._load(model)
        logs.LOG.info("loaded %s in %.1f s", model.model, time.monotonic() - began)
        self._broken: Engine | None = None
        self._reviving = asyncio.Lock()
        self._may_change = asyncio.Condition()
        self._blocks = 0

    async def ask(
        self, picture: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        """As `Engine.ask`; the picture is within `max_pixels`. An engine that dies over it is
        loaded again for the next request.
        """
        engine = await self._living_engine()
        try:
            return await engine.ask(picture, prompt, image_id=image_id, sampling=sampling)
        except EngineDied:
            self._broken = engine
            raise

    async def _living_engine(self) -> Engine:
        """The engine, loaded again where it has died. A model that cannot be loaded again ends the
        actor.
        """
        if self._broken is not self._engine:
            return self._engine
        async with self._reviving:
            if self._broken is self._engine:
                logs.LOG.warning("the engine died and is loaded again")
                self._engine = await asyncio.to_thread(self._replace, self._model)
            return self._engine

    @asynccontextmanager
    async def serving(self, model: LocalModelSection) -> AsyncIterator[None]:
        """Serve `model`, which differs from the one before in its weights alone, until the end of
        the block. A block for other weights waits until those before it have ended.
        """
        async with self._may_change:
            await self._may_change.wait_for(lambda: model == self._model or not self._blocks)
            if model != self._model:
                await self._take(model)
            self._blocks += 1
        try:
            yield
        finally:
            async with self._may_change:
                self._blocks -= 1
                self._may_change.notify_all()

    async def _take(self, model: LocalModelSection) -> None:
        began, engine = time.monotonic(), self._engine
        taken = False
        if isinstance(engine, TakesWeights) and engine is not self._broken:
            with suppress(EngineDied):
                taken = await engine.take_weights(model)
        if not taken:
            self._engine = await asyncio.to_thread(self._replace, model)
        self._model = model
        how = "took the weights of" if taken else "loaded"
        logs.LOG.info("%s %s in %.1f s", how, model.model, time.monotonic() - began)

    def _replace(self, model: LocalModelSection) -> Engine:
        """The engine of `model`, in place of the one there is. One of its kind could be loaded in
        this process, so what fails now is taken for memory that is not back.
        """
        self._engine.close()
        began = time.monotonic()
        while True:
            try:
                return self._load(model)
            except RunError:
                raise
            # What vLLM raises where its engine's process ends while it loads, whatever that one
            # raised, and what PyTorch raises where a GPU is full.
            except RuntimeError as error:
                if time.monotonic() - began >= _MEMORY_IS_BACK_S:
                    raise
                logs.LOG.warning("the engine could not be loaded again, another try: %s", error)
                time.sleep(_PAUSE_S)
