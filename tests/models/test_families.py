"""Every S-VLM family end to end at tiny sizes: asked, trained by DeepSpeed, saved, loaded again and
served; and what is refused, with its reason.
"""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, LLAVA_TEMPLATE, write, write_internvl2_as_published
from PIL import Image

from conftest import parity_rows
from mpa_ray import cli, engines
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.engines import Reply, Sampling
from mpa_ray.errors import ConfigurationError
from mpa_ray.models import checkpoint, families
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.training.training_data import Sample

ROWS = parity_rows(8).to_pylist()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS_BY_HEART, RATE = 24, 3e-3
# These go through vLLM in `make test`, the others in `make test-all`.
QUICK = {"qwen2-vl", "smolvlm"}


def section(name: str, folder: Path, **changes: Any) -> ModelSection:
    family = FAMILIES[name]
    settings = {
        "model": str(folder),
        "dtype": "float32",
        "gpus_per_replica": 0,
        "max_model_len": 512,
        "images_in_flight": 8,
    }
    return ModelSection(
        **(settings | {"processor_options": family.processor_options} | family.settings | changes)
    )


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def samples() -> list[Sample]:
    """ROWS to train on; the second image is of another shape, which some families cut into another
    number of tiles.
    """
    made = [
        Sample(image=picture(row), question=row["question"], answer=row["answer"]) for row in ROWS
    ]
    return [made[0], replace(made[1], image=made[1].image.resize((64, 120))), *made[2:]]


def weight_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sorted(weights.keys())


class Workshop:
    """A process that trains one family after the other: torch and DeepSpeed are imported once."""

    def __init__(self) -> None:
        from test_training_state import process_group_of_one

        process_group_of_one()

    def train(self, name: str, folder: Path, by_heart: bool) -> dict[str, Any]:
        """The family's model in folder/published, and trained at ZeRO stages 2 and 3 in
        folder/stage-2 and -3.

        Two steps show that it trains. `by_heart` takes more at stage 2: what is served must know
        its answers, for random weights are full of near-ties.
        """
        svlm = section(name, write(FAMILIES[name], folder / "published"))
        steps = {2: STEPS_BY_HEART if by_heart else 2, 3: 2}
        return {"collated": self._collated(svlm)} | {
            stage: self._train(svlm, stage, count, folder / f"stage-{stage}")
            for stage, count in steps.items()
        }

    def _collated(self, svlm: ModelSection) -> dict[str, Any]:
        from mpa_ray.models.chat_template import image_arguments, with_reply
        from mpa_ray.training.set_up import load_svlm

        model, processor, _ = load_svlm(svlm, "float32")
        batch = self._batches(svlm, model, processor)[0]
        ids = [
            row[mask.bool()].tolist()
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        whole = [
            with_reply(processor, prompts.ANSWERING.format(question=row["question"]), row["answer"])
            for row in ROWS[:2]
        ]
        pictures = [[sample.image] for sample in samples()[:2]]
        as_written = [
            processor(text=[text], images=[shown], **image_arguments(svlm))["input_ids"][0]
            for text, shown in zip(whole, pictures, strict=True)
        ]
        return {
            "learned": [
                processor.tokenizer.decode(labels[labels >= 0]).strip()
                for labels in batch["labels"]
            ],
            "end": processor.tokenizer.convert_ids_to_tokens(
                batch["labels"][0][batch["labels"][0] >= 0].tolist()
            )[-1],
            "image_tokens": ids[0].count(processor.image_token_id),
            "as_written": [
                list(written[: len(row) - 1]) == row[:-1]
                for written, row in zip(as_written, ids, strict=True)
            ],
        }

    def _batches(self, svlm: ModelSection, model: Any, processor: Any) -> list[dict[str, Any]]:
        from mpa_ray.models.chat_template import end_tokens, image_arguments
        from mpa_ray.training.collator import Collator

        collator = Collator(
            processor, end_tokens=end_tokens(model), image_arguments=image_arguments(svlm)
        )
        drawn = samples()
        return [collator(drawn[index : index + 2]) for index in range(0, len(drawn), 2)]

    def _train(self, svlm: ModelSection, stage: int, steps: int, target: Path) -> dict[str, Any]:
        import deepspeed
        import torch
        from transformers import AutoModelForImageTextToText

        from mpa_ray.training.objectives.answer_nll import answer_loss
        from mpa_ray.training.set_up import deepspeed_config, load_svlm
        from mpa_ray.training.train_loop import take_step
        from mpa_ray.training.training_state import save_model

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        settings = TrainingSection(
            gpus_per_worker=0,
            precision="float32",
            batch_size=8,
            micro_batch_size=2,
            learning_rate=RATE,
            zero_stage=stage,
        )
        model, processor, published = load_svlm(svlm, settings.precision)
        model.gradient_checkpointing_enable()
        batches = self._batches(svlm, model, processor)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
        known = {"dist_init_required": not torch.distributed.is_initialized()}
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(settings, 1), **known
        )
        engine.train()
        losses = [
            take_step(engine, answer_loss, batches, scale=1 / len(ROWS), rate=RATE)[0] / len(ROWS)
            for _ in range(steps)
        ]
        engine.eval()
        trained = self._logits(engine, batches[0])
        save_model(engine, processor, Folder.at(target), dtype=torch.float32, rank=0)
        reloaded, report = AutoModelForImageTextToText.from_pretrained(
            target, dtype=torch.float32, output_loading_info=True
        )
        return {
            "losses": losses,
            "difference": (trained - self._logits(reloaded.eval(), batches[0])).abs().max().item(),
            "missing": sorted(report["missing_keys"]),
            "unexpected": sorted(report["unexpected_keys"]),
            "names": [weight_names(Path(svlm.model)), weight_names(target)],
            "dtypes": [str(published), str(reloaded.dtype)],
            "ends": [model.generation_config.eos_token_id, reloaded.generation_config.eos_token_id],
        }

    @staticmethod
    def _logits(model: Any, batch: dict[str, Any]) -> Any:
        import torch

        with torch.no_grad():
            logits = model(
                **{name: value for name, value in batch.items() if name != "labels"}
            ).logits.float()
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

    found: dict[tuple[str, bool], tuple[Path, dict[str, Any]]] = {}

    def train(name: str, by_heart: bool = False) -> tuple[Path, dict[str, Any]]:
        key = (name, by_heart or name in QUICK)
        if key not in found:
            folder = tmp_path_factory.mktemp(name)
            found[key] = (folder, ray.get(workshop.train.remote(name, folder, key[1])))
        return found[key]

    return train


