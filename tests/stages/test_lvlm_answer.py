import asyncio
from functools import partial

import pyarrow as pa
import pytest

from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.images.frozen import frozen
from mpa_ray.images.parts import read_annotations
from mpa_ray.parity_identifier import identify_row
from mpa_ray.schema import ANNOTATED_ROW, ANNOTATIONS
from mpa_ray.stages import lvlm_answer
from mpa_ray.stages.lvlm_answer import answer_own_row
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.rejudge import rejudge
from tests.run_folders import judged, picture, rows_of, write_run


@pytest.fixture
def annotations(tmp_path):
    """Three imported annotations; one has its answer already, and the image of one is gone."""
    uris = [f"{tmp_path}/images/{n}.png" for n in range(3)]
    rows = [
        judged(uri, question=f"Question {n}?", answer="red", lvlm="x", svlm="y", verdict="parity")
        for n, uri in enumerate(uris)
    ]
    run = write_run(tmp_path / "run", [rows])
    table = run.child("annotations").read_table("part-00000000.parquet").to_pylist()
    table[0]["lvlm_answer"] = table[2]["lvlm_answer"] = None
    run.write_table(
        "annotations/part-00000000.parquet", pa.Table.from_pylist(table, schema=ANNOTATIONS)
    )
    (tmp_path / "images" / "2.png").unlink()
    return run.child("annotations")


def part_of(annotations):
    listed = Folder.at(f"{annotations.path}-list")
    files = frozen(
        annotations,
        listed,
        name="annotations",
        schema=ANNOTATIONS,
        what="annotations",
        fix="import them",
    )
    return read_annotations(0, annotations=files, max_image_bytes=10**6)


async def says_red(prompt, sampling):
    assert prompt.endswith(("Question 0?", "lift?"))
    return Reply(
        text=" red\n", prompt_tokens=9, cached_tokens=4, output_tokens=1, finish_reason="stop"
    )


def answered(row):
    return asyncio.run(answer_own_row(row, says_red, answering=Sampling(max_tokens=8)))


def test_parts_are_read_with_their_images(annotations):
    table = part_of(annotations)
    assert table.schema.equals(ANNOTATED_ROW)
    rows = table.to_pylist()
    assert [row["image"] for row in rows[:2]] == [picture(0), picture(1)]
    assert [row["reason"] for row in rows] == [None, None, "missing"]
    assert all(row["part"] == 0 for row in rows)


def test_only_questions_without_an_answer_are_asked(annotations):
    first, second, _ = part_of(annotations).to_pylist()
    (row,) = answered(first)
    assert row["lvlm_answer"] == "red"
    assert [row[f"lvlm_answer_{kind}_tokens"] for kind in ("prompt", "cached", "output")] == [
        9,
        4,
        1,
    ]
    assert answered(second) == [second]


def test_an_answered_row_enters_the_parity_identifier(annotations):
    (row,) = answered(part_of(annotations).to_pylist()[0])

    async def svlm(prompt, sampling):
        return Reply(
            text="blue", prompt_tokens=9, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    identifying = partial(
        identify_row, matcher="exact", answering=Sampling(max_tokens=8), exhaustive=False
    )
    assert asyncio.run(identifying(row, svlm))[0]["verdict"] == "parity"


def test_what_a_rejudging_set_aside_enters_without_asking_the_lvlm(tmp_path):
    rows = [
        judged(
            f"{tmp_path}/images/a.png",
            question="lift?",
            answer="left",
            lvlm="lift",
            svlm=None,
            verdict="lvlm_inconsistent",
        )
    ]
    output = Folder.at(tmp_path / "new")
    rejudge(write_run(tmp_path / "run", [rows]), matcher="anls", output=output)
    unasked = output.child("unasked")
    (row,) = part_of(unasked).to_pylist()
    assert answered(row) == [row]
    assert MATCHERS["anls"](row["lvlm_answer"], row["answer"])
    assert rows_of(unasked)[0]["sample_id"] == row["sample_id"]


def test_the_settings_reach_the_lvlm(monkeypatch):
    given = {}
    monkeypatch.setattr(
        lvlm_answer,
        "map_rows_with_model",
        lambda dataset, stage, **_: given.update(stage.work.keywords | {"models": stage.models}),
    )
    config = Config(lvlm=ModelSection(model="a/large"), identify={"max_tokens": 7})
    lvlm_answer.answer_own(None, config)
    assert (given["answering"], given["models"]) == (Sampling(max_tokens=7), [config.lvlm])
