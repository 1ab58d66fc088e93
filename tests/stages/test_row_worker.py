"""The engine actor without Ray and with an engine that does as it is told: what it does when an
engine rejects, stops or dies.
"""

import asyncio
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mpa_ray.config import ModelSection
from mpa_ray.engines import EngineDied, Reply, RequestRejected, Sampling, loading
from mpa_ray.schema import SAMPLE_ID, SOURCE_ROW, Stage
from mpa_ray.stages import early_stop, row_worker
from mpa_ray.stages.call_notes import CallNotes, note
from mpa_ray.stages.row_worker import Ask, Row, RowStage, RowWork, RowWorker, seed_for
from mpa_ray.storage.folder import Folder


class Scripted:
    """An engine whose reply to each image a function decides; raising EngineDied breaks it for
    everyone.
    """

    loaded = 0
    in_flight = most_in_flight = 0

    def __init__(self, reply: Callable[[str], str]) -> None:
        Scripted.loaded += 1
        self._reply = reply
        self._dead = False

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        Scripted.in_flight += 1
        Scripted.most_in_flight = max(Scripted.most_in_flight, Scripted.in_flight)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if self._dead:
                raise EngineDied("dead already")
            try:
                text = self._reply(image_id)
            except EngineDied:
                self._dead = True
                raise
        finally:
            Scripted.in_flight -= 1
        return Reply(
            text=text, prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def close(self) -> None:
        pass


DECODER = {"max_image_pixels": 10**6, "max_image_bytes": 10**6, "max_decode_seconds": 30.0}


def actor(
    work: RowWork,
    *models: ModelSection,
    schema: pa.Schema = SOURCE_ROW,
    output: Folder | None = None,
    dataset: str = "one",
) -> RowWorker:
    asks = [Stage.EVALUATE] * len(models)
    stage = RowStage(name="Worker", work=work, models=models, asks=asks, schema=schema)
    return RowWorker(stage=stage, decoder=DECODER, output=output, dataset=dataset)


async def work(row: Row, ask: Ask) -> list[Row]:
    reply = await ask("?", Sampling(max_tokens=1))
    return [row | {"detail": reply.text}]


def part(count: int) -> pa.Table:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="PNG")
    rows = [
        {"part": 3, "image_id": f"{n}", "image_uri": f"/{n}.png", "image": buffer.getvalue()}
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SOURCE_ROW)


def run(
    monkeypatch: pytest.MonkeyPatch,
    reply: Callable[[str], str],
    *tables: pa.Table,
    in_flight: int = 8,
    output: Folder | None = None,
    dataset: str = "one",
) -> list[dict[str, Any]]:
    Scripted.loaded = Scripted.most_in_flight = Scripted.in_flight = 0
    monkeypatch.setattr(loading, "load", lambda model, **_: Scripted(reply))
    model = ModelSection(model="m", images_in_flight=in_flight)
    worker = actor(work, model, output=output, dataset=dataset)

    async def one(table: pa.Table) -> list[dict[str, Any]]:
        return [row async for found in worker(table) for row in found.to_pylist()]

    async def all_of_them() -> list[dict[str, Any]]:
        return [row for rows in await asyncio.gather(*map(one, tables)) for row in rows]

    return asyncio.run(all_of_them())


def test_rows_come_back_in_order_and_bounded_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(monkeypatch, lambda image: f"reply {image}", part(40), part(40), in_flight=5)
    assert [row["detail"] for row in rows] == [f"reply {n}" for n in range(40)] * 2
    assert Scripted.most_in_flight == 5, "the bound is the actor's, over all of its parts"


def test_a_rejected_request_quarantines_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(image: str) -> str:
        if image == "2":
            raise RequestRejected("too long")
        return "fine"

    rows = run(monkeypatch, reply, part(4))
    assert [row["reason"] for row in rows] == [None, None, "engine_rejected", None]
    assert rows[2]["detail"] == "too long"


