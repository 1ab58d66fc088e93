"""Every S-VLM family end to end at tiny sizes: asked, trained by DeepSpeed, saved, loaded again and served; and what is refused, with its reason."""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import parity_rows
from families import FAMILIES, write
from mpa_ray import engines, families, models, prompts
from mpa_ray.config import LevelSection, ModelSection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import Folder
from mpa_ray.training_data import Sample

ROWS = parity_rows(8).to_pylist()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS_BY_HEART, RATE = 24, 3e-3
# These go through vLLM in `make test`, the others in `make test-all`.
QUICK = {"qwen2-vl", "smolvlm"}


def section(name: str, folder: Path, **changes: Any) -> ModelSection:
    family = FAMILIES[name]
    settings = {"model": str(folder), "dtype": "float32", "gpus_per_replica": 0, "max_model_len": 512, "images_in_flight": 8}
    return ModelSection(**(settings | {"processor_options": family.processor_options} | family.settings | changes))


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def samples() -> list[Sample]:
    """ROWS to train on; the second image is of another shape, which some families cut into another number of tiles."""
    made = [Sample(image=picture(row), question=row["question"], answer=row["answer"]) for row in ROWS]
    return [made[0], replace(made[1], image=made[1].image.resize((64, 120))), *made[2:]]


class Workshop:
    """A process that trains one family after the other: torch and DeepSpeed are imported once."""

    def __init__(self) -> None:
        from test_training_state import process_group_of_one

        process_group_of_one()

    def train(self, name: str, folder: Path) -> dict[str, Any]:
        """The family's model in folder/published, and trained for two steps at ZeRO stages 2 and 3 in folder/stage-2 and -3."""
        svlm = section(name, write(FAMILIES[name], folder / "published"))
        return {"collated": self._collated(svlm)} | {stage: self._train(svlm, stage, folder / f"stage-{stage}") for stage in (2, 3)}

    def _collated(self, svlm: ModelSection) -> dict[str, Any]:
        from mpa_ray.engines.chat import image_arguments, with_reply
        from mpa_ray.train_loop import load_svlm

        model, processor, _ = load_svlm(svlm, "float32")
        batch = self._batches(svlm, model, processor)[0]
        ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        whole = [with_reply(processor, prompts.ANSWERING.format(question=row["question"]), row["answer"]) for row in ROWS[:2]]
        pictures = [[sample.image] for sample in samples()[:2]]
        as_written = [
            processor(text=[text], images=[shown], **image_arguments(svlm))["input_ids"][0] for text, shown in zip(whole, pictures, strict=True)
        ]
        return {
            "learned": [processor.tokenizer.decode(labels[labels >= 0]).strip() for labels in batch["labels"]],
            "end": processor.tokenizer.convert_ids_to_tokens(batch["labels"][0][batch["labels"][0] >= 0].tolist())[-1],
            "image_tokens": ids[0].count(processor.image_token_id),
            "as_written": [list(written[: len(row) - 1]) == row[:-1] for written, row in zip(as_written, ids, strict=True)],
        }

    def _batches(self, svlm: ModelSection, model: Any, processor: Any) -> list[dict[str, Any]]:
        from mpa_ray.collator import Collator
        from mpa_ray.engines.chat import end_tokens, image_arguments

        collator = Collator(processor, end_tokens=end_tokens(model), image_arguments=image_arguments(svlm))
        drawn = samples()
        return [collator(drawn[index : index + 2]) for index in range(0, len(drawn), 2)]

    def _train(self, svlm: ModelSection, stage: int, target: Path) -> dict[str, Any]:
        import deepspeed
        import torch
        from transformers import AutoModelForImageTextToText

        from mpa_ray.train_loop import deepspeed_config, load_svlm, take_step
        from mpa_ray.training_state import save_model

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        settings = LevelSection(gpus_per_worker=0, precision="float32", batch_size=8, micro_batch_size=2, learning_rate=RATE, zero_stage=stage)
        model, processor, published = load_svlm(svlm, settings.precision)
        model.gradient_checkpointing_enable()
        batches = self._batches(svlm, model, processor)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
        known = {"dist_init_required": not torch.distributed.is_initialized()}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(settings, 1), **known)
        engine.train()
        # Two steps show that it trains. What is served afterwards knows its answers by heart: random weights are full of near-ties.
        steps = STEPS_BY_HEART if stage == 2 else 2
        losses = [take_step(engine, batches, scale=1 / len(ROWS), rate=RATE)[0] / len(ROWS) for _ in range(steps)]
        engine.eval()
        trained = self._logits(engine, batches[0])
        save_model(engine, processor, Folder.at(target), dtype=torch.float32, rank=0)
        reloaded, report = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
        return {
            "losses": losses,
            "difference": (trained - self._logits(reloaded.eval(), batches[0])).abs().max().item(),
            "missing": sorted(report["missing_keys"]),
            "unexpected": sorted(report["unexpected_keys"]),
            "published": str(published),
            "ends": [model.generation_config.eos_token_id, reloaded.generation_config.eos_token_id],
        }

    @staticmethod
    def _logits(model: Any, batch: dict[str, Any]) -> Any:
        import torch

        with torch.no_grad():
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.float()
        return logits[batch["attention_mask"].bool()]


