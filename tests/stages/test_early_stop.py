"""A stage that is ended gracefully, without Ray: nothing new is begun, what is done is kept, and
the next call does not ask again.
"""

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import Reply, RequestRejected, Sampling, loading
from mpa_ray.errors import RunError
from mpa_ray.schema import QUARANTINE, SOURCE_ROW, Stage
from mpa_ray.stages import early_stop
from mpa_ray.stages.partial_parts import PartialParts, delete_partial_parts
from mpa_ray.stages.row_worker import Ask, Row, RowStage, RowWorker
from mpa_ray.storage.folder import Folder


class Limited:
    """Answers so many requests, and then cannot continue."""

    def __init__(self, answers: int) -> None:
        self._left = answers
        self.asked: list[str] = []

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        await asyncio.sleep(0)
        if not self._left:
            raise RunError("the budget is spent")
        self._left -= 1
        self.asked.append(image_id)
        if image_id == "1":
            raise RequestRejected("too long")
        return Reply(
            text=f"seen {image_id}",
            prompt_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            finish_reason="stop",
        )

    def close(self) -> None:
        pass


KEEPING = {"asks": [Stage.PSEUDO_ANNOTATOR], "keeps_rows": True}
FORGETTING = {"asks": [Stage.EVALUATE]}


async def work(row: Row, ask: Ask) -> list[Row]:
    """Two rows of each, as where an image has two questions."""
    reply = await ask("?", Sampling(max_tokens=1))
    return [
        row | {"detail": reply.text, "part": row["part"] * reply.prompt_tokens},
        row | {"detail": f"{reply.text} again"},
    ]


def part(number: int, count: int) -> pa.Table:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="PNG")
    rows = [
        {"part": number, "image_id": f"{n}", "image_uri": f"/{n}.png", "image": buffer.getvalue()}
        for n in range(count)
    ]
    return pa.Table.from_pylist(
        [*rows, rows[0] | {"image_id": "bad", "image": None, "reason": "missing"}],
        schema=SOURCE_ROW,
    )


def serve(
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    engine: Limited,
    output: Folder | None,
    *tables: pa.Table,
) -> list[list[Row]]:
    """A call of the stage, one part after the other: what comes of each."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: engine)
    models = [ModelSection(images_in_flight=2)]
    stage = RowStage(name="Worker", work=work, models=models, schema=SOURCE_ROW, **kind)
    bounds = {"max_image_pixels": 10**6, "max_image_bytes": 10**6, "max_decode_seconds": 30.0}
    worker = RowWorker(stage=stage, decoder=bounds, output=output)

    async def one(table: pa.Table) -> list[Row]:
        return [
            row for result in [piece async for piece in worker(table)] for row in result.to_pylist()
        ]

    async def all_of_them() -> list[Any]:
        return [await one(table) for table in tables]

    return asyncio.run(all_of_them())


def test_whole_parts_come_out_and_what_is_done_of_others_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = Folder.at(tmp_path)
    first = Limited(7)
    whole, partial = serve(monkeypatch, KEEPING, first, output, part(0, 4), part(1, 6))
    assert [row["detail"] for row in whole if row["reason"] is None][:2] == [
        "seen 0",
        "seen 0 again",
    ]
    assert len(whole) == 2 * 3 + 1 + 1 and partial == []
    assert early_stop.stop_reason(output) == "the budget is spent"
    with pytest.raises(
        RunError,
        match=r"^the budget is spent\. 4 of 10 are done; the same command resumes the run$",
    ):
        early_stop.raise_if_stopped(output, "4 of 10 are done")
    read = early_stop.read_unless_stopped(
        5, read=lambda number: part(number, 1), output=output, schema=SOURCE_ROW
    )
    assert read.num_rows == 0 and read.schema == SOURCE_ROW

    early_stop.begin_call(output)
    early_stop.raise_if_stopped(output, "")
    assert (
        early_stop.read_unless_stopped(
            5, read=lambda number: part(number, 1), output=output, schema=SOURCE_ROW
        ).num_rows
        == 2
    )
    second = Limited(100)
    (rows,) = serve(monkeypatch, KEEPING, second, output, part(1, 6))
    assert second.asked == ["3", "4", "5"]
    assert [row["detail"] for row in rows] == [
        *("seen 0", "seen 0 again", "too long", "seen 2", "seen 2 again"),
        *(f"seen {n}{again}" for n in (3, 4, 5) for again in ("", " again")),
        None,
    ]
    assert all(row["image"] == part(1, 6).column("image")[0].as_py() for row in rows[:-1]), (
        "images come from the part"
    )
    delete_partial_parts(output)
    assert not output.exists("stop")


def test_what_is_kept_belongs_to_the_rows_it_came_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another image at the place of one that is done is asked about, whatever put it there."""
    output = Folder.at(tmp_path)
    serve(monkeypatch, KEEPING, Limited(2), output, part(0, 4))
    early_stop.begin_call(output)
    second = Limited(100)
    swapped = part(0, 4).take([2, 1, 0, 3])
    (rows,) = serve(monkeypatch, KEEPING, second, output, swapped)
    assert second.asked == ["2", "0", "3"]
    assert [row["detail"] for row in rows] == [
        *("seen 2", "seen 2 again", "too long", "seen 0", "seen 0 again", "seen 3", "seen 3 again")
    ]


def test_one_row_that_cannot_be_kept_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Garbled(Limited):
        async def ask(
            self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
        ) -> Reply:
            reply = await super().ask(image, prompt, image_id=image_id, sampling=sampling)
            return replace(reply, prompt_tokens=10**30) if image_id == "2" else reply

    output = Folder.at(tmp_path)
    assert serve(monkeypatch, KEEPING, Garbled(4), output, part(1, 6)) == [[]]
    early_stop.begin_call(output)
    second = Limited(100)
    (rows,) = serve(monkeypatch, KEEPING, second, output, part(1, 6))
    assert second.asked == ["4", "5"]
    assert [row["reason"] for row in rows if row["image_id"] == "2"] == ["unstorable_reply", None]


def test_after_the_end_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = Limited(0)
    assert serve(monkeypatch, KEEPING, engine, Folder.at(tmp_path), part(0, 30), part(1, 30)) == [
        [],
        [],
    ]
    assert engine.asked == [] and not (tmp_path / "stop").exists()


def test_a_stage_whose_parts_have_no_lasting_numbers_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert serve(monkeypatch, FORGETTING, Limited(3), Folder.at(tmp_path), part(0, 6)) == [[]]
    assert not (tmp_path / "stop").exists()
    assert early_stop.stop_reason(Folder.at(tmp_path)) is not None


def test_without_an_output_the_error_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="the budget is spent"):
        serve(monkeypatch, KEEPING, Limited(3), None, part(0, 6))


def test_a_folder_without_an_end_has_none(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    early_stop.begin_call(output)
    early_stop.raise_if_stopped(output, "")
    assert (
        early_stop.stop_reason(output) is None
        and PartialParts(output, SOURCE_ROW).load(3, []) == {}
    )


def test_what_is_kept_has_the_stages_types(tmp_path: Path) -> None:
    """Also where every value of a column is null, of which no type can be told."""
    output = Folder.at(tmp_path)
    rows = [{name: None for name in QUARANTINE.names} | {"image_id": "i", "image_uri": "/i.png"}]
    PartialParts(output, QUARANTINE).save(3, {0: rows})
    (name,) = output.child("stop").names()
    (found,) = output.child("stop").tables()
    assert name == "part-00000003.parquet"
    assert found.select(QUARANTINE.names).schema.types == QUARANTINE.types
