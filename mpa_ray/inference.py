"""Asking a model about the rows of a Ray Dataset: an autoscaling pool of engine actors, many rows in flight in each.

A stage gives the work of one row as a coroutine; everything of Ray and of the engine is here.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, AsyncIterator

import pyarrow as pa
from PIL import Image

from mpa_ray import engines, images
from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.schema import Reason, Stage

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]
Ask = Callable[[str, Sampling], Awaitable[Reply]]
RowWork = Callable[[Row, Ask], Awaitable[list[Row]]]

# While one part's last images finish, the next part's first ones run; as many again wait in the actor's queue.
_PARTS_IN_FLIGHT = 2


class RowWorker:
    """An engine actor of Ray Data: takes a part, runs the work of all its rows at once, gives the part back.

    A row whose image or request is at fault comes back quarantined. Any other error ends the actor, and Ray does the part again elsewhere.
    """

    stage: Stage

    def __init__(self, model: ModelSection, work: RowWork, schema: pa.Schema, max_image_pixels: int, max_image_bytes: int) -> None:
        self._engine = engines.load(model)
        self._work = work
        self._schema = schema
        self._limits = {"max_image_pixels": max_image_pixels, "max_image_bytes": max_image_bytes}
        self._max_pixels = model.max_pixels
        self._slots = asyncio.Semaphore(model.images_in_flight)

    async def __call__(self, part: pa.Table) -> AsyncIterator[pa.Table]:
        results = await asyncio.gather(*(self._one(row) for row in part.to_pylist()))
        yield pa.Table.from_pylist([row for rows in results for row in rows], schema=self._schema)

    async def _one(self, row: Row) -> list[Row]:
        if row["reason"] is not None:
            return [row]
        picture: Image.Image | None = None

        async def ask(prompt: str, sampling: Sampling) -> Reply:
            nonlocal picture
            if picture is None:
                picture = await asyncio.to_thread(self._decode, row["image"])
            return await self._engine.ask(picture, prompt, image_id=row["image_id"], sampling=sampling)

        async with self._slots:
            try:
                return await self._work(row, ask)
            except images.UnreadableImage as error:
                return [quarantined(row, Stage.IMAGES, error.reason, error.detail)]
            except RequestRejected as error:
                return [quarantined(row, self.stage, Reason.ENGINE_REJECTED, str(error))]

    def _decode(self, data: bytes) -> Image.Image:
        return images.fit(images.decode(data, **self._limits), self._max_pixels)


def quarantined(row: Row, stage: Stage, reason: Reason, detail: str) -> Row:
    """The row as it goes into quarantine/."""
    return row | {"stage": str(stage), "reason": str(reason), "detail": detail}


def seed_for(*parts: object) -> int:
    """A seed of 31 bits that depends on nothing but `parts`: the same row is drawn alike in every run and on every actor."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def ask_model(dataset: "Dataset", worker: type[RowWorker], work: RowWork, *, model: ModelSection, schema: pa.Schema, config: Config) -> "Dataset":
    """The rows of `dataset` after `work` on each, in parts as they came. `worker` names the stage on Ray's dashboard."""
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        worker,
        fn_constructor_args=(model, work, schema, config.max_image_pixels, config.max_image_bytes),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=model.min_replicas,
            max_size=model.max_replicas,
            max_concurrent_calls_per_actor=_PARTS_IN_FLIGHT,
            max_tasks_in_flight_per_actor=2 * _PARTS_IN_FLIGHT,
        ),
        num_cpus=model.cpus_per_replica,
        num_gpus=model.gpus_per_replica or None,
    )
