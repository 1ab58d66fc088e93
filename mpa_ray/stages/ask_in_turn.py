"""Questions for several models, asked in turn by one pool of engines.

The S-VLM before training, after it and after the training of each comparison are one architecture.
So an engine that has answered one model's questions takes the next model's weights
(`ServedModel.serving`), and is not loaded again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.engines import Sampling
from mpa_ray.images.parts import dataset_of
from mpa_ray.placement import capacity
from mpa_ray.schema import Stage
from mpa_ray.stages.row_worker import Ask, Row, RowStage, map_rows_with_model
from mpa_ray.storage.folder import Folder

_TURN = pa.schema([pa.field("turn", pa.int64()), pa.field("prompt", pa.string())])
_PREDICTION = pa.schema([pa.field("prediction", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What one model is asked.

    Attributes:
        name: of the dataset on Ray's dashboard.
        model: who is asked.
        numbers: of the parts.
        read: a part by its number, with the columns of `schema`.
        schema: of the rows, which have an image and a `question`.
        prompt: around the question.
        count: how many rows there are; None where that is not known before all are read.
    """

    name: str
    model: LocalModelSection
    numbers: Sequence[int]
    read: Callable[[int], pa.Table]
    schema: pa.Schema
    prompt: str
    count: int | None = None


class Answered(NamedTuple):
    """A part of one model's questions: its number, and its rows without images but with
    `prediction`, None where the row was quarantined.
    """

    number: int
    rows: pa.Table


async def answer_row(row: Row, ask: Ask, *, answering: Sampling) -> list[Row]:
    """The row with the model's answer as `prediction`."""
    reply = await ask(row["prompt"], answering)
    return [row | {"prediction": reply.text.strip()}]


def ask_in_turn(
    sets: Sequence[Questions], *, config: Config, output: Folder
) -> Iterator[Iterator[Answered]]:
    """For each of `sets`, in their order, its answered parts. Each is to be read to its end before
    the next. Only of the last the `count` may be unknown.

    The models are alike but for their weights. Where the engine could not continue, parts are
    missing, and the caller must ask `early_stop.raise_if_stopped`.

    Raises:
        RunError: the cluster has no room for the model.
    """
    placed = capacity.place_single_model(sets[0].model, config, what="evaluate")
    turns = [(turn, number) for turn, asked in enumerate(sets) for number in asked.numbers]
    schema = pa.unify_schemas([asked.schema for asked in sets] + [_TURN])
    stage = RowStage(
        name="Evaluator",
        work=partial(answer_row, answering=Sampling(max_tokens=config.evaluate.max_tokens)),
        models=[placed],
        asks=[Stage.EVALUATE],
        schema=pa.unify_schemas([schema, _PREDICTION]),
        turns=[
            placed.model_copy(update={"model": one.model.model, "revision": one.model.revision})
            for one in sets
        ],
    )
    read = partial(_read, sets=sets, turns=turns, schema=schema)
    dataset = dataset_of(list(range(len(turns))), read)
    rows = map_rows_with_model(dataset, stage, config=config, output=output)
    rows = rows.drop_columns(["image"])
    # A part that overtakes others would have weights changed there and back.
    rows.context.execution_options.preserve_order = True
    rows.set_name(sets[0].name if len(sets) == 1 else "evaluate")
    tables: Iterator[pa.Table]
    tables = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
    early: dict[int, list[Answered]] = defaultdict(list)

    def of(turn: int) -> Iterator[Answered]:
        left = sets[turn].count
        for answered in early.pop(turn, ()):
            left = None if left is None else left - answered.rows.num_rows
            yield answered
        while left is None or left > 0:
            table = next(tables, None)
            if table is None:
                return
            if not table.num_rows:
                continue
            of_turn, number = turns[table.column("part")[0].as_py()]
            answered = Answered(number, table.select(_without_turn(sets[of_turn])))
            if of_turn != turn:
                early[of_turn].append(answered)
                continue
            left = None if left is None else left - table.num_rows
            yield answered

    for turn in range(len(sets)):
        yield of(turn)


def _without_turn(asked: Questions) -> list[str]:
    kept = [name for name in asked.schema.names if name not in ("image", "part")]
    return [*kept, *_PREDICTION.names]


def _read(
    place: int,
    *,
    sets: Sequence[Questions],
    turns: Sequence[tuple[int, int]],
    schema: pa.Schema,
) -> pa.Table:
    """A part of one set as the engine's actor takes it, numbered among the parts of all sets."""
    turn, number = turns[place]
    asked = sets[turn]
    rows = [
        row
        | {
            "part": place,
            "turn": turn,
            "prompt": asked.prompt.format(question=row["question"]),
        }
        for row in asked.read(number).to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=schema)