@pytest.mark.parametrize("name", FAMILIES)
def test_collates_as_the_chat_template_writes(trained: Any, name: str) -> None:
    found = trained(name)[1]["collated"]
    assert found["learned"] == [row["answer"] + found["end"] for row in ROWS[:2]]
    assert found["image_tokens"] == FAMILIES[name].image_tokens
    assert all(found["as_written"]), (
        "prompt and answer joined are not the tokens of the conversation as the template writes it"
    )


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_trains_and_reloads(trained: Any, name: str, stage: int) -> None:
    found = trained(name)[1][stage]
    assert found["losses"][-1] < found["losses"][0]
    assert found["difference"] < 1e-4, found
    assert not found["missing"] and not found["unexpected"], found
    assert found["names"][0] == found["names"][1], (
        "what loads the published weights must find the trained ones under their names"
    )
    assert found["dtypes"][0] == found["dtypes"][1]
    assert found["ends"][0] == found["ends"][1]


def _serve(name: str, folder: Path) -> dict[str, Any]:
    """Asks the saved model through both engines, and runs the row logic of PA and PI on vLLM's. In
    a process of its own.
    """
    from mpa_ray.parity_identifier import identify_row
    from mpa_ray.pseudo_annotator import annotate_row

    greedy = Sampling(max_tokens=12)
    rows = [
        {"image_id": str(number), "question": row["question"], "answer": row["answer"]}
        for number, row in enumerate(ROWS)
    ]

    async def answers(engine: Any) -> list[Reply]:
        asked = [
            engine.ask(
                picture(row),
                prompts.ANSWERING.format(question=row["question"]),
                image_id=str(number),
                sampling=greedy,
            )
            for number, row in enumerate(ROWS)
        ]
        return await asyncio.gather(*asked)

    async def stages(engine: Any) -> dict[str, Any]:
        async def ask(prompt: str, sampling: Sampling) -> Reply:
            reply = await engine.ask(picture(ROWS[0]), prompt, image_id="0", sampling=sampling)
            # Random weights write no annotation: what is counted is the engine's, what is parsed is
            # ours.
            wrote = (
                "Question: What color is it?, Answer: red"
                if prompt == prompts.SCENE_TEXT
                else reply.text
            )
            return Reply(**(vars(reply) | {"text": wrote}))

        sampled = Sampling(max_tokens=24, temperature=1.0)
        annotated = await annotate_row(
            rows[0],
            ask,
            prompt=prompts.SCENE_TEXT,
            annotating=sampled,
            answering=greedy,
            questions=1,
            seed=0,
        )
        stood_by = annotated[0] | {"lvlm_answer": annotated[0]["answer"]}
        judged = await identify_row(
            stood_by, ask, matcher="exact", answering=greedy, exhaustive=False
        )
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


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_is_asked_and_served_alike(trained: Any, name: str) -> None:
    import ray

    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    found = ray.get(
        ray.remote(num_cpus=1, max_calls=1)(_serve).remote(
            name, trained(name, by_heart=True)[0] / "stage-2"
        )
    )
    ours, theirs = found["vllm"], found["transformers"]
    assert [reply.prompt_tokens for reply in ours] == [reply.prompt_tokens for reply in theirs], (
        "the prompts differ"
    )
    # Greedy decoding turns with the batch at near-ties; and whether the blank before a first word
    # belongs to it, engines see differently.
    same = sum(
        mine.text.strip() == other.text.strip() for mine, other in zip(ours, theirs, strict=True)
    )
    assert same >= 6, [(mine.text, other.text) for mine, other in zip(ours, theirs, strict=True)]
    assert all(
        0 < reply.output_tokens <= 12 and reply.finish_reason in ("stop", "length")
        for reply in ours
    )
    assert all((reply.finish_reason == "length") == (reply.output_tokens == 12) for reply in ours)
    annotated, judged = found["annotated"], found["judged"]
    assert annotated["question"] == "What color is it?"
    assert annotated["annotation_prompt_tokens"] > FAMILIES[name].image_tokens
    assert 0 < annotated["annotation_output_tokens"] <= 24
    assert annotated["lvlm_answer_prompt_tokens"] > FAMILIES[name].image_tokens
    assert judged["verdict"] in ("parity", "svlm_correct")
    assert judged["svlm_answer_output_tokens"] > 0


