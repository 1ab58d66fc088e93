"""The Pseudo Annotator through an API, on Ray Data: every image accounted for, a budget that is
kept, ends gracefully, and resuming.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from scripted_api import OUTPUT_TOKENS, PROMPT_TOKENS, ScriptedApi, annotator, says, status

from accounting import assert_accounted_for, column
from mpa_ray import cli, pipeline
from mpa_ray.config import Config
from mpa_ray.engines import ledger
from mpa_ray.errors import RunError
from mpa_ray.schema import JUDGED_ROW
from mpa_ray.stages import commits
from mpa_ray.steps import annotate_and_identify, train_arm
from mpa_ray.storage.folder import Folder

# Before Ray starts: its workers have the environment of then.
KEY_NAME = "MPA_TEST_API_RUN_KEY"
KEY = "sk-planted-in-the-environment-42"
os.environ[KEY_NAME] = KEY

IMAGES, IN_PART, IN_FLIGHT = 60, 8, 4
EACH = (PROMPT_TOKENS * 2.5 + OUTPUT_TOKENS * 10) / 1e6


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images to annotate, and an S-VLM that costs nothing to ask: it is always wrong."""
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (28, 28), (number, 99, 200)).save(
            tmp_path / "images" / f"{number:03d}.png"
        )
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    monkeypatch.setattr(annotate_and_identify, "identify", judged_wrong)
    monkeypatch.setattr(train_arm, "refuse_nothing", _train)
    return tmp_path


def judged_wrong(dataset: Any, config: Config, output: Folder) -> Any:
    return dataset.map_batches(_as_judged, batch_size=None, batch_format="pyarrow")


def _as_judged(rows: pa.Table) -> pa.Table:
    said = {
        "svlm_answer": "nothing",
        "svlm_answer_prompt_tokens": 1,
        "svlm_answer_output_tokens": 1,
        "verdict": "parity",
    }
    return pa.Table.from_pylist(
        [row | (said if row["reason"] is None else {}) for row in rows.to_pylist()],
        schema=JUDGED_ROW,
    )


def arguments(root: Path, server: ScriptedApi, **changes: Any) -> list[str]:
    given = {
        "images": root / "images",
        "output": root / "out",
        "images_per_part": IN_PART,
        "svlm.model": "Qwen/Qwen2-VL-2B-Instruct",
        "svlm.gpus_per_replica": 0,
        "lvlm.model": "guide-1",
        "lvlm.engine": "openai",
        "lvlm.base_url": server.url,
        "lvlm.api_key_env": KEY_NAME,
        "lvlm.images_in_flight": IN_FLIGHT,
        "lvlm.usd_per_million_input_tokens": 2.5,
        "lvlm.usd_per_million_output_tokens": 10,
    } | {f"lvlm.{name}": value for name, value in changes.items()}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def start(root: Path, server: ScriptedApi, **changes: Any) -> None:
    pipeline.run(cli.parse(Config(), arguments(root, server, **changes)))


def annotate(root: Path, server: ScriptedApi, **changes: Any) -> dict[str, Any]:
    """The run up to its training, which is not this test's."""
    with pytest.raises(_Annotated):
        start(root, server, **changes)
    return commits.totals(Folder.at(root / "out"))


class _Annotated(Exception):
    """The run came to its training."""


def _train(*args: Any, **kwargs: Any) -> None:
    raise _Annotated


