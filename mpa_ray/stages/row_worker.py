"""Asking models about the rows of a Ray Dataset: an autoscaling pool of engine actors, many rows in
flight in each.

A stage is data (`RowStage`): its work of one row is a coroutine. Everything of Ray and of the
engine is here.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.engines import EngineDied, Reply, RequestRejected, Sampling
from mpa_ray.engines.served_model import ServedModel
from mpa_ray.errors import RunError
from mpa_ray.images import decode
from mpa_ray.images.guarded_decode import Decoder
from mpa_ray.observability import logs, telemetry
from mpa_ray.schema import Reason, Stage, token_columns
from mpa_ray.stages import early_stop
from mpa_ray.stages.call_notes import CallNotes, note
from mpa_ray.stages.crash_blame import Attempt
from mpa_ray.stages.partial_parts import PartialParts
from mpa_ray.stages.slots import Slots
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


@dataclass(frozen=True, kw_only=True)
class RowStage:
    """What asks models about rows.

    Attributes:
        name: of the operator on Ray's dashboard.
        work: of a row.
        models: the models of an actor; the first one's replicas and `images_in_flight` count.
        asks: who asks each of `models`; the first is what logs, metrics and quarantine call the
            stage.
        schema: of the rows that come out.
        keeps_rows: whether rows that are done are kept when the engine stops; only where a part's
            number says which rows it has.
        turns: models of which the actor's one model is the first; the rows of a part have in
            `turn` which of them they are for (`mpa_ray.stages.ask_in_turn`).
    """

    name: str
    work: RowWork
    models: Sequence[LocalModelSection]
    asks: Sequence[Stage]
    schema: pa.Schema
    keeps_rows: bool = False
    turns: Sequence[LocalModelSection] = ()

    @property
    def stage(self) -> Stage:
        """What logs, metrics and quarantine call it."""
        return self.asks[0]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part in an actor: its rows, what an earlier call has kept of them, and, where actors were
    lost over it before, how.
    """

    rows: list[Row]
    kept: dict[int, list[Row]] = field(default_factory=dict)
    attempt: Attempt = field(default_factory=Attempt)

    @property
    def number(self) -> int:
        return self.rows[0]["part"]

    def known(self, place: int) -> list[Row] | None:
        """What is known of a row without asking: it was quarantined before it came here, or was
        kept by an earlier call. Else None.
        """
        row = self.rows[place]
        if row["reason"] is not None:
            return [row]
        return [row | found for found in self.kept[place]] if place in self.kept else None


