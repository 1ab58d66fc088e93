"""Parts without Ray: read, committed, done again, added up. Every image ends in one row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mpa_ray.errors import RunError
from mpa_ray.images import manifest
from mpa_ray.images.parts import (
    READING,
    dataset_of,
    part_name,
    part_number,
    read_images,
    with_images,
)
from mpa_ray.schema import (
    ANNOTATIONS,
    JUDGED_ROW,
    JUDGEMENTS,
    PARITY,
    QUARANTINE,
    SOURCE_ROW,
    Reason,
    Stage,
    Verdict,
)
from mpa_ray.stages.commits import TOKEN_COLUMNS, commit_part, committed, totals
from mpa_ray.storage.folder import Folder


def judged(
    image_id: str, verdict: Verdict, *, part: int = 7, number: int = 0, **changes: Any
) -> dict[str, Any]:
    row = {
        "part": part,
        "image_id": image_id,
        "image_uri": f"/{image_id}.png",
        "image": image_id.encode(),
    }
    row |= {
        "sample_id": f"{image_id}-{number}",
        "question": "What?",
        "answer": "red",
        "lvlm_answer": "red",
    }
    row |= {"annotation_text": "Question: What?, Answer: red"}
    return (
        row
        | {"svlm_answer": "blue", "verdict": str(verdict)}
        | {name: 10 for name in TOKEN_COLUMNS}
        | changes
    )


def rejected(image_id: str, stage: Stage, reason: Reason, *, part: int = 7) -> dict[str, Any]:
    row = {"part": part, "image_id": image_id, "image_uri": f"/{image_id}.png", "image": None}
    return row | {"stage": str(stage), "reason": str(reason), "detail": "why"}


def commit(output: Folder, *rows: dict[str, Any], call: float = 100.0) -> dict[str, Any]:
    [row] = commit_part(
        pa.Table.from_pylist(list(rows), schema=JUDGED_ROW), output=output, call=call
    ).to_pylist()
    return json.loads(row["commit"])


ROWS = [
    judged("a", Verdict.PARITY),
    judged("b", Verdict.SVLM_CORRECT),
    judged("b", Verdict.PARITY, number=1),
    judged("c", Verdict.LVLM_INCONSISTENT, svlm_answer=None, svlm_answer_prompt_tokens=None),
    rejected("d", Stage.IMAGES, Reason.EMPTY),
    rejected("e", Stage.PSEUDO_ANNOTATOR, Reason.UNPARSABLE_ANNOTATION),
]


def test_part_names_come_back() -> None:
    for number in (0, 12, 99_999_999):
        assert part_number(part_name(number)) == part_number(part_name(number, ".json")) == number
    assert sorted([part_name(10), part_name(9)]) == [part_name(9), part_name(10)]


def test_a_part_is_split_over_the_folders(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    counts = commit(output, *ROWS)
    assert (counts["part"], counts["images"], sum(counts["quarantined"].values())) == (7, 5, 2)
    assert counts == output.read_json("commits/part-00000007.json")
    found = {
        name: output.read_table(f"{name}/part-00000007.parquet")
        for name in ("annotations", "judgements", "parity", "quarantine")
    }
    assert {name: table.num_rows for name, table in found.items()} == {
        "annotations": 4,
        "judgements": 4,
        "parity": 2,
        "quarantine": 2,
    }
    for name, schema in (
        ("annotations", ANNOTATIONS),
        ("judgements", JUDGEMENTS),
        ("parity", PARITY),
        ("quarantine", QUARANTINE),
    ):
        assert found[name].schema.equals(schema), name
    ids = [
        set(found[name].column("image_id").to_pylist()) for name in ("annotations", "quarantine")
    ]
    assert ids[0] | ids[1] == set("abcde") and not ids[0] & ids[1]
    assert found["parity"].column("image").to_pylist() == [
        {"bytes": b"a", "path": "/a.png"},
        {"bytes": b"b", "path": "/b.png"},
    ]
    assert found["parity"].column("sample_id").to_pylist() == ["a-0", "b-1"]
    assert list(found["quarantine"].to_pylist()[0].values()) == [
        "d",
        "/d.png",
        None,
        "images",
        "empty",
        "why",
    ]


def test_parity_says_that_it_holds_images(tmp_path: Path) -> None:
    commit(Folder.at(tmp_path), *ROWS)
    metadata = Folder.at(tmp_path).read_table("parity/part-00000007.parquet").schema.metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    assert set(json.loads(metadata[b"huggingface"])["info"]["features"]) == set(PARITY.names)


def test_the_commit_says_what_is_in_the_part(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    commit(output, *ROWS)
    record = output.read_json("commits/part-00000007.json")
    assert record["committed"] > record.pop("call") == 100.0
    assert record["annotations"] == 4 and record["images"] == 5
    assert record["quarantined"] == {"images/empty": 1, "pseudo_annotator/unparsable_annotation": 1}
    assert record["verdicts"] == {"parity": 2, "svlm_correct": 1, "lvlm_inconsistent": 1}
    assert (
        record["tokens"]["annotation_prompt_tokens"] == 40
        and record["tokens"]["svlm_answer_prompt_tokens"] == 30
    )
    assert record["svlm_asked"] == totals(output)["svlm_asked"] == 3
    assert committed(output) == {7}


def test_a_part_done_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    commit(output, *ROWS)
    # As when it was ended before its commit was written.
    output.delete("commits/part-00000007.json")
    commit(output, judged("a", Verdict.SVLM_CORRECT), call=200.0)
    assert output.child("annotations").names() == ["part-00000007.parquet"]
    assert output.child("parity").names() == [] and output.child("quarantine").names() == []
    assert totals(output)["images"] == 1 and totals(output)["verdicts"]["parity"] == 0


def test_a_part_that_another_actor_has_committed_stays_as_it_is(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    first = commit(output, *ROWS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert commit(output, judged("a", Verdict.SVLM_CORRECT), call=200.0) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_files_without_a_commit_are_no_part(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    commit(output, *ROWS)
    output.delete("commits/part-00000007.json")
    assert committed(output) == set()
    assert totals(output)["images"] == 0


def test_a_part_that_was_not_finished_is_not_committed(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    nothing = commit_part(JUDGED_ROW.empty_table(), output=output, call=1.0)
    assert nothing.num_rows == 0 and nothing.column_names == ["commit"]
    assert not output.child("commits").exists()


def test_a_part_of_nothing_but_rejected_rows(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    counts = commit(output, ROWS[4], ROWS[5])
    assert (counts["images"], sum(counts["quarantined"].values()), counts["annotations"]) == (
        2,
        2,
        0,
    )
    assert totals(output)["annotations"] == 0 and totals(output)["verdicts"] == {
        "parity": 0,
        "svlm_correct": 0,
        "lvlm_inconsistent": 0,
    }


def test_totals_are_sums_over_parts_and_calls(tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    commit(output, *ROWS, call=100.0)
    commit(
        output,
        judged("f", Verdict.PARITY, part=8),
        rejected("g", Stage.IMAGES, Reason.EMPTY, part=8),
        call=300.0,
    )
    found = totals(output)
    assert (found["images"], found["annotations"]) == (7, 5)
    assert found["quarantined"] == {"images/empty": 2, "pseudo_annotator/unparsable_annotation": 1}
    assert found["verdicts"] == Counter(parity=3, svlm_correct=1, lvlm_inconsistent=1)
    assert found["tokens"]["lvlm_answer_output_tokens"] == 50


def test_reading_a_part_quarantines_what_cannot_be_had(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode() * (50 if name == "c.png" else 1))
    listed = manifest.build(
        str(tmp_path / "images"),
        Folder.at(tmp_path / "manifest"),
        images_per_part=8,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    (tmp_path / "images/b.png").unlink()
    table = read_images(0, manifest=listed, max_image_bytes=100)
    assert table.schema == SOURCE_ROW
    rows = table.to_pylist()
    assert [row["image"] for row in rows] == [b"a.png", None, None]
    assert [(row["stage"], row["reason"]) for row in rows] == [
        (None, None),
        ("images", "missing"),
        ("images", "too_many_bytes"),
    ]
    assert all((row["detail"] is None) == (row["reason"] is None) for row in rows)


def test_an_image_that_went_away_later_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    rows = pa.table({"image_uri": [f"{tmp_path}/a.png"]})
    assert with_images(rows, max_image_bytes=100).column("image").to_pylist() == [b"a"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        RunError,
        match=r"a\.png: could be read when it was annotated and cannot now .*; put it back and run"
        r" again",
    ):
        with_images(rows, max_image_bytes=100)


class Actor:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


def test_engine_actors_do_not_read(ray_session: None) -> None:
    """Ray Data puts operators of like needs into one process."""
    from ray.data import ActorPoolStrategy

    dataset = dataset_of([1, 2], lambda number: pa.table({"part": [number]}))
    needs = {name: need for name, need in READING.items() if name == "num_cpus"}
    mapped = dataset.map_batches(
        Actor, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=1), **needs
    ).materialize()
    assert sorted(mapped.to_pandas()["part"]) == [1, 2]
    assert "ReadParts" in mapped.stats() and "ReadParts->" not in mapped.stats()