def test_every_image_is_annotated_by_one_actor_and_paid_once(root: Path, ray_session: None) -> None:
    output = Folder.at(root / "out")
    with ScriptedApi() as server:
        data = annotate(root, server)
        paid = ledger.totals(output, cli.parse(Config(), arguments(root, server)).lvlm)[
            "annotate_and_identify"
        ]
    assert_accounted_for(output)
    assert (data["annotations"], data["quarantined"]) == (IMAGES, {"images/not_an_image": 1})
    assert len(server.requests) == 2 * IMAGES
    assert server.most_at_once <= IN_FLIGHT
    assert {request["headers"]["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert (
        data["tokens"]["annotation_prompt_tokens"]
        == data["tokens"]["lvlm_answer_prompt_tokens"]
        == IMAGES * PROMPT_TOKENS
    )
    assert paid["requests"] == 2 * IMAGES
    assert paid["cost_usd"] == paid["at_most_usd"] == pytest.approx(2 * IMAGES * EACH)
    assert len(output.child("ledger").names(".json")) == 1


def test_a_spent_budget_ends_the_job_with_3_and_the_same_command_resumes(
    root: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output, bound = Folder.at(root / "out"), 70 * EACH
    with ScriptedApi() as server:
        with pytest.raises(SystemExit) as ended:
            cli.main(Config(), arguments(root, server, max_cost_usd=bound))
        assert ended.value.code == 3
        done = len(set(column(output.child("annotations"), "image_id")))
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (
            line.startswith("error: the budget is spent: $0.02")
            and f"max_cost_usd={bound} for guide-1" in line
        )
        assert (
            "Raise it (--lvlm.max_cost_usd for the L-VLM) to continue" in line
            and f" of {IMAGES + 1} images are done and kept" in line
        )
        model = cli.parse(Config(), arguments(root, server)).lvlm
        before = ledger.totals(output, model)["annotate_and_identify"]
        assert (
            before["cost_usd"]
            == before["at_most_usd"]
            == pytest.approx(len(server.requests) * EACH)
        )
        assert 60 * EACH < before["cost_usd"] <= bound
        assert 0 < done < IMAGES and done % IN_PART in (0, IN_PART - 1), (
            "whole parts, one of them with the bad image"
        )
        with pytest.raises(RunError, match="the budget is spent"):
            start(root, server, max_cost_usd=bound)
        assert len(server.requests) * EACH <= bound
        data = annotate(root, server, max_cost_usd=4 * bound)
    assert_accounted_for(output)
    assert data["annotations"] == IMAGES
    assert len(server.requests) <= 2 * IMAGES + 2 * IN_FLIGHT, (
        "no image is paid for twice, but for those in flight at an end"
    )
    assert not output.exists("stop")


@pytest.mark.parametrize("fault", ["quota", "key"])
def test_an_end_by_the_server_loses_nothing_that_was_answered(
    fault: str, root: Path, ray_session: None
) -> None:
    step = {
        "quota": status(429, message="You exceeded", code="insufficient_quota"),
        "key": status(401, message="expired"),
    }[fault]
    output = Folder.at(root / "out")
    with ScriptedApi(*[annotator] * 50, otherwise=step) as server:
        with pytest.raises(RunError) as ended:
            start(root, server)
        assert ("quota is exhausted" in str(ended.value)) == (fault == "quota")
        assert "images are done and kept; the same command resumes the run" in str(ended.value)
        answered = 50
        asked = len(server.requests)
        assert asked <= answered + IN_FLIGHT, "nobody asks on"
    with ScriptedApi() as server:
        data = annotate(root, server)
        assert answered + len(server.requests) <= 2 * IMAGES + IN_FLIGHT
    assert_accounted_for(output)
    assert data["annotations"] == IMAGES


def test_rejected_images_are_quarantined_and_their_cost_is_in_the_ledger(
    root: Path, ray_session: None
) -> None:
    output = Folder.at(root / "out")

    def choosy(handler: Any, request: dict[str, Any]) -> None:
        number = len(server.requests)
        step = {
            10: says(None, refusal="no"),
            20: status(400, message="bad image"),
            30: says("I see a sign."),
        }.get(number, annotator)
        step(handler, request)

    with ScriptedApi(otherwise=choosy) as server:
        data = annotate(root, server)
        paid = ledger.totals(output, cli.parse(Config(), arguments(root, server)).lvlm)[
            "annotate_and_identify"
        ]
    assert_accounted_for(output)
    assert data["quarantined"]["pseudo_annotator/engine_rejected"] == 2
    in_rows = sum(data["tokens"][f"{name}_output_tokens"] for name in ("annotation", "lvlm_answer"))
    assert paid["requests"] == len(server.requests) - 1
    assert paid["output_tokens"] == (len(server.requests) - 1) * OUTPUT_TOKENS > in_rows


def test_the_key_is_nowhere_in_the_output_or_in_rays_logs(root: Path, ray_session: None) -> None:
    import ray

    told = f"Incorrect API key provided: {KEY}"
    server = ScriptedApi(
        says(f"Question: What?, Answer: {KEY}"),
        status(400, message=told),
        otherwise=status(401, message=told),
    )
    with server, pytest.raises(RunError, match=r"\*\*\*") as ended:
        start(root, server)
    assert KEY not in str(ended.value)
    logs = Path(ray._private.worker._global_node.get_session_dir_path())
    for folder in (root / "out", logs / "logs"):
        holders = [
            path
            for path in folder.rglob("*")
            if path.is_file() and KEY.encode() in path.read_bytes()
        ]
        assert holders == []


def test_an_error_from_a_worker_comes_out_as_it_was_raised(ray_session: None) -> None:
    import ray.data

    from mpa_ray.placement.ray_session import ray_session as session

    with pytest.raises(RunError) as caught, session():
        ray.data.range(1).map(_cannot).take_all()
    assert type(caught.value) is RunError and str(caught.value) == "the storage is full; make room"


def _cannot(row: dict[str, Any]) -> dict[str, Any]:
    raise RunError("the storage is full; make room")
