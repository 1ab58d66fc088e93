"""Asking a model about the rows of a Ray Dataset: an autoscaling pool of engine actors, many rows
in flight in each.

A stage gives the work of one row as a coroutine; everything of Ray and of the engine is here.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import EngineDied, Reply, RequestRejected, Sampling
from mpa_ray.engines.served_model import ServedModel
from mpa_ray.errors import RunError
from mpa_ray.images import decode
from mpa_ray.images.guarded_decode import Decoder
from mpa_ray.observability import logs, telemetry
from mpa_ray.schema import Reason, Stage
from mpa_ray.stages import early_stop
from mpa_ray.stages.crash_blame import Attempt, Attempts
from mpa_ray.storage.folder import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]
Ask = Callable[[str, Sampling], Awaitable[Reply]]
RowWork = Callable[..., Awaitable[list[Row]]]
"""Takes a row, and for each of the actor's models what asks it about the row's image."""

# What Arrow raises over a value that a column cannot hold: text that is no Unicode, a number over
# its type.
_UNSTORABLE = (pa.ArrowException, OverflowError, UnicodeError)

# While one part's last images finish, the next part's first ones run; as many again wait in the
# actor's queue.
_PARTS_IN_FLIGHT = 2


class RowWorker:
    """An engine actor of Ray Data: takes a part, runs the work of all its rows at once, gives the
    part back.

    A row whose image or request is at fault comes back quarantined. An engine that says that it
    cannot go on (RunError: a wrong key, a spent budget) ends the stage in good order where `output`
    is given (`mpa_ray.stages.early_stop`); rows done by then are kept for the next call. An engine
    that dies is loaded anew, and each row it served at that moment is asked again with no other
    beside it: a row that kills it then is the culprit and is quarantined. Any other error ends the
    actor, and Ray does the part again elsewhere; so it does when the actor's process is ended from
    outside or by a row, which `mpa_ray.stages.crash_blame` finds.

    An actor has one model or, where two share a card, several; the first one's `images_in_flight`
    counts for both. They share the decoded image too, where their bounds on its pixels are the
    same.
    """

    stage: Stage
    further_stages: tuple[Stage, ...] = ()
    """What asks the second model and those after it."""
    keeps_rows = False
    """Whether rows that are done are kept when the engine stops; only where a part's number says
    which rows it has.
    """

    def __init__(
        self,
        models: Sequence[ModelSection],
        work: RowWork,
        schema: pa.Schema,
        max_image_pixels: int,
        max_image_bytes: int,
        output: Folder | None = None,
        max_decode_seconds: float = 30.0,
        call: float = 0.0,
    ) -> None:
        logs.in_worker(logs.run_id(output.uri if output else None), self.stage)
        stages = (self.stage, *self.further_stages)
        self._models = [
            ServedModel(model, stage=stage, output=output)
            for model, stage in zip(models, stages, strict=True)
        ]
        self._waiting_to_be_alone = asyncio.Lock()
        self._output = output
        self._kept_parts = early_stop.kept_parts(output) if output and self.keeps_rows else set()
        self._attempts = (
            Attempts(output, stage=self.stage, model=models[0].model, call=call) if output else None
        )
        self._rows = telemetry.Rows(logs.run_id(output.uri if output else None), self.stage)
        self._stopping = False
        self._work = work
        self._schema = schema
        self._decoder = Decoder(
            # Each model has its own, which comes with the image.
            max_pixels=None,
            max_image_pixels=max_image_pixels,
            max_image_bytes=max_image_bytes,
            max_decode_seconds=max_decode_seconds,
        )
        self._slots = asyncio.Semaphore(models[0].in_flight)
        self._slot_count = models[0].in_flight

    async def __call__(self, part: pa.Table) -> AsyncIterator[pa.Table]:
        rows = part.to_pylist()
        began = time.monotonic()
        kept = await asyncio.to_thread(self._kept, rows)
        self._rows.come(sum(_known(row, kept.get(place)) is None for place, row in enumerate(rows)))
        attempt = (
            await asyncio.to_thread(self._attempts.begin, rows[0]["part"])
            if self._attempts and rows
            else None
        )
        if attempt and attempt.is_careful:
            results = [
                await self._one_carefully(row, kept.get(place), place, attempt)
                for place, row in enumerate(rows)
            ]
        else:
            results = await asyncio.gather(
                *(self._one(row, kept.get(place)) for place, row in enumerate(rows))
            )
        if self._attempts and rows:
            await asyncio.to_thread(self._attempts.end, rows[0]["part"])
        done = {place: result for place, result in enumerate(results) if result is not None}
        try:
            table = await asyncio.to_thread(self._table, rows, done)
        except _UNSTORABLE:
            done = {
                place: [self._storable(row, rows[place]) for row in result]
                for place, result in done.items()
            }
            table = await asyncio.to_thread(self._table, rows, done)
        if rows:
            seconds = time.monotonic() - began
            logs.LOG.info(
                "asked about part %d: %d of %d rows in %.1f s",
                rows[0]["part"],
                len(done),
                len(rows),
                seconds,
            )
        yield table

    def _table(self, rows: list[Row], done: dict[int, list[Row]]) -> pa.Table:
        """What the part comes to; where the engine stopped before all of it was done, nothing, and
        what is done is kept.
        """
        if len(done) < len(rows):
            self._keep(rows, done)
            return self._schema.empty_table()
        return pa.Table.from_pylist(
            [row for result in done.values() for row in result], schema=self._schema
        )

    def _storable(self, row: Row, source: Row) -> Row:
        """A row as it is, or what it came of, quarantined, where Arrow cannot hold what an engine
        has said of it.
        """
        try:
            pa.RecordBatch.from_pylist([row], schema=self._schema)
            return row
        except _UNSTORABLE as error:
            known = source | {"sample_id": row.get("sample_id")}
            detail = f"the engine's reply cannot be stored: {error}".encode(
                "utf-8", "backslashreplace"
            ).decode()
            return quarantined(known, self.stage, Reason.UNSTORABLE_REPLY, detail)

    def _kept(self, rows: list[Row]) -> dict[int, list[Row]]:
        if not (self._kept_parts and self._output and rows):
            return {}
        return early_stop.kept(self._output, rows[0]["part"], rows, self._kept_parts)

    def _keep(self, rows: list[Row], done: dict[int, list[Row]]) -> None:
        # A row that was at fault before it came here is looked at again.
        asked = {place: result for place, result in done.items() if rows[place]["reason"] is None}
        if self.keeps_rows and self._output and asked:
            early_stop.keep(self._output, rows[0]["part"], asked, self._schema)

    async def _one(self, row: Row, kept: list[Row] | None) -> list[Row] | None:
        """The rows that come of `row`; None where the engine stopped before they were there."""
        known = _known(row, kept)
        if known is not None:
            return known
        try:
            async with self._slots:
                return await self._ask_about(row)
        except EngineDied:
            self._rows.come(1)
        async with self._alone():
            return await self._last_attempt(row)

    async def _one_carefully(
        self, row: Row, kept: list[Row] | None, place: int, attempt: Attempt
    ) -> list[Row] | None:
        """As `_one`, for a part over which actors were lost: asked with no other row beside it, and
        noted before.
        """
        known = _known(row, kept)
        if known is not None:
            return known
        if attempt.is_culprit(place):
            self._rows.come(-1)
            return [
                quarantined(
                    row,
                    self.stage,
                    Reason.ENGINE_CRASH,
                    "asking about it alone ended the engine's process twice",
                )
            ]
        assert self._attempts is not None
        async with self._alone():
            await asyncio.to_thread(self._attempts.ask_alone, row["part"], attempt, place)
            found = await self._last_attempt(row)
            await asyncio.to_thread(self._attempts.answered, row["part"], attempt)
            return found

    async def _last_attempt(self, row: Row) -> list[Row] | None:
        try:
            return await self._ask_about(row)
        except EngineDied as error:
            return [quarantined(row, self.stage, Reason.ENGINE_CRASH, str(error))]

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Holds every slot, so that nothing else is in the engine. One at a time may gather slots,
        or two would wait for each other's for ever.
        """
        async with self._waiting_to_be_alone:
            held = 0
            try:
                while held < self._slot_count:
                    await self._slots.acquire()
                    held += 1
                yield
            finally:
                for _ in range(held):
                    self._slots.release()

    async def _ask_about(self, row: Row) -> list[Row] | None:
        """Asks about one row. Raises EngineDied where the engine did not outlive it."""
        if self._stopping:
            return None
        # By the bound on their pixels: what a model sees must not depend on the other models of its
        # actor.
        pictures: dict[int, Image.Image] = {}

        async def ask(model: ServedModel, prompt: str, sampling: Sampling) -> Reply:
            if model.max_pixels not in pictures:
                pictures[model.max_pixels] = await self._decoder.image(
                    row["image"], max_pixels=model.max_pixels
                )
            return await model.ask(
                pictures[model.max_pixels], prompt, image_id=row["image_id"], sampling=sampling
            )

        try:
            with self._rows:
                return await self._work(row, *(partial(ask, model) for model in self._models))
        except decode.UnreadableImage as error:
            return [quarantined(row, Stage.IMAGES, error.reason, error.detail)]
        except RequestRejected as error:
            return [quarantined(row, self.stage, Reason.ENGINE_REJECTED, str(error))]
        except RunError as error:
            if self._output is None:
                raise
            await asyncio.to_thread(self._stop, self._output, error)
            return None

    def _stop(self, output: Folder, error: RunError) -> None:
        if not self._stopping:
            self._stopping = True
            logs.LOG.error("the stage ends: %s", error)
            early_stop.stop(output, str(error))