def _ask_published(model: ModelSection) -> list[int]:
    loaded = engines.load(model)

    async def ask_all() -> list[Reply]:
        short = Sampling(max_tokens=4)
        return await asyncio.gather(
            *(
                loaded.ask(picture(row), "?", image_id=str(n), sampling=short)
                for n, row in enumerate(ROWS)
            )
        )

    replies = asyncio.run(ask_all())
    loaded.close()
    return [reply.prompt_tokens for reply in replies]


@pytest.mark.slow
def test_internvl2_as_published_is_served_once_its_code_is_trusted(
    ray_session: None, tmp_path: Path
) -> None:
    """The L-VLM's case: vLLM has the model; configuration code is run, the template takes plain
    text, and the weights are vLLM's dummies.
    """
    import ray

    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    folder = write_internvl2_as_published(tmp_path / "internvl2")
    settings = {
        "model": str(folder),
        "dtype": "float32",
        "gpus_per_replica": 0,
        "max_model_len": 512,
        "images_in_flight": 8,
    }
    settings |= {
        "engine_options": {"load_format": "dummy"},
        "processor_options": {"max_dynamic_patch": 4},
    }
    trusting = ModelSection(**settings, trust_remote_code=f"{folder}@{COMMIT}")
    env = {"env_vars": {"HF_MODULES_CACHE": str(tmp_path / "modules")}}
    task = ray.remote(num_cpus=1, max_calls=1, runtime_env=env)(_ask_published)
    # Four tiles and the whole image, 4 tokens each; the system message, the user's and what is
    # around them are the rest.
    around = (
        "<|im_start|>system\nYou are a helpful"
        " assistant.<|im_end|>\n<|im_start|>user\n<img></img>\n?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert set(ray.get(task.remote(trusting))) == {20 + count_tokens(folder, around)}
    with pytest.raises(ConfigurationError, match="custom code, which stays off"):
        engines.load(ModelSection(**settings))


def count_tokens(folder: Path, text: str) -> int:
    from transformers import PreTrainedTokenizerFast

    return len(PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"])


@pytest.fixture
def published(tmp_path: Path) -> Any:
    """Writes a family's untrained model."""
    return lambda name: write(FAMILIES[name], tmp_path / name)


def image_tokens(processor: Any, **arguments: Any) -> int:
    from mpa_ray.models.chat_template import user_prompt

    inputs = processor(text=[user_prompt(processor, "?")], images=[[picture(ROWS[0])]], **arguments)
    return list(inputs["input_ids"][0]).count(processor.image_token_id)


def test_processor_options_bound_the_tokens_and_stay_in_the_trained_model(trained: Any) -> None:
    from transformers import AutoProcessor

    folder = trained("smolvlm")[0]
    # 12 tiles and the whole image of 4 tokens each, from a 96 x 96 image: SmolVLM enlarges.
    assert image_tokens(AutoProcessor.from_pretrained(folder / "published")) == 68
    assert (
        image_tokens(AutoProcessor.from_pretrained(folder / "stage-2"))
        == FAMILIES["smolvlm"].image_tokens
    )


def test_an_option_that_the_processor_has_not_is_refused(published: Any) -> None:
    from mpa_ray.models.chat_template import load_processor

    with pytest.raises(
        ConfigurationError,
        match=r"Idefics3ImageProcessor has no such option; it has .*do_image_splitting",
    ):
        load_processor(
            section("smolvlm", published("smolvlm"), processor_options={"longest_edge": 64})
        )


def test_a_model_without_a_fit_chat_template_is_refused(published: Any) -> None:
    from mpa_ray.models.chat_template import load_processor

    folder = published("tinyllava")
    with pytest.raises(ConfigurationError, match="has no chat template"):
        load_processor(section("tinyllava", folder, chat_template=None))
    for blind in (
        "{{ messages[0]['role'] }}:",
        "{{ 'USER: ' + messages[0]['content'] }}",
        "{{ messages[0]['content'] }}",
    ):
        with pytest.raises(ConfigurationError, match="writes no image"):
            load_processor(section("tinyllava", folder, chat_template=blind))


def test_a_template_that_begins_with_the_start_token_gives_one_and_not_two(published: Any) -> None:
    from mpa_ray.models.chat_template import load_processor, user_prompt

    for template in (LLAVA_TEMPLATE, "{{ bos_token }}" + LLAVA_TEMPLATE):
        processor = load_processor(
            section("tinyllava", published("tinyllava"), chat_template=template)
        )
        tokens = processor.tokenizer(user_prompt(processor, "?"))["input_ids"]
        assert tokens.count(processor.tokenizer.bos_token_id) == 1


def test_generation_settings_that_cannot_be_saved_are_fixed(published: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_ray.models.chat_template import end_tokens, settle_generation

    folder = published("tinyllava")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.2, "top_p": 0.9}))
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "unmended")
    settle_generation(model, processor)
    assert end_tokens(model) == {processor.tokenizer.eos_token_id}
    model.save_pretrained(tmp_path / "fixed")


