"""Batches of the demo's own processor (a true Qwen2-VL one): labels on the answer alone, and
prompts as the processor makes them.
"""

from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.demo_pair.models import (
    END,
    PAD,
    SIZES,
    build_model,
    build_processor,
    build_tokenizer,
)
from mpa_ray.models.chat_template import end_tokens, user_prompt
from mpa_ray.tasks import prompts
from mpa_ray.training.collator import IGNORED, Collator, answer_form
from mpa_ray.training.objectives.answer_nll import answer_loss
from mpa_ray.training.training_data import Sample


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(build_tokenizer())


@pytest.fixture(scope="module")
def end(processor: Any) -> int:
    return processor.tokenizer.convert_tokens_to_ids(END)


def sample(question: str, answer: str, size: tuple[int, int] = (96, 96)) -> Sample:
    return Sample(
        image=Image.effect_noise(size, 50).convert("RGB"), question=question, answer=answer
    )


# Questions, answers and images of different lengths and sizes.
SAMPLES = [
    sample("What color is the sign?", "red"),
    sample("How many?", "a much longer answer of several words", (48, 96)),
    sample("Is the text on the large sign above the small one readable?", "No", (60, 48)),
]


def prompt_alone(processor: Any, item: Sample) -> Any:
    text = user_prompt(processor, prompts.ANSWERING.format(question=item.question))
    return processor(text=[text], images=[[item.image]], return_tensors="pt")


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_prompt_answer_end_and_then_padding(processor: Any, end: int, side: str) -> None:
    tokenizer = processor.tokenizer
    tokenizer.padding_side = side
    batch = Collator(processor, end_tokens={end})(SAMPLES)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    lengths = []
    for row, item in enumerate(SAMPLES):
        ids, labels, mask = (
            batch[name][row].tolist() for name in ("input_ids", "labels", "attention_mask")
        )
        prompt = prompt_alone(processor, item)["input_ids"][0].tolist()
        answer = [*tokenizer(item.answer, add_special_tokens=False)["input_ids"], end]
        length = len(prompt) + len(answer)
        assert ids == prompt + answer + [tokenizer.convert_tokens_to_ids(PAD)] * (len(ids) - length)
        assert labels == [IGNORED] * len(prompt) + answer + [IGNORED] * (len(ids) - length)
        assert mask == [1] * length + [0] * (len(ids) - length)
        assert tokenizer.decode(answer) == item.answer + END
        lengths.append(length)
    assert max(lengths) == batch["input_ids"].shape[1] and len(set(lengths)) == 3


def test_images_and_other_tensors_are_the_processors(processor: Any, end: int) -> None:
    batch = Collator(processor, end_tokens={end})(SAMPLES)
    alone = [prompt_alone(processor, item) for item in SAMPLES]
    assert batch.keys() == alone[0].keys() | {"labels"}
    for name in ("pixel_values", "image_grid_thw"):
        torch.testing.assert_close(batch[name], torch.cat([inputs[name] for inputs in alone]))
    for name in batch.keys() - {
        "input_ids",
        "attention_mask",
        "labels",
        "pixel_values",
        "image_grid_thw",
    }:
        for row, inputs in enumerate(alone):
            length = inputs[name].shape[1]
            assert batch[name][row, :length].tolist() == inputs[name][0].tolist()
            assert not batch[name][row, length:].any(), "what follows the prompt is text"


@pytest.mark.parametrize("learned", [0, 1, 2, 3, None])
def test_samples_that_fill_up_a_share_teach_nothing(
    processor: Any, end: int, learned: int | None
) -> None:
    collator = Collator(processor, end_tokens={end})
    batch, whole = collator(SAMPLES, learned=learned), collator(SAMPLES)
    count = 3 if learned is None else learned
    assert (batch["labels"] != IGNORED).any(1).tolist() == [True] * count + [False] * (3 - count)
    assert torch.equal(batch["labels"][:count], whole["labels"][:count])
    for name in whole.keys() - {"labels"}:
        assert torch.equal(batch[name], whole[name])


@pytest.mark.parametrize(
    "answer", ["", " ", "red", "Yes.", "3,000", "42%", "ünïcödé 图", "two\nlines", "x" * 200]
)
def test_every_answer_ends_in_the_end_token_once(processor: Any, end: int, answer: str) -> None:
    tokens = Collator(processor, end_tokens={end}).answer_tokens(answer)
    assert tokens[-1] == end and tokens.count(end) == 1
    assert processor.tokenizer.decode(tokens[:-1]) == answer


def test_a_template_that_ends_no_reply_still_teaches_to_stop(processor: Any, end: int) -> None:
    other = build_processor(build_tokenizer())
    other.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{{ c.get('text', '')"
        " }}{% endfor %}{% endfor %}"
    )
    assert Collator(other, end_tokens={end}).answer_tokens("red")[-1] == end


def test_a_template_that_rewrites_its_prompt_is_refused(processor: Any) -> None:
    other = build_processor(build_tokenizer())
    other.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not continue its own prompt"):
        answer_form(other)


def test_the_loss_of_a_batch_is_equation_3(processor: Any) -> None:
    """With a true Qwen2-VL: the head at chosen positions, against the logits of the whole
    sequence.
    """
    model = build_model(SIZES["svlm"], processor.tokenizer, seed=0).eval()
    collator = Collator(processor, end_tokens=end_tokens(model))
    batch = collator(SAMPLES, learned=2)
    with torch.inference_mode():
        loss, tokens = answer_loss(model, batch)
        total, count = 0.0, 0
        for item in SAMPLES[:2]:
            # Each by itself, without padding.
            alone = collator([item])
            labels = alone.pop("labels")[0]
            log_p = model(**alone, use_cache=False).logits[0].log_softmax(-1)
            places = (labels != IGNORED).nonzero()[:, 0]
            total -= log_p[places - 1, labels[places]].sum().item()
            count += len(places)
    assert tokens == count
    assert loss.item() == pytest.approx(total, rel=1e-4)
