"""Both models in one actor: the same rows as in two, and images decoded once."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from accounting import assert_accounted_for, rows
from mpa_ray import demo
from mpa_ray.config import Config, identity
from mpa_ray.demo import render
from mpa_ray.demo.presets import preset
from mpa_ray.engines import RequestRejected, vllm_is_installed
from mpa_ray.images.guarded_decode import Decoder
from mpa_ray.images.sources import source_of
from mpa_ray.parity_identifier import identifying
from mpa_ray.pseudo_annotator import annotating
from mpa_ray.schema import JUDGED_ROW, Stage
from mpa_ray.stages.row_worker import Row, RowStage, RowWorker
from mpa_ray.stages.shared_actor import both_rows
from mpa_ray.steps.annotate_and_identify import annotate_and_identify
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

IMAGES = 96


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render.write_images(folder, kind="sign", count=IMAGES, seed=3)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def settings(images: Path, output: Path, *, in_one_actor: bool, **changes: Any) -> Config:
    model = {
        "engine": "pair_engine:load",
        "gpus_per_replica": 0,
        "cpus_per_replica": 0.5,
        "images_in_flight": 16,
    }
    tree: dict[str, Any] = {
        "images": str(images),
        "output": str(output),
        "images_per_part": 32,
        # Both are shown fewer pixels than an image has, and the S-VLM fewer than the L-VLM.
        "lvlm": {"model": str(demo.LVLM), **model, "max_pixels": 5000},
        "svlm": {"model": str(demo.SVLM), **model, "max_pixels": 2000},
        "identify": {"in_one_actor": in_one_actor},
        "max_quarantined": 1.0,
    }
    return Config.model_validate(tree | changes)


def judged(config: Config) -> tuple[dict[str, Any], dict[str, Row], Counter[tuple[str, str, str]]]:
    output = Folder.at(config.output)
    counts = annotate_and_identify(config, output, source_of(config, output), Lease())
    assert_accounted_for(output)
    found = {row["sample_id"]: row for row in rows(output.child("judgements"))}
    rejected = Counter(
        (row["image_id"], row["stage"], row["reason"]) for row in rows(output.child("quarantine"))
    )
    return counts, found, rejected


@pytest.mark.parametrize("questions", [1, 2])
def test_the_same_rows_come_of_one_actor_and_of_two(
    ray_session: None, images: Path, tmp_path: Path, questions: int
) -> None:
    annotate = {"questions_per_image": questions}
    (_, two, two_rejected), (_, one, one_rejected) = (
        judged(settings(images, tmp_path / str(together), in_one_actor=together, annotate=annotate))
        for together in (False, True)
    )
    assert two == one and len(one) > IMAGES / 2
    assert two_rejected == one_rejected
    stages = Counter((stage, reason) for _, stage, reason in one_rejected)
    assert {
        ("parity_identifier", "engine_rejected"),
        ("pseudo_annotator", "engine_rejected"),
        ("images", "not_an_image"),
    } <= stages.keys()


def test_an_image_is_decoded_once_for_both(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    whole = Decoder.image

    async def counting(self: Decoder, data: bytes, **bound: int) -> Any:
        decoded.append(data)
        return await whole(self, data, **bound)

    monkeypatch.setattr(Decoder, "image", counting)
    config = settings(images, tmp_path, in_one_actor=True)
    config = config.model_copy(
        update={"svlm": config.svlm.model_copy(update={"max_pixels": config.lvlm.max_pixels})}
    )
    work = partial(both_rows, annotate=annotating(config), identify=identifying(config))
    stage = RowStage(
        name="AnnotatorAndIdentifier",
        work=work,
        models=[config.lvlm, config.svlm],
        asks=[Stage.PSEUDO_ANNOTATOR, Stage.PARITY_IDENTIFIER],
        schema=JUDGED_ROW,
    )
    bounds = {"max_image_pixels": 10**7, "max_image_bytes": 10**7, "max_decode_seconds": 30.0}
    actor = RowWorker(stage=stage, decoder=bounds)
    part = source_of(config, Folder.at(tmp_path)).read(0)

    async def one_part() -> None:
        async for _ in actor(part):
            pass

    asyncio.run(one_part())
    assert len(decoded) == part.num_rows == len(set(decoded))


def test_a_rejected_answer_leaves_the_other_annotations_of_the_image() -> None:
    async def annotate(row: Row, ask: Any) -> list[Row]:
        return [
            row | {"sample_id": name, "reason": reason}
            for name, reason in (("a", None), ("b", None), ("c", "unparsable_annotation"))
        ]

    async def identify(row: Row, ask: Any) -> list[Row]:
        if row["sample_id"] == "a":
            raise RequestRejected("too long")
        return [row | {"verdict": "parity"}]

    found = asyncio.run(
        both_rows({"image_id": "i"}, None, None, annotate=annotate, identify=identify)
    )  # type: ignore[arg-type]
    assert [
        (row["sample_id"], row["reason"], row.get("stage"), row.get("verdict")) for row in found
    ] == [
        ("a", "engine_rejected", "parity_identifier", None),
        ("b", None, None, "parity"),
        ("c", "unparsable_annotation", None, None),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lvlm": {"model": "a/b"}}, "lvlm.gpus_per_replica"),
        (
            {
                "lvlm": {"model": "a/b", "gpus_per_replica": 0.9},
                "svlm": {"model": "c/d", "gpus_per_replica": 0.2},
            },
            "at most 1",
        ),
        ({"jury": ({"model": "c/d"},)}, "jury"),
        ({"lvlm": {"model": "gpt", "engine": "openai", "gpus_per_replica": 0}}, "openai"),
    ],
)
def test_what_cannot_share_an_actor_is_refused(
    images: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=r"identify\.in_one_actor") as refused:
        settings(images, tmp_path, in_one_actor=True, **changes)
    assert said in str(refused.value)


def test_a_run_may_resume_in_one_actor(images: Path, tmp_path: Path) -> None:
    one, two = (settings(images, tmp_path, in_one_actor=together) for together in (True, False))
    assert identity(one) == identity(two)


@pytest.mark.slow
def test_two_vllm_engines_in_one_actor(ray_session: None, images: Path, tmp_path: Path) -> None:
    if not vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    models = {name: preset("demo")[name] for name in ("lvlm", "svlm")}
    annotate = {"temperature": 0.0, "max_tokens": 48, "preamble": ""}
    counts, found, _ = judged(
        settings(images, tmp_path, in_one_actor=True, **models, annotate=annotate)
    )
    assert len(found) > 0.9 * IMAGES
    asked = sum(row["svlm_answer"] is not None for row in found.values())
    assert counts["svlm_asked"] == asked
