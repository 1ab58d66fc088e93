"""Model FLOPs utilization."""

import pytest

from mpa_ray.training.mfu import flops_per_token, mfu


def test_a_known_gpu() -> None:
    # 2.2e9 parameters, 3 GPUs of 362e12: 6 x 2.2e9 x 20,000 / 1.086e15.
    found = mfu(
        tokens_per_second=20_000, flops_per_token=6 * 2_200_000_000, workers=3, gpu="NVIDIA L40S"
    )
    assert found == pytest.approx(0.2431, abs=1e-4)


def test_gpus_whose_names_begin_alike_are_told_apart() -> None:
    gpus = ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S")
    shares = {
        gpu: mfu(tokens_per_second=1e4, flops_per_token=10**9, workers=1, gpu=gpu) for gpu in gpus
    }
    assert shares["NVIDIA L4"] == pytest.approx(shares["NVIDIA L40S"] * 362 / 121)
    assert shares["NVIDIA L40"] == pytest.approx(shares["NVIDIA L40S"] * 362 / 181)


@pytest.mark.parametrize("gpu", ["", "Some other GPU"])
def test_what_is_not_known_has_none(gpu: str) -> None:
    assert mfu(tokens_per_second=1.0, flops_per_token=1, workers=1, gpu=gpu) is None


def test_a_token_goes_through_every_weight_but_embeddings_and_head() -> None:
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = (
                torch.nn.Embedding(100, 8),
                torch.nn.Linear(8, 8),
                torch.nn.Linear(8, 100, bias=False),
            )

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embedding

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    model = Model()
    assert flops_per_token(model) == 6 * (8 * 8 + 8)
    model.body.bias.requires_grad_(False)
    assert flops_per_token(model) == 6 * 8 * 8 + 4 * 8, "a frozen weight has no gradient"