def _known(row: Row, kept: list[Row] | None) -> list[Row] | None:
    """What is known of a row without asking: it was quarantined before it came here, or was kept by
    an earlier call. Else None.
    """
    if row["reason"] is not None:
        return [row]
    return None if kept is None else [row | found for found in kept]


def quarantined(row: Row, stage: Stage, reason: Reason, detail: str) -> Row:
    """The row as it goes into quarantine/."""
    return row | {"stage": str(stage), "reason": str(reason), "detail": detail}


def seed_for(*parts: object) -> int:
    """A seed of 31 bits that depends on nothing but `parts`: the same row is drawn alike in every
    run and on every actor.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def ask_model(
    dataset: "Dataset",
    worker: type[RowWorker],
    work: RowWork,
    *,
    models: Sequence[ModelSection],
    schema: pa.Schema,
    config: Config,
    output: Folder | None = None,
) -> "Dataset":
    """The rows of `dataset` after `work` on each, in parts as they came. `worker` names the stage
    on Ray's dashboard; an actor has all of `models`, as many replicas as the first one says.

    With `output`, a paid model's ledger and notes of parts begun are kept there, and an engine that
    cannot go on ends the stage in good order: parts are then missing, and the caller must ask
    `early_stop.raise_if_stopped`. Without it, that error fails the dataset.
    """
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        worker,
        fn_constructor_kwargs={
            "models": models,
            "work": work,
            "schema": schema,
            "max_image_pixels": config.max_image_pixels,
            "max_image_bytes": config.max_image_bytes,
            "max_decode_seconds": config.max_decode_seconds,
            "output": output,
            "call": time.time(),
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=models[0].min_replicas,
            max_size=models[0].most_replicas,
            max_concurrent_calls_per_actor=_PARTS_IN_FLIGHT,
            max_tasks_in_flight_per_actor=2 * _PARTS_IN_FLIGHT,
        ),
        num_cpus=sum(model.cpus for model in models),
        num_gpus=sum(model.cards for model in models) or None,
    )
