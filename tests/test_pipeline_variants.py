"""Real models, few images: rounds with a jury on yes-or-no questions, a comparison added to a
finished run, a fixed parity set.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from accounting import assert_accounted_for, rows
from mpa_ray import demo, pipeline
from mpa_ray.config import Config
from mpa_ray.config.parse import merge, validate
from mpa_ray.demo.presets import preset
from mpa_ray.images.sources import parity_set
from mpa_ray.report.rating_questions import fingerprint
from mpa_ray.report.status import status
from mpa_ray.schema import Verdict
from mpa_ray.stages import commits
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.studies.compare import compare, text
from mpa_ray.tools.studies.ratings import Rating
from mpa_ray.tools.studies.review import apply

pytestmark = pytest.mark.slow

IMAGES = 96


def settings(output: Path, **changes: Any) -> Config:
    """The demo on few images, asked by transformers and trained by one worker."""
    small = {
        "demo": {"images": IMAGES, "questions": 32},
        "output": str(output),
        "images_per_part": 16,
        "lvlm": {"engine": "transformers"},
        "svlm": {"engine": "transformers"},
        "ablations": (),
        "pl": {"workers": 1, "holdout": 0.2},
        "evaluate": {"lvlm": False},
    }
    return validate(merge(merge(preset("demo"), small), changes))


def test_rounds_with_a_jury(ray_session: None, tmp_path: Path) -> None:
    """The juror is the L-VLM again, under another name: it agrees wherever the L-VLM agrees with
    itself.
    """
    shutil.copytree(demo.LVLM, tmp_path / "juror")
    config = settings(tmp_path / "out", task="pathvqa", rounds=2)
    config = validate(
        merge(
            config.model_dump(),
            {"jury": [config.lvlm.model_dump() | {"model": str(tmp_path / "juror")}]},
        )
    )
    record = pipeline.run(config)
    output, exact = Folder.at(tmp_path / "out"), MATCHERS["exact"]
    assert 1 <= len(record["rounds"]) <= 2 and record["rounds"][0]["images"] == IMAGES // 2
    seen: list[str] = []
    for point in record["rounds"]:
        one = output.child(f"rounds/{point['round']}")
        assert_accounted_for(one)
        judged = rows(one.child("judgements"))
        seen += {row["image_id"] for row in judged}
        for row in judged:
            consistent = exact(row["lvlm_answer"], row["answer"])
            assert exact(row["answer"], "yes") or exact(row["answer"], "no")
            assert (row["jury_answers"] is not None) == consistent and (
                row["jury_prompt_tokens"] or 0
            ) > 16 * consistent
            agreed = consistent and exact(row["jury_answers"][0], row["answer"])
            assert (row["verdict"] == Verdict.LVLM_INCONSISTENT) == (not agreed)
        assert (
            sum(row["jury_prompt_tokens"] or 0 for row in judged)
            == one.read_json("run.json")["tokens"]["jury_prompt_tokens"]
        )
    assert len(seen) == len(set(seen)), "no image is judged in two rounds"
    for name in ("model/config.json", "model/README.md", "evaluation/metrics.json", "run.json"):
        assert output.exists(name)
    assert output.read_bytes("model/model.safetensors") == output.read_bytes(
        f"rounds/{record['kept_round']}/model/model.safetensors"
    )
    assert pipeline.run(config) == record


def test_a_round_that_finds_nothing_to_teach_is_in_the_books(
    ray_session: None, tmp_path: Path
) -> None:
    """The S-VLM of round 1 is right about everything. What round 2 did counts everywhere, and the
    tools know where it lies.
    """
    changes = {
        "lvlm": {"engine": "learning_engine:lvlm"},
        "svlm": {"engine": "learning_engine:svlm"},
    }
    config = settings(tmp_path / "out", rounds=3, pl={"workers": 1, "holdout": 0.4}, **changes)
    record = pipeline.run(config)
    output = Folder.at(tmp_path / "out")
    found = [
        commit for number in (1, 2) for commit in commits.commits(output.child(f"rounds/{number}"))
    ]
    counted = commits.add_up(found)
    assert {name: record[name] for name in counted} == counted
    assert counted["images"] == 2 * IMAGES // 3 and record["stopped"].startswith(
        "round 2 had nothing to train on (no parity sample"
    )
    assert [point["parity"] > 0 for point in record["rounds"]] == [True, False] and record[
        "kept_round"
    ] == 1
    assert (
        list(record["stages"]) == ["demo_inputs", "round_1", "round_2"]
        and min(record["stages"].values()) > 0
    )
    assert output.exists("rounds/2/report/index.html"), "the report of the whole has a link to it"
    lines = status(output).splitlines()
    assert (
        lines[0].endswith("(finished)")
        and lines[1] == f"images: {2 * IMAGES // 3} of {IMAGES} in 4 of 6 parts"
    )
    assert sum(line.startswith("round ") for line in lines) == 2
    same = text(compare([output, output]))
    assert same.count("1.000") == 4, "its parity set is that of all rounds"
    assert pipeline.run(config) == record


def test_a_comparison_is_added_to_a_finished_run(ray_session: None, tmp_path: Path) -> None:
    first = pipeline.run(settings(tmp_path))
    weights = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    second = pipeline.run(settings(tmp_path, ablations=["human_labels"]))
    assert (
        list(second["training"]) == ["mpa", "human_labels"]
        and second["training"]["mpa"] == first["training"]["mpa"]
    )
    assert second["training"]["human_labels"]["samples"] == IMAGES
    assert second["evaluation"][: len(first["evaluation"])] == first["evaluation"]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == weights, (
        "what is finished is not done again"
    )
    assert pipeline.run(settings(tmp_path)) == second, "the record keeps the comparisons it has"


def rating_of(row: dict[str, Any], **decided: str) -> Rating:
    mark = fingerprint(row["question"], row["answer"])
    said = {
        "run": "",
        "samples": 0,
        "seed": 0,
        "blind": False,
        "rater": "ann",
        "time": "2026-01-31T12:00:00.000Z",
    }
    return Rating(mpa_ray_rating=1, id=row["sample_id"], fingerprint=mark, **said, **decided)


def test_a_fixed_parity_set_is_trained_on(ray_session: None, tmp_path: Path) -> None:
    """A run, ratings of it, jobs/review.py's parity set, and a run that trains on that: no L-VLM,
    nothing annotated, every row used.
    """
    record = pipeline.run(settings(tmp_path / "run"))
    run, fixed = Folder.at(tmp_path / "run"), Folder.at(tmp_path / "fixed")
    parity = rows(run.child("parity"))
    given = [rating_of(row, decision="drop") for row in parity[:3]]
    given.append(
        rating_of(parity[3], decision="fix", question=parity[3]["question"], answer="forty two")
    )
    apply(run, given, fixed, thresholds={})
    assert (
        parity_set(Config(parity=fixed.child("parity").uri), Folder.at(tmp_path / "listed")).rows
        == len(parity) - 3
    )
    changes = {
        "parity": fixed.child("parity").uri,
        "demo": {"images": 0},
        "lvlm": {"model": ""},
        "ablations": [],
    }
    changes["evaluate"] = {"benchmark": str(tmp_path / "run/inputs/benchmark.parquet")}
    again = pipeline.run(settings(tmp_path / "again", **changes))
    assert again["training"]["mpa"]["samples"] == len(parity) - 3, "no row is held out"
    assert again["verdicts"][Verdict.PARITY] == again["annotations"] == len(parity) - 3
    assert [score["model"] for score in again["evaluation"]] == [
        score["model"] for score in record["evaluation"]
    ]
    output = Folder.at(tmp_path / "again")
    assert "on the parity set" in output.read_bytes("model/README.md").decode()
    assert output.exists("report/index.html")
    assert pipeline.run(settings(tmp_path / "again", **changes)) == again