@pytest.mark.parametrize("column", ["detail", "part"])
@pytest.mark.parametrize(
    "value", ["a \ud83d", 10**30, True], ids=["surrogate", "a number beyond any", "a truth value"]
)
def test_a_reply_that_cannot_be_stored_quarantines_its_row_alone(
    monkeypatch: pytest.MonkeyPatch, column: str, value: Any
) -> None:
    """Two rows come of each; one of those of image 2 is at fault."""

    async def two(row: Row, ask: Ask) -> list[Row]:
        odd = {column: value} if row["image_id"] == "2" else {}
        return [
            row | {"detail": "fine", "sample_id": f"{row['image_id']}-0"},
            row | odd | {"sample_id": f"{row['image_id']}-1"},
        ]

    monkeypatch.setattr(loading, "load", lambda model, **_: Scripted(str))
    schema = pa.schema([*SOURCE_ROW, SAMPLE_ID])
    worker = actor(two, ModelSection(model="m"), schema=schema)

    async def found() -> list[Row]:
        return [row async for table in worker(part(4)) for row in table.to_pylist()]

    rows = asyncio.run(found())
    assert [row["sample_id"] for row in rows] == [
        f"{image}-{number}" for image in range(4) for number in (0, 1)
    ]
    assert [row["reason"] for row in rows] == [None] * 5 + ["unstorable_reply"] + [None] * 2
    assert (rows[5]["stage"], rows[5]["image_uri"], rows[5]["part"]) == ("evaluate", "/2.png", 3)
    assert rows[5]["detail"].startswith("the engine's reply cannot be stored: ")


def test_an_engine_that_dies_once_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = iter([True])

    def reply(image: str) -> str:
        if image == "5" and next(deaths, False):
            raise EngineDied("killed from outside")
        return "fine"

    rows = run(monkeypatch, reply, part(20))
    assert [row["reason"] for row in rows] == [None] * 20
    assert Scripted.loaded == 2


def test_a_row_that_kills_the_engine_twice_is_quarantined_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reply(image: str) -> str:
        if image in ("3", "17"):
            raise EngineDied(f"killed by {image}")
        return "fine"

    rows = run(monkeypatch, reply, part(30), part(10))
    assert {row["image_id"] for row in rows if row["reason"] == "engine_crash"} == {"3", "17"}
    assert len(rows) == 40
    assert all(row["detail"] == "fine" for row in rows if row["reason"] is None)


class ProcessEnded(BaseException):
    """Stands for SIGKILL: nothing in the actor catches it, and nothing of the actor is left."""


def run_until_done(
    monkeypatch: pytest.MonkeyPatch, reply: Callable[[str], str], output: Folder
) -> tuple[list[dict[str, Any]], int]:
    """What Ray does with an actor that ends: another one gets the part. Gives back the rows, and
    the actors that were lost.
    """
    for lost in range(20):
        try:
            return run(monkeypatch, reply, part(12), output=output), lost
        except ProcessEnded:
            continue
    raise AssertionError("no end")


def test_a_row_that_ends_the_whole_actor_is_found_and_quarantined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: Counter[str] = Counter()

    def reply(image: str) -> str:
        asked[image] += 1
        if image in ("3", "7"):
            raise ProcessEnded
        return "fine"

    rows, lost = run_until_done(monkeypatch, reply, Folder.at(tmp_path))
    assert [row["image_id"] for row in rows if row["reason"] == "engine_crash"] == ["3", "7"]
    assert all(row["detail"] == "fine" for row in rows if row["reason"] is None)
    # Twice with all rows at once, then twice for each culprit.
    assert lost == 6
    again = note(Folder.at(tmp_path), CallNotes.begin, "one", 3)
    assert again.actors_lost == 0, "what is done leaves no note"
    assert list(tmp_path.iterdir()) == []


def test_actors_that_were_taken_away_do_not_accuse_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaths = iter([True, True])

    def reply(image: str) -> str:
        if image == "5" and next(deaths, False):
            raise ProcessEnded
        return "fine"

    rows, lost = run_until_done(monkeypatch, reply, Folder.at(tmp_path))
    assert (len(rows), lost) == (12, 2)
    assert not any(row["reason"] for row in rows)


