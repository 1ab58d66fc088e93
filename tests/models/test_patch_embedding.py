"""Patch embeddings as matrix products: the same model, its names included, without a Conv3d."""

from typing import Any

import pytest

from mpa_ray.models.patch_embedding import as_matrix_products
from tests.families import FAMILIES, spread

CUT_BY_THE_PROCESSOR = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


def _convolution(**changes: Any) -> Any:
    import torch

    torch.manual_seed(0)
    kernel = {"kernel_size": (2, 14, 14), "stride": (2, 14, 14)}
    return torch.nn.Conv3d(3, 128, **(kernel | changes))


def _gradients(layer: Any, pixels: Any) -> tuple[Any, list[Any]]:
    import torch

    given = layer(pixels)
    return given, list(torch.autograd.grad(given.float().pow(2).sum(), list(layer.parameters())))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_patch_embedding_gives_what_the_convolution_gives(bias: bool, dtype: str) -> None:
    import torch

    convolution = _convolution(bias=bias).to(getattr(torch, dtype))
    product = _convolution(bias=bias).to(getattr(torch, dtype))
    as_matrix_products(product)
    assert product.state_dict().keys() == convolution.state_dict().keys()
    pixels = torch.randn(256, 3, 2, 14, 14, dtype=getattr(torch, dtype))
    wanted, wanted_gradients = _gradients(convolution, pixels)
    found, found_gradients = _gradients(product, pixels)
    near = {"rtol": 0.02, "atol": 0.02} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, wanted, **near)
    for gradient, expected in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(
            gradient / expected.abs().max(),
            expected / expected.abs().max(),
            rtol=0,
            atol=near["atol"],
        )


@pytest.mark.parametrize(
    "changes", [{"stride": 1}, {"padding": 1}, {"dilation": 2}, {"stride": (2, 14, 7)}]
)
def test_another_convolution_stays_one(changes: dict[str, Any]) -> None:
    import torch

    convolution, same = _convolution(**changes), _convolution(**changes)
    as_matrix_products(same)
    pixels = torch.randn(1, 3, 4, 28, 28)
    assert torch.equal(same(pixels), convolution(pixels))


def test_an_image_that_is_not_cut_is_convolved() -> None:
    import torch

    convolution, same = _convolution(), _convolution()
    as_matrix_products(same)
    pixels = torch.randn(2, 3, 4, 28, 42)
    assert same(pixels).shape == (2, 128, 2, 2, 3)
    assert torch.equal(same(pixels), convolution(pixels))


@pytest.mark.parametrize("name", CUT_BY_THE_PROCESSOR)
def test_a_family_needs_no_conv3d(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    model, processor = FAMILIES[name].build()
    spread(model)
    names = list(model.state_dict())
    token = processor.image_token_id
    grid = torch.tensor([[1, 4, 4]])
    patch = model.config.vision_config.patch_size
    inputs = {
        "input_ids": torch.tensor([[90, *[token] * 4, 91]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 1, 1, 1, 0]]),
        "pixel_values": torch.randn(16, 3 * 2 * patch * patch),
        "image_grid_thw": grid,
    }
    with torch.no_grad():
        wanted = model(**inputs).logits
        as_matrix_products(model)
        monkeypatch.setattr(torch.nn.functional, "conv3d", None)
        found = model(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert list(model.state_dict()) == names
