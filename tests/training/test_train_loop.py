"""The parts of the training loop that need neither Ray nor DeepSpeed: who learns what, at which
rate, and the loss of Eq. 3.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_ray.config import TrainingSection
from mpa_ray.training.batches import Share, of_like_length, shares
from mpa_ray.training.collator import IGNORED
from mpa_ray.training.objectives.answer_nll import answer_loss
from mpa_ray.training.set_up import deepspeed_config
from mpa_ray.training.train_loop import is_due, learning_rate, taught_pixel_values, taught_tokens
from mpa_ray.training.training_data import Sample

SIZES = st.integers(1, 9)


def all_shares(samples: int, workers: int, **sizes: int) -> list[list[Share]]:
    """The shares of all workers, step by step; sample n is named 100 + n."""
    order = np.arange(100, 100 + samples)
    return list(
        zip(
            *(shares(order, rank=rank, workers=workers, **sizes) for rank in range(workers)),
            strict=True,
        )
    )


def learned(share: Share) -> list[int]:
    return [index for indices, count in share.micro_batches for index in indices[:count]]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 60), SIZES, SIZES, SIZES)
def test_every_sample_is_learned_once_and_all_workers_make_the_same_calls(
    samples: int, workers: int, batch_size: int, micro: int
) -> None:
    steps = all_shares(samples, workers, batch_size=batch_size, micro_batch_size=micro)
    assert len(steps) == math.ceil(samples / batch_size)
    for number, step in enumerate(steps):
        batch = list(
            range(100 + number * batch_size, 100 + min(samples, (number + 1) * batch_size))
        )
        assert sorted(itertools.chain(*map(learned, step))) == batch
        assert {share.batch_size for share in step} == {len(batch)}
        calls = {tuple(len(indices) for indices, _ in share.micro_batches) for share in step}
        assert len(calls) == 1, "ZeRO waits for each worker in each call"
        assert all(1 <= size <= micro for size in calls.pop())
        assert all(
            index in batch
            for share in step
            for indices, _ in share.micro_batches
            for index in indices
        )
        # No worker works on more than its even share, rounded up.
        assert all(
            sum(len(indices) for indices, _ in share.micro_batches)
            == math.ceil(len(batch) / workers)
            for share in step
        )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), SIZES, SIZES, SIZES, st.data())
def test_a_restart_on_any_number_of_workers_resumes_where_the_last_stopped(
    samples: int, batch_size: int, before: int, after: int, data: st.DataObject
) -> None:
    done = data.draw(st.integers(0, math.ceil(samples / batch_size)))
    first = all_shares(samples, before, batch_size=batch_size, micro_batch_size=2)[:done]
    start = sum(step[0].batch_size for step in first)
    second = all_shares(samples, after, batch_size=batch_size, micro_batch_size=3, start=start)
    assert sorted(
        index for step in [*first, *second] for share in step for index in learned(share)
    ) == list(range(100, 100 + samples))
    same = all_shares(samples, before, batch_size=batch_size, micro_batch_size=2, start=start)
    assert same == all_shares(samples, before, batch_size=batch_size, micro_batch_size=2)[done:]


def rates(steps: int, warmup: float) -> list[float]:
    section = TrainingSection(learning_rate=2.0, warmup=warmup)
    return [learning_rate(step, steps, section) for step in range(steps)]


def test_micro_batches_hold_samples_of_like_length_and_lose_none() -> None:
    lengths = [400, 8, 300, 12, 8, 200, 16]
    samples = [
        Sample(image=Image.new("RGB", (28, 28)), question="x" * length, answer=str(n))
        for n, length in enumerate(lengths)
    ]
    found = of_like_length([samples[:3], samples[3:6], samples[6:]], learned=5)
    assert [len(micro_batch) for micro_batch, _ in found] == [3, 3, 1]
    assert [learned for _, learned in found] == [3, 2, 0]
    order = [sample.answer for micro_batch, _ in found for sample in micro_batch]
    assert order[:5] == ["1", "4", "3", "2", "0"], "by length, those that are learned"
    assert order[5:] == ["5", "6"], "and after them what only fills up"


def test_a_large_image_is_longer_than_a_long_question() -> None:
    large = Sample(image=Image.new("RGB", (560, 560)), question="?", answer="a")
    long = Sample(image=Image.new("RGB", (28, 28)), question="x" * 1000, answer="b")
    assert [
        micro_batch[0].answer for micro_batch, _ in of_like_length([[large], [long]], learned=2)
    ] == ["b", "a"]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    found = rates(1000, 0.1)
    assert found[0] == pytest.approx(2.0 / 100)
    assert found[49] == pytest.approx(1.0)
    assert max(found) == pytest.approx(2.0) == pytest.approx(found[99])
    assert all(a <= b for a, b in itertools.pairwise(found[:100]))
    assert all(a >= b for a, b in itertools.pairwise(found[100:]))
    assert found[550] == pytest.approx(2.0 * 0.55)
    assert found[-1] == pytest.approx(0.2, rel=0.001)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0.0), (1, 0.03), (1, 1.0), (2, 0.5), (7, 0.0), (7, 1.0), (1000, 0.03)]
)
def test_every_step_learns_something(steps: int, warmup: float) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(steps, warmup))
    assert max(rates(steps, warmup)) == 2.0


def test_checkpoints_come_by_time_or_by_steps() -> None:
    assert not is_due(TrainingSection(), steps=10**6, seconds=899)
    assert is_due(TrainingSection(), steps=1, seconds=900)
    by_steps = TrainingSection(checkpoint_every=5)
    assert not is_due(by_steps, steps=4, seconds=10**6)
    assert is_due(by_steps, steps=5, seconds=0)


def test_deepspeed_is_told_what_was_configured() -> None:
    section = TrainingSection(
        zero_stage=3, max_grad_norm=0.5, micro_batch_size=2, precision="bfloat16"
    )
    found = deepspeed_config(section, 3)
    assert (
        found["zero_optimization"]["stage"] == 3
        and found["gradient_clipping"] == 0.5
        and found["bf16"]["enabled"]
    )
    assert (
        found["train_batch_size"]
        == found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 3
    )
    assert not deepspeed_config(TrainingSection(precision="float32"), 1)["bf16"]["enabled"]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_gradients_are_summed_in_the_precision_they_are_made_in(precision: str) -> None:
    from deepspeed.runtime.config import DtypeEnum

    found = deepspeed_config(TrainingSection(precision=precision), 1)["data_types"]
    assert str(DtypeEnum(found["grad_accum_dtype"]).value) == f"torch.{precision}"


def test_workers_on_gpus_exchange_gradients_while_they_make_them() -> None:
    on_gpus = deepspeed_config(TrainingSection(), 2)["zero_optimization"]
    on_the_cpu = deepspeed_config(TrainingSection(gpus_per_worker=0), 2)["zero_optimization"]
    assert on_gpus == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 200_000_000}
    assert on_the_cpu == {"stage": 2}


def tiny_model() -> Any:
    """A causal model of a running mean: what it says of a position depends on that and the ones
    before it.
    """
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 6)
            self.head = torch.nn.Linear(6, 11)
            self.logits = 0

        def get_output_embeddings(self) -> Any:
            return self.head

        def forward(
            self, input_ids: Any, attention_mask: Any, logits_to_keep: Any, use_cache: bool
        ) -> Any:
            assert not use_cache
            hidden = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
            hidden = hidden.cumsum(1) / torch.arange(1, input_ids.shape[1] + 1).view(1, -1, 1)
            logits = self.head(hidden[:, logits_to_keep])
            self.logits = logits.numel()
            return type("Output", (), {"logits": logits})

    torch.manual_seed(0)
    return Tiny()


def equation_3(model: Any, batch: dict[str, Any]) -> Any:
    """Summed over samples: -sum_t log P(A_t | A_<t, prompt), from the logits of the whole sequence,
    token by token.
    """
    import torch

    everywhere = torch.arange(batch["input_ids"].shape[1])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    log_p = model(**inputs, logits_to_keep=everywhere, use_cache=False).logits.log_softmax(-1)
    total = torch.zeros(())
    for row, labels in enumerate(batch["labels"].tolist()):
        for place, token in enumerate(labels):
            if token != IGNORED:
                total = total - log_p[row, place - 1, token]
    return total


def batch_of(rows: list[tuple[int, int]], length: int) -> dict[str, Any]:
    """Rows of (prompt, answer) lengths, padded on the right."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (len(rows), length), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        mask[row, : prompt + answer] = 1
        labels[row, prompt : prompt + answer] = ids[row, prompt : prompt + answer]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(
    "rows",
    [[(5, 3)], [(5, 3), (2, 1), (4, 4)], [(1, 7), (7, 1)], [(3, 2), (3, 0)]],
    ids=["one", "lengths differ", "answers lie apart", "one teaches nothing"],
)
def test_the_loss_is_equation_3_and_so_is_its_gradient(rows: list[tuple[int, int]]) -> None:
    import torch

    model, batch = tiny_model(), batch_of(rows, 9)
    expected = equation_3(model, batch)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss, tokens = answer_loss(model, batch)
    assert tokens == sum(answer for _, answer in rows)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, wanted)
    assert model.logits == 11 * tokens, (
        "the head is computed where an answer token is predicted, and nowhere else"
    )
    assert "labels" in batch, "the caller's batch stays whole"


