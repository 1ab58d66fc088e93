"""Model FLOPs utilization."""

import pytest

from mpa_ray.training.mfu import Flops, flops_of, mfu
from tests.families import FAMILIES


def test_a_known_gpu() -> None:
    # 2.2e9 parameters, 3 GPUs of 362e12: 6 x 2.2e9 x 20,000 / 1.086e15.
    found = mfu(flops_per_second=6 * 2_200_000_000 * 20_000, workers=3, gpu="NVIDIA L40S")
    assert found == pytest.approx(0.2431, abs=1e-4)


def test_gpus_whose_names_begin_alike_are_told_apart() -> None:
    gpus = ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S")
    shares = {gpu: mfu(flops_per_second=1e13, workers=1, gpu=gpu) for gpu in gpus}
    assert shares["NVIDIA L4"] == pytest.approx(shares["NVIDIA L40S"] * 362 / 121)
    assert shares["NVIDIA L40"] == pytest.approx(shares["NVIDIA L40S"] * 362 / 181)


@pytest.mark.parametrize("gpu", ["", "Some other GPU"])
def test_what_is_not_known_has_none(gpu: str) -> None:
    assert mfu(flops_per_second=1.0, workers=1, gpu=gpu) is None


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

        def get_encoder(self, modality: str) -> torch.nn.Module:
            return self

    model = Model()
    assert flops_of(model) == Flops(per_token=6 * (8 * 8 + 8), per_pixel_value=0)
    model.body.bias.requires_grad_(False)
    assert flops_of(model).per_token == 6 * 8 * 8 + 4 * 8, "a frozen weight has no gradient"


def test_patches_are_counted_at_their_number() -> None:
    """Qwen2-VL-2B and a prompt of 600 tokens, 520 of them of an image, which has four times as
    many patches: the weights by what passes them.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151_936,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    found = flops_of(model).of(tokens=600, pixel_values=4 * 520 * 1176)
    assert found == pytest.approx(12.7e12, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_tower_that_patches_pass(name: str) -> None:
    model, _ = FAMILIES[name].build()
    found = flops_of(model)
    tower = model.get_encoder(modality="image")
    text = 6 * sum(weight.numel() for weight in model.parameters()) - found.per_token
    assert found.per_pixel_value > 0
    assert text > 6 * sum(
        weight.numel() for name, weight in tower.named_parameters() if "merger" not in name
    ), "the tower's weights and the embeddings are not of the tokens"