class RowWorker:
    """An engine actor of Ray Data: takes a part, does the work of all its rows at once, gives the
    part back.

    A row whose image or request is at fault comes back quarantined. An engine that says that it can
    serve nothing more (RunError: a wrong key, a spent budget) ends the stage without losing
    anything, where `output` is given (`mpa_ray.stages.early_stop`); rows done by then are kept for
    the next call. An engine that dies is loaded again, and each row it served at that moment is
    asked again with no other beside it: a row that kills it then is the culprit and is quarantined.
    Any other error ends the actor, and Ray does the part again elsewhere; so it does when the
    actor's process is ended from outside or by a row, which `mpa_ray.stages.crash_blame` finds.

    Models of one actor share the decoded image, where their bounds on its pixels are the same.

    Args:
        stage: which.
        decoder: the bounds on images (see `Decoder`).
        output: the run's folder, for ledger, notes and rows that are kept; None for none of these.
        dataset: names the dataset in the notes of the call.
    """

    def __init__(
        self,
        *,
        stage: RowStage,
        decoder: dict[str, Any],
        output: Folder | None = None,
        dataset: str = "",
    ) -> None:
        run = logs.run_id(output.uri if output else None)
        logs.in_worker(run, stage.stage)
        self._stage, self._output, self._dataset = stage, output, dataset
        self._models = [
            ServedModel(model, stage=asks, output=output)
            for model, asks in zip(stage.models, stage.asks, strict=True)
        ]
        self._partial = PartialParts(output, stage.schema) if output and stage.keeps_rows else None
        self._counted = telemetry.Rows(run, stage.stage)
        self._slots = Slots(stage.models[0].in_flight)
        # Each model has its own bound on pixels, which comes with the image.
        self._decoder = Decoder(max_pixels=None, **decoder)
        self._stopping = False

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        if not table.num_rows:
            yield self._stage.schema.empty_table()
            return
        began = time.monotonic()
        part = await asyncio.to_thread(self._begin, table.to_pylist())
        places = range(len(part.rows))
        self._counted.add_waiting(sum(part.known(place) is None for place in places))
        async with self._turn(part):
            if part.attempt.one_by_one:
                results = [await self._one_by_one(part, place) for place in places]
            else:
                results = await asyncio.gather(*(self._one(part, place) for place in places))
        await asyncio.to_thread(self._end, part)
        done = {place: found for place, found in enumerate(results) if found is not None}
        yield await asyncio.to_thread(self._table, part, done)
        seconds = time.monotonic() - began
        logs.LOG.info(
            "asked about part %d: %d of %d rows in %.1f s",
            *(part.number, len(done), len(part.rows), seconds),
        )

    def _turn(self, part: _Part) -> AbstractAsyncContextManager[None]:
        """While the model has the weights that the part is for."""
        if not self._stage.turns:
            return nullcontext()
        return self._models[0].serving(self._stage.turns[part.rows[0]["turn"]])

    def _begin(self, rows: list[Row]) -> _Part:
        number = rows[0]["part"]
        kept = self._partial.load(number, rows) if self._partial else {}
        if not self._output:
            return _Part(rows=rows, kept=kept)
        attempt = note(self._output, CallNotes.begin, self._dataset, number)
        return _Part(rows=rows, kept=kept, attempt=attempt)

    def _end(self, part: _Part) -> None:
        if self._output:
            note(self._output, CallNotes.end, self._dataset, part.number)

    def _table(self, part: _Part, done: dict[int, list[Row]]) -> pa.Table:
        """What the part comes to; a row that Arrow cannot hold is quarantined."""
        try:
            return self._stored(part, done)
        except _UNSTORABLE:
            storable = {
                place: [self._storable(row, part.rows[place]) for row in found]
                for place, found in done.items()
            }
            return self._stored(part, storable)

    def _stored(self, part: _Part, done: dict[int, list[Row]]) -> pa.Table:
        """The part's rows; where the engine stopped before all of it was done, none, and what is
        done is kept.
        """
        schema = self._stage.schema
        if len(done) == len(part.rows):
            return pa.Table.from_pylist([row for found in done.values() for row in found], schema)
        # A row that was at fault before it came here is looked at again.
        asked = {place: found for place, found in done.items() if not part.rows[place]["reason"]}
        if self._partial and asked:
            self._partial.save(part.number, asked)
        return schema.empty_table()

    def _storable(self, row: Row, source: Row) -> Row:
        """A row as it is, or what it came of, quarantined, where Arrow cannot hold what an engine
        has said of it.
        """
        try:
            pa.RecordBatch.from_pylist([row], schema=self._stage.schema)
            return row
        except _UNSTORABLE as error:
            known = source | {"sample_id": row.get("sample_id")}
            detail = f"the engine's reply cannot be stored: {error}".encode(
                "utf-8", "backslashreplace"
            ).decode()
            return self._quarantined(known, Reason.UNSTORABLE_REPLY, detail)

    def _quarantined(self, row: Row, reason: Reason, detail: str) -> Row:
        return quarantined(row, self._stage.stage, reason, detail)

    async def _one(self, part: _Part, place: int) -> list[Row] | None:
        """The rows that come of a row; None where the engine stopped before they were there."""
        known = part.known(place)
        if known is not None:
            return known
        try:
            async with self._slots.one():
                return await self._ask_about(part.rows[place])
        except EngineDied:
            self._counted.add_waiting(1)
        async with self._slots.all():
            return await self._last_attempt(part.rows[place])

    async def _one_by_one(self, part: _Part, place: int) -> list[Row] | None:
        """As `_one`, for a part over which actors were lost: asked with no other row beside it, and
        noted before.
        """
        known = part.known(place)
        if known is not None:
            return known
        row = part.rows[place]
        if part.attempt.is_culprit(place):
            self._counted.add_waiting(-1)
            why = "asking about it alone ended the engine's process twice"
            return [self._quarantined(row, Reason.ENGINE_CRASH, why)]
        async with self._slots.all():
            await asyncio.to_thread(self._ask_alone, part, place)
            found = await self._last_attempt(row)
            await asyncio.to_thread(self._ask_alone, part, None)
            return found

    def _ask_alone(self, part: _Part, place: int | None) -> None:
        assert self._output is not None
        note(self._output, CallNotes.ask_alone, self._dataset, part.number, place)

    async def _last_attempt(self, row: Row) -> list[Row] | None:
        try:
            return await self._ask_about(row)
        except EngineDied as error:
            return [self._quarantined(row, Reason.ENGINE_CRASH, str(error))]

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
            with self._counted:
                return await self._stage.work(row, *(partial(ask, model) for model in self._models))
        except decode.UnreadableImage as error:
            return [quarantined(row, Stage.IMAGES, error.reason, error.detail)]
        except RequestRejected as error:
            return [self._quarantined(row, Reason.ENGINE_REJECTED, str(error))]
        except RunError as error:
            if self._output is None:
                raise
            await asyncio.to_thread(self._stop, self._output, error)
            return None

    def _stop(self, output: Folder, error: RunError) -> None:
        if not self._stopping:
            self._stopping = True
            logs.LOG.error("the stage ends: %s", error)
            early_stop.request_stop(output, str(error))