def with_config(folder: Path, **config: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "engine", "trained", "said"),
    [
        (
            {"model_type": "internvl_chat"},
            "vllm",
            True,
            "that we cannot train; take a checkpoint in the transformers layout",
        ),
        (
            {"model_type": "internvl_chat"},
            "vllm",
            False,
            "configuration and tokenizer are custom code, which stays off",
        ),
        (
            {"model_type": "internvl_chat"},
            "transformers",
            False,
            "that we cannot serve; take a checkpoint in the transformers layout",
        ),
        (
            {"model_type": "tiny_llava_stablelm"},
            "vllm",
            False,
            "that we cannot serve; take one in the LLaVA layout",
        ),
        ({"model_type": "qwen2"}, "vllm", True, "a text model without images"),
        ({"model_type": "nobodys"}, "transformers", False, "unknown to transformers"),
        (
            {"model_type": "nobodys", "auto_map": {"AutoModelForImageTextToText": "m.M"}},
            "vllm",
            True,
            "whose model is custom code, which stays off; read that code",
        ),
        ({}, "vllm", True, "unknown to transformers"),
    ],
)
def test_a_layout_that_cannot_be_used_is_refused_before_it_loads(
    tmp_path: Path, config: dict[str, Any], engine: str, trained: bool, said: str
) -> None:
    model = ModelSection(model=with_config(tmp_path / "m", **config), engine=engine)
    for refuse in (families.check, families.check_loaded):
        with pytest.raises(ConfigurationError, match=said):
            refuse("svlm.model", model, trained=trained)


def test_known_hub_names_are_refused_without_the_hub() -> None:
    for name in ("OpenGVLab/InternVL2-2B", "OpenGVLab/InternVL2-4B", "bczhou/TinyLLaVA-2.0B"):
        with pytest.raises(ConfigurationError, match="svlm.model"):
            families.check("svlm.model", ModelSection(model=name), trained=True)
    for name in (
        "OpenGVLab/InternVL3-2B-hf",
        "Qwen/Qwen2-VL-2B-Instruct",
        "bczhou/tiny-llava-v1-hf",
    ):
        families.check("svlm.model", ModelSection(model=name), trained=True)
    trusted = ModelSection(
        model="OpenGVLab/InternVL2-8B", trust_remote_code=f"OpenGVLab/InternVL2-8B@{COMMIT}"
    )
    families.check("lvlm.model", trusted, trained=False)


