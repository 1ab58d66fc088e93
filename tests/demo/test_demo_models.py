"""The demo's pair of models: their files, what they can do, and the forward they were trained
with.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.demo_pair.models import (
    ANNOTATION_PROMPTS,
    IMAGE,
    INSTRUCTION,
    SIZES,
    build_model,
    build_processor,
    build_tokenizer,
    reply,
)
from benchmarks.demo_pair.packed import PackedForward, patches
from benchmarks.demo_pair.train_pair import (
    CURRICULA,
    PEAK_LEARNING_RATE,
    learning_rate,
    training_batches,
)
from mpa_ray.demo import LVLM, SVLM
from mpa_ray.demo.questions import parse_annotation, true_answer
from mpa_ray.demo.render import benchmark_rows, render
from mpa_ray.tasks import prompts


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # The matrices are too small to split, and a busy machine makes the splitting many times slower.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16
    ).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def lvlm():
    return load(LVLM)


@pytest.fixture(scope="module")
def svlm():
    return load(SVLM)


def accuracy(model, processor, *, kind: str, count: int) -> float:
    rows = list(benchmark_rows(kind=kind, count=count, seed=20_261))
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    texts = [prompts.ANSWERING.format(question=row["question"]) for row in rows]
    answers = reply(model, processor, images, texts, max_new_tokens=8)
    return np.mean([[answer] == row["answers"] for answer, row in zip(answers, rows, strict=True)])


@pytest.mark.parametrize("folder", [LVLM, SVLM])
def test_a_checkpoint_is_small_and_complete(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_000_000
    names = {file.name for file in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
    } <= names


@pytest.mark.parametrize("kind", ["sign", "chart"])
def test_the_lvlm_knows_the_shifted_domain(lvlm, kind):
    assert accuracy(*lvlm, kind=kind, count=60) >= 0.95


@pytest.mark.parametrize("kind", ["sign", "chart"])
def test_the_svlm_is_halfway_there(svlm, kind):
    assert 0.35 <= accuracy(*svlm, kind=kind, count=120) <= 0.75


@pytest.mark.parametrize("prompt", ANNOTATION_PROMPTS)
def test_the_lvlm_annotates(lvlm, prompt):
    torch.manual_seed(0)
    images, facts = zip(
        *(render("mixed", seed=20_262, index=index) for index in range(24)), strict=True
    )
    annotations = reply(*lvlm, images, [prompt] * len(images), max_new_tokens=40, temperature=1.0)
    parsed = [parse_annotation(annotation) for annotation in annotations]
    right = [
        pair is not None and true_answer(pair[0], fact) == pair[1]
        for pair, fact in zip(parsed, facts, strict=True)
    ]
    assert np.mean(right) >= 0.9
    yes_or_no = {pair[1] in ("Yes", "No") for pair in parsed if pair}
    assert yes_or_no == {prompt == prompts.PATHOLOGY_YES_NO}


def test_the_prompts_are_single_tokens_of_the_shipped_tokenizers(lvlm, svlm):
    for _, processor in (lvlm, svlm):
        for text in (INSTRUCTION, *ANNOTATION_PROMPTS):
            assert len(processor.tokenizer(text)["input_ids"]) == 1, (
                "a prompt has changed: train the pair again"
            )


def test_the_tokenizer_is_rebuilt_to_the_letter(lvlm, svlm):
    rebuilt = build_tokenizer().backend_tokenizer.get_vocab()
    assert lvlm[1].tokenizer.get_vocab() == svlm[1].tokenizer.get_vocab() == rebuilt


def test_an_image_is_sixteen_tokens(svlm):
    _, processor = svlm
    image, _ = render("sign", seed=0, index=0)
    inputs = processor(
        images=[image], text=[f"<|vision_start|>{IMAGE}<|vision_end|>"], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape[0] == 64
    assert (inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(IMAGE)).sum() == 16


def test_the_chat_template_takes_strings_and_parts(svlm):
    _, processor = svlm
    parts = [{"type": "image"}, {"type": "text", "text": "Read the sign."}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    plain = "<|vision_start|><|image_pad|><|vision_end|>Read the sign."
    assert rendered == f"<|im_start|>user\n{plain}<|im_end|>\n<|im_start|>assistant\n"
    assert (
        processor.apply_chat_template(
            [{"role": "user", "content": plain}], add_generation_prompt=True
        )
        == rendered
    )


@pytest.mark.parametrize("name", SIZES)
def test_the_packed_forward_is_the_models_own(name):
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(SIZES[name], tokenizer, seed=0).eval()
    image, _ = render("chart", seed=0, index=0)
    exchanges = [
        (prompts.ANSWERING.format(question="Count the bars."), "3"),
        (prompts.CHART, "Question: a?, Answer: pink"),
    ]

    summed, tokens = 0.0, 0
    for said, answer in exchanges:
        content = [{"type": "image"}, {"type": "text", "text": said}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=[image], text=[f"{text}{answer}<|im_end|>"], return_tensors="pt")
        answered = len(tokenizer(f"{answer}<|im_end|>")["input_ids"])
        labels = inputs["input_ids"].clone()
        labels[:, :-answered] = -100
        with torch.no_grad():
            summed += model(**inputs, labels=labels).loss.item() * answered
        tokens += answered

    pixels = torch.from_numpy(np.asarray(image)[None].copy())
    assert torch.allclose(patches(pixels)[0], inputs["pixel_values"], atol=1e-5)
    with torch.no_grad():
        packed = PackedForward(model, tokenizer, length=96).loss(pixels, [exchanges]).item()
    assert packed == pytest.approx(summed / tokens, rel=1e-4)


def test_exchanges_that_do_not_fit_are_refused():
    tokenizer = build_tokenizer()
    forward = PackedForward(build_model(SIZES["svlm"], tokenizer, seed=0), tokenizer, length=32)
    with pytest.raises(ValueError, match="length=32"):
        forward.pack([[(prompts.ANSWERING.format(question="Count the bars."), "3")]])


@pytest.mark.parametrize("name", SIZES)
def test_a_training_batch_fits_its_rows_and_repeats(name):
    curriculum, tokenizer = CURRICULA[name], build_tokenizer()
    pixels, exchanges = next(training_batches(curriculum))
    assert (pixels.shape, pixels.dtype) == ((64, 96, 96, 3), torch.uint8)
    assert {len(of_image) for of_image in exchanges} == {5 if curriculum.annotates else 4}
    forward = PackedForward(
        build_model(SIZES[name], tokenizer, seed=0), tokenizer, length=curriculum.row_length
    )
    assert forward.pack(exchanges).ids.shape == (64, curriculum.row_length)
    pixels_again, exchanges_again = next(training_batches(curriculum))
    assert torch.equal(pixels, pixels_again) and exchanges == exchanges_again


def test_the_learning_rate_warms_up_stays_and_decays():
    rates = [learning_rate(step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(PEAK_LEARNING_RATE / 100)
    assert rates[99] == rates[399] == PEAK_LEARNING_RATE
    assert rates[700] == pytest.approx(PEAK_LEARNING_RATE / 2)
    assert 0 < rates[-1] < PEAK_LEARNING_RATE / 100


def test_the_svlm_was_shown_only_the_plain_half():
    curriculum = CURRICULA["svlm"]
    assert (curriculum.domains, curriculum.wordings, curriculum.annotates) == (
        ("plain",),
        (0, 1),
        False,
    )