def test_a_row_that_ends_an_actor_once_when_it_is_alone_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Each before the one before it, so that one process meets no two of them.
    deaths = iter(["9", "5", "1"])
    due = [next(deaths)]

    def reply(image: str) -> str:
        if due[0] == image:
            due[0] = next(deaths, "")
            raise ProcessEnded
        return "fine"

    rows, lost = run_until_done(monkeypatch, reply, Folder.at(tmp_path))
    assert (len(rows), lost) == (12, 3)
    assert not any(row["reason"] for row in rows)


def test_a_row_that_was_answered_is_not_accused_when_another_part_ends_the_actor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = Folder.at(tmp_path)
    for _ in range(2):
        note(output, CallNotes.begin, "one", 3)
    begun, ended = asyncio.Event(), asyncio.Event()

    def reply(image: str) -> str:
        begun.set()
        if image == "other":
            ended.set()
            raise ProcessEnded
        return "fine"

    def note_while_it_lives(*args: Any) -> Any:
        """A process that has ended notes nothing, where tasks of this one still run a while."""
        if ended.is_set():
            raise ProcessEnded
        return note(*args)

    monkeypatch.setattr(loading, "load", lambda model, **_: Scripted(reply))
    monkeypatch.setattr(row_worker, "note", note_while_it_lives)
    worker = actor(work, ModelSection(model="m", images_in_flight=2), output=output)

    async def ask_about(rows: list[Row]) -> None:
        async for _ in worker(pa.Table.from_pylist(rows, schema=SOURCE_ROW)):
            pass

    async def second_part_comes_later() -> None:
        await begun.wait()
        await ask_about([row | {"part": 4, "image_id": "other"} for row in part(1).to_pylist()])

    async def both() -> None:
        await asyncio.gather(ask_about(part(500).to_pylist()), second_part_comes_later())

    with pytest.raises(ProcessEnded):
        asyncio.run(both())
    after = note(output, CallNotes.begin, "one", 3)
    assert (after.actors_lost, after.crashed_rows) == (3, ())


def test_notes_of_an_earlier_call_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = Folder.at(tmp_path)
    for _ in range(4):
        note(output, CallNotes.begin, "one", 3)
    early_stop.begin_call(output)
    run(monkeypatch, lambda image: "fine", part(12), output=output)
    assert Scripted.most_in_flight > 1, "asked all at once, as a part that nobody has begun"


def test_an_unexpected_error_ends_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(image: str) -> str:
        raise KeyError("a bug of ours is not the row's fault")

    with pytest.raises(KeyError):
        run(monkeypatch, reply, part(2))


def test_a_quarantined_row_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    table = part(2)
    rows = table.to_pylist()
    rows[0] |= {"stage": "images", "reason": "missing", "detail": "gone"}

    def reply(image: str) -> str:
        assert image != "0"
        return "fine"

    found = run(monkeypatch, reply, pa.Table.from_pylist(rows, schema=SOURCE_ROW))
    assert [row["reason"] for row in found] == ["missing", None]


def test_an_undecodable_image_is_quarantined_where_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = part(2).to_pylist()
    rows[1]["image"] = b"no image"
    found = run(monkeypatch, lambda image: "fine", pa.Table.from_pylist(rows, schema=SOURCE_ROW))
    assert [(row["stage"], row["reason"]) for row in found] == [
        (None, None),
        ("images", "not_an_image"),
    ]


def test_a_seed_depends_on_its_parts_alone() -> None:
    # A value, because another process must draw alike.
    assert seed_for(0, "a", 1) == 1107633052
    assert (
        len(
            {
                seed_for(run, image, number)
                for run in range(2)
                for image in "ab"
                for number in range(2)
            }
        )
        == 8
    )
    assert all(0 <= seed_for(n) < 2**31 for n in range(100))