@pytest.mark.parametrize(
    "trusted",
    [
        "true",
        "a/b",
        "a/b@main",
        f"a/c@{COMMIT}",
        f"a/b@{COMMIT[:12]}",
        f"a/b@{COMMIT.upper()}",
        f"@{COMMIT}",
    ],
)
def test_custom_code_is_trusted_by_name_and_whole_commit_only(trusted: str) -> None:
    with pytest.raises(ValueError, match="must name this model and a whole commit"):
        ModelSection(model="a/b", trust_remote_code=trusted)


def test_trusted_code_and_weights_are_of_one_commit() -> None:
    model = ModelSection(model="a/b", trust_remote_code=f"a/b@{COMMIT}")
    assert checkpoint.arguments(model) == {
        "revision": COMMIT,
        "code_revision": COMMIT,
        "trust_remote_code": True,
    }
    assert checkpoint.arguments(ModelSection(model="a/b", revision="v1")) == {
        "revision": "v1",
        "trust_remote_code": False,
    }
    with pytest.raises(ValueError, match="exclude each other"):
        ModelSection(model="a/b", trust_remote_code=f"a/b@{COMMIT}", revision="v1")


def test_code_of_another_repository_is_not_trusted_with_a_model(tmp_path: Path) -> None:
    elsewhere = {"AutoModelForImageTextToText": "evil/code--modeling.Model"}
    folder = with_config(tmp_path / "m", model_type="nobodys", auto_map=elsewhere)
    trusting = ModelSection(model=folder, trust_remote_code=f"{folder}@{COMMIT}")
    with pytest.raises(ConfigurationError, match="its code is not in it but in evil/code"):
        families.check_loaded("svlm.model", trusting, trained=True)
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({"model_type": "nobodys", "auto_map": {"AutoModelForImageTextToText": "m.M"}})
    )
    families.check_loaded("svlm.model", trusting, trained=True)
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil/code--tokenization.T", None]}})
    )
    with pytest.raises(ConfigurationError, match="its code is not in it but in evil/code"):
        families.check_loaded("svlm.model", trusting, trained=True)


def test_parameters_are_counted_from_headers_and_a_large_svlm_is_named(
    published: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    folder = published("internvl3")
    real = sum(
        parameter.numel()
        for parameter in AutoModelForImageTextToText.from_pretrained(folder).parameters()
    )
    model = ModelSection(model=str(folder))
    assert families.count_parameters(model) == real
    assert families.size_warning(model, real) is None
    large = tmp_path / "large"
    large.mkdir()
    header = json.dumps(
        {
            "__metadata__": {},
            "w": {"dtype": "BF16", "shape": [100_000, 70_000], "data_offsets": [0, 14 * 10**9]},
        }
    ).encode()
    with (large / "model-00001-of-00001.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        # Its weights are a hole, which takes no room on the disk.
        file.truncate(8 + len(header) + 14 * 10**9)
    assert "has 7.0B parameters" in families.size_warning(
        model, families.count_parameters(ModelSection(model=str(large)))
    )
    assert families.count_parameters(ModelSection(model="Qwen/Qwen2-VL-2B-Instruct")) is None


def test_presets_combine() -> None:
    config = cli.parse(
        Config(), ["--preset", "qwen2vl-2b", "internvl2-8b", "--images", "i", "--output", "o"]
    )
    assert (config.svlm.model, config.lvlm.model) == (
        "Qwen/Qwen2-VL-2B-Instruct",
        "OpenGVLab/InternVL2-8B",
    )


@pytest.mark.parametrize(
    ("stated", "context"),
    [
        (
            {
                "text_config": {
                    "max_position_embeddings": 2048,
                    "rope_parameters": {"rope_type": "default"},
                }
            },
            2048,
        ),
        ({"max_position_embeddings": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 32768}}, 4096),
        (
            {
                "text_config": {
                    "max_position_embeddings": 2048,
                    "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
                }
            },
            4096,
        ),
        ({}, 4096),
    ],
)
def test_a_context_is_no_longer_than_the_model_states(
    stated: dict[str, Any], context: int, tmp_path: Path
) -> None:
    """vLLM refuses to serve more."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"} | stated))
    model = ModelSection(model=str(tmp_path))
    assert families.within_context(model).max_model_len == context
    assert (
        families.within_context(model.model_copy(update={"max_model_len": 512})).max_model_len
        == 512
    )