def quarantined(row: Row, stage: Stage, reason: Reason, detail: str) -> Row:
    """The row as it goes into quarantine/."""
    return row | {"stage": str(stage), "reason": str(reason), "detail": detail}


def seed_for(*parts: object) -> int:
    """A seed of 31 bits that depends on nothing but `parts`: the same row is drawn alike in every
    run and on every actor.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def spent(call: str, reply: Reply) -> Row:
    """The tokens of a reply in the columns of `call`, one of `schema.CALLS`."""
    counts = (reply.prompt_tokens, reply.cached_tokens, reply.output_tokens)
    return dict(zip(token_columns(call), counts, strict=True))


def map_rows_with_model(
    dataset: "Dataset", stage: RowStage, *, config: Config, output: Folder | None = None
) -> "Dataset":
    """The rows of `dataset` after the stage's work on each, in parts as they came. Lazy.

    With `output`, a paid model's ledger is kept there, and an engine that can serve nothing more
    ends the stage without losing anything: parts are then missing, and the caller must ask
    `early_stop.raise_if_stopped`. Without it, that error fails the dataset.
    """
    from ray.data import ActorPoolStrategy

    if output:
        # Made here the notes end with the driver; made by a worker they would end with that.
        early_stop.stop_reason(output)
    first, call = stage.models[0], time.time()
    decoder = ("max_image_pixels", "max_image_bytes", "max_decode_seconds")
    return dataset.map_batches(
        # Ray Data names an operator after its class.
        type(stage.name, (RowWorker,), {"__doc__": RowWorker.__doc__}),
        fn_constructor_kwargs={
            "stage": stage,
            "decoder": {name: getattr(config, name) for name in decoder},
            "output": output,
            "dataset": f"{stage.stage} {first.model} {call!r}",
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=first.min_replicas,
            max_size=first.most_replicas,
            max_concurrent_calls_per_actor=_PARTS_IN_FLIGHT,
            max_tasks_in_flight_per_actor=2 * _PARTS_IN_FLIGHT,
        ),
        num_cpus=sum(model.cpus for model in stage.models),
        num_gpus=sum(model.gpus for model in stage.models) or None,
    )