def test_a_batch_that_teaches_nothing_goes_through_the_model_and_moves_nothing() -> None:
    import torch

    model, batch = tiny_model(), batch_of([(5, 3), (2, 2)], 9)
    batch["labels"].fill_(IGNORED)
    loss, tokens = answer_loss(model, batch)
    assert (loss.item(), tokens) == (0.0, 0)
    assert model.logits == 11
    assert all(
        (gradient == 0).all() for gradient in torch.autograd.grad(loss, list(model.parameters()))
    )


def test_the_head_is_whole_again_after_a_step() -> None:
    import torch

    model, batch = tiny_model(), batch_of([(5, 3), (2, 2)], 9)
    answer_loss(model, batch)
    everywhere = torch.arange(9)
    assert model(
        batch["input_ids"], batch["attention_mask"], everywhere, use_cache=False
    ).logits.shape == (2, 9, 11)


def test_samples_that_only_fill_up_a_share_are_no_tokens_a_second() -> None:
    import torch

    batch = batch_of([(5, 3), (2, 2), (4, 1)], 9)
    assert taught_tokens(batch) == 8 + 4 + 5
    batch["pixel_values"] = torch.zeros(3, 4, 5)
    assert taught_pixel_values(batch) == 60
    batch["labels"][1:] = IGNORED
    assert (taught_tokens(batch), taught_pixel_values(batch)) == (8, 20)