@pytest.fixture(scope="module")
def workshop(ray_session: None) -> Iterator[Any]:
    import ray

    actor = ray.remote(num_cpus=1)(Workshop).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def trained(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains a family, once, and gives its folder with what was found."""
    import ray

    found: dict[str, tuple[Path, dict[str, Any]]] = {}

    def train(name: str) -> tuple[Path, dict[str, Any]]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            found[name] = (folder, ray.get(workshop.train.remote(name, folder)))
        return found[name]

    return train


@pytest.mark.parametrize("name", FAMILIES)
def test_collates_as_the_chat_template_writes(trained: Any, name: str) -> None:
    found = trained(name)[1]["collated"]
    assert found["learned"] == [row["answer"] + found["end"] for row in ROWS[:2]]
    assert found["image_tokens"] == FAMILIES[name].image_tokens
    assert all(found["as_written"]), "prompt and answer joined are not the tokens of the conversation as the template writes it"


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_trains_and_reloads(trained: Any, name: str, stage: int) -> None:
    found = trained(name)[1][stage]
    assert found["losses"][-1] < found["losses"][0]
    assert found["difference"] < 1e-4, found
    assert not found["missing"] and not found["unexpected"], found
    assert found["ends"][0] == found["ends"][1]


def _serve(name: str, folder: Path) -> dict[str, Any]:
    """Asks the saved model through both engines, and runs the row logic of PA and PI on vLLM's. In a process of its own."""
    from mpa_ray.parity_identifier import identify_row
    from mpa_ray.pseudo_annotator import annotate_row

    greedy = Sampling(max_tokens=12)
    rows = [{"image_id": str(number), "question": row["question"], "answer": row["answer"]} for number, row in enumerate(ROWS)]

    async def answers(engine: Any) -> list[Reply]:
        asked = [
            engine.ask(picture(row), prompts.ANSWERING.format(question=row["question"]), image_id=str(number), sampling=greedy)
            for number, row in enumerate(ROWS)
        ]
        return await asyncio.gather(*asked)

    async def stages(engine: Any) -> dict[str, Any]:
        async def ask(prompt: str, sampling: Sampling) -> Reply:
            reply = await engine.ask(picture(ROWS[0]), prompt, image_id="0", sampling=sampling)
            # Random weights write no annotation: what is counted is the engine's, what is parsed is ours.
            wrote = "Question: What color is it?, Answer: red" if prompt == prompts.SCENE_TEXT else reply.text
            return Reply(**(vars(reply) | {"text": wrote}))

        sampled = Sampling(max_tokens=24, temperature=1.0)
        annotated = await annotate_row(rows[0], ask, prompt=prompts.SCENE_TEXT, annotating=sampled, answering=greedy, questions=1, seed=0)
        stood_by = annotated[0] | {"lvlm_answer": annotated[0]["answer"]}
        judged = await identify_row(stood_by, ask, matcher="exact", answering=greedy, exhaustive=False)
        return {"annotated": annotated[0], "judged": judged[0]}

    loaded = engines.load(section(name, folder))

    async def on_vllm() -> tuple[list[Reply], dict[str, Any]]:
        return await answers(loaded), await stages(loaded)

    replies, rows_out = asyncio.run(on_vllm())
    loaded.close()
    other = engines.load(section(name, folder, engine="transformers"))
    theirs = asyncio.run(answers(other))
    other.close()
    return {"vllm": replies, "transformers": theirs} | rows_out


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES])
def test_is_asked_and_served_alike(trained: Any, name: str) -> None:
    import ray

    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    found = ray.get(ray.remote(num_cpus=1, max_calls=1)(_serve).remote(name, trained(name)[0] / "stage-2"))
    ours, theirs = found["vllm"], found["transformers"]
    assert [reply.prompt_tokens for reply in ours] == [reply.prompt_tokens for reply in theirs], "the prompts differ"
    # Greedy decoding turns with the batch at near-ties.
    same = sum(mine.text == other.text for mine, other in zip(ours, theirs, strict=True))
    assert same >= 6, [(mine.text, other.text) for mine, other in zip(ours, theirs, strict=True)]
    assert all(0 < reply.output_tokens <= 12 and reply.finish_reason in ("stop", "length") for reply in ours)
    assert all((reply.finish_reason == "length") == (reply.output_tokens == 12) for reply in ours)
    annotated, judged = found["annotated"], found["judged"]
    assert annotated["question"] == "What color is it?"
    assert annotated["annotation_prompt_tokens"] > FAMILIES[name].image_tokens
    assert 0 < annotated["annotation_output_tokens"] <= 24
    assert annotated["lvlm_answer_prompt_tokens"] > FAMILIES[name].image_tokens
    assert judged["verdict"] in ("parity", "svlm_correct")
    assert judged["svlm_answer_output_tokens"] > 0
