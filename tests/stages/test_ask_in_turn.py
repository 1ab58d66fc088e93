"""Questions for several models, asked in turn by engines that are here, in Ray."""

import asyncio
import io
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mpa_ray.config import Config, EvaluateSection, ModelSection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.schema import SOURCE_ROW
from mpa_ray.stages.ask_in_turn import Questions, answer_row, ask_in_turn
from mpa_ray.storage.folder import Folder

SCHEMA = pa.schema([*SOURCE_ROW, pa.field("question", pa.string())])
ROWS = 5


class Engine:
    """Says which model was asked what, and how often this process has loaded one."""

    loads = 0

    def __init__(self, model: ModelSection) -> None:
        self.name = model.model
        type(self).loads += 1

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        asked = self.name
        await asyncio.sleep(0.01)
        text = f" {asked} {self.name} {self.loads} {sampling.max_tokens} {prompt}\n"
        return Reply(
            text=text, prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def close(self) -> None:
        self.name = "closed"


class Changing(Engine):
    """Takes the weights of any model but `third`."""

    async def take_weights(self, model: ModelSection) -> bool:
        await asyncio.sleep(0.01)
        if model.model == "third":
            return False
        self.name = model.model
        return True


def fixed(model: ModelSection) -> Engine:
    return Engine(model)


def changing(model: ModelSection) -> Engine:
    return Changing(model)


def read(number: int, *, name: str, empty: int | None = None) -> pa.Table:
    """A part of `name`; part `empty` has no rows."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(picture, "PNG")
    rows: list[dict[str, Any]] = [
        {
            "part": number,
            "image_id": f"{number}-{row}",
            "image_uri": "x",
            "image": picture.getvalue(),
            "question": f"{name}{number}{row}{{}}",
        }
        for row in range(0 if number == empty else ROWS)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def questions(name: str, engine: str, *, count: int | None, empty: int | None = None) -> Questions:
    model = ModelSection(
        model=name,
        engine=f"test_ask_in_turn:{engine}",
        gpus_per_replica=0,
        cpus_per_replica=0.5,
        images_in_flight=2,
    )
    return Questions(
        name=name,
        model=model,
        numbers=[3, 4, 9],
        read=partial(read, name=name, empty=empty),
        schema=SCHEMA,
        prompt="say {question}",
        count=count,
    )


@pytest.mark.parametrize(("engine", "loads"), [("fixed", 3), ("changing", 2)])
def test_each_model_answers_its_own_questions_and_is_loaded_only_where_it_must_be(
    engine: str, loads: int, ray_session: None, tmp_path: Path
) -> None:
    names = ["first", "second", "third"]
    sets = [questions(name, engine, count=3 * ROWS) for name in names[:2]]
    sets.append(questions("third", engine, count=None, empty=4))
    config = Config(evaluate=EvaluateSection(max_tokens=7))
    found: dict[str, dict[int, list[str]]] = {}
    answered = ask_in_turn(sets, config=config, output=Folder.at(str(tmp_path)))
    for name, parts in zip(names, answered, strict=True):
        found[name] = {part.number: part.rows.column("prediction").to_pylist() for part in parts}
    assert {name: sorted(parts) for name, parts in found.items()} == {
        "first": [3, 4, 9],
        "second": [3, 4, 9],
        "third": [3, 9],
    }
    for name, parts in found.items():
        for number, predictions in parts.items():
            assert [said.split(maxsplit=4)[:2] for said in predictions] == [[name, name]] * ROWS
            asked = [said.split(maxsplit=3)[3] for said in predictions]
            assert asked == [f"7 say {name}{number}{row}{{}}" for row in range(ROWS)]
    last = found["third"][9][0].split()
    assert int(last[2]) == loads


def test_the_answer_becomes_the_prediction() -> None:
    asked = []

    async def ask(prompt: str, sampling: Sampling) -> Reply:
        asked.append((prompt, sampling))
        return Reply(
            text=" red\n", prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    work = answer_row({"prompt": "What {color}?"}, ask, answering=Sampling(max_tokens=5))
    assert asyncio.run(work) == [{"prompt": "What {color}?", "prediction": "red"}]
    assert asked == [("What {color}?", Sampling(max_tokens=5))]
