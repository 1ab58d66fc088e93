"""Tokens of an image by family: as transformers' and vLLM's own functions count them."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, write
from PIL import Image

from mpa_ray import demo, engines
from mpa_ray.config import ModelSection
from mpa_ray.models.image_tokens import (
    ImageTokens,
    image_tokens,
    largest_image,
    processor_settings,
)
from mpa_ray.models.size import size_of

MAX_PIXELS = 512 * 28 * 28
# Photographs within MAX_PIXELS, pages, a strip, and small ones.
SHAPES = [
    (731, 548),
    (548, 731),
    (776, 517),
    (1000, 400),
    (633, 633),
    (317, 1266),
    (96, 96),
    (60, 40),
]

QWEN2_VL = {"model_type": "qwen2_vl", "vision_config": {"depth": 32, "embed_dim": 1280}}
QWEN3_VL = {"model_type": "qwen3_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}
INTERNVL3 = {
    "model_type": "internvl",
    "image_seq_length": 256,
    "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
}
INTERNVL2 = {
    "model_type": "internvl_chat",
    "max_dynamic_patch": 12,
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "vision_config": {"image_size": 448, "patch_size": 14},
}
SMOLVLM = {"model_type": "idefics3", "scale_factor": 4, "vision_config": {"patch_size": 16}}
SMOLVLM_SIZES = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}}
TINYLLAVA = {
    "model_type": "llava",
    "vision_feature_select_strategy": "full",
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
}


@pytest.mark.parametrize(
    ("config", "processor", "tokens", "patches"),
    [
        (QWEN2_VL, {}, 533, 2132),
        (QWEN2_VL, {"max_pixels": 256 * 28 * 28}, 255, 1020),
        (QWEN3_VL, {}, 408, 1632),
        # 12 tiles and the whole image, 256 tokens and 1,024 patches each, and two around them.
        (INTERNVL2, {}, 3330, 13312),
        (INTERNVL2, {"max_dynamic_patch": 6}, 1794, 7168),
        (INTERNVL3, {}, 3330, 13312),
        (INTERNVL3, {"max_patches": 4}, 1282, 5120),
        (INTERNVL3, {"crop_to_patches": False}, 258, 1024),
        # 4 x 4 tiles and the whole image, 64 tokens each, and those between them.
        (SMOLVLM, SMOLVLM_SIZES, 1128, 17408),
        (SMOLVLM, SMOLVLM_SIZES | {"size": {"longest_edge": 1024}}, 334, 5120),
        (SMOLVLM, SMOLVLM_SIZES | {"do_image_splitting": False}, 67, 1024),
        (LLAVA, {}, 576, 576),
        (TINYLLAVA, {}, 729, 729),
        # Of an unknown family, whose settings mean what we do not know: as Qwen2-VL.
        ({"model_type": "of_tomorrow"}, {"size": 336}, 533, 2132),
        ({"model_type": "of_tomorrow"}, {"size": {"longest_edge": 1540}}, 533, 2132),
    ],
)
def test_the_largest_image_of_published_models(
    config: dict[str, Any], processor: dict[str, Any], tokens: int, patches: int
) -> None:
    found = largest_image(config, processor, max_pixels=MAX_PIXELS)
    assert (found.tokens, found.patches) == (tokens, patches)


@pytest.mark.parametrize(
    "options", [{}, {"max_pixels": 200704}, {"min_pixels": 50176}], ids=["all", "most", "least"]
)
def test_qwen2_vl_as_transformers_counts(options: dict[str, int]) -> None:
    from transformers import Qwen2VLImageProcessor

    theirs = Qwen2VLImageProcessor(**({"max_pixels": 12845056, "min_pixels": 3136} | options))
    settings = {"size": dict(theirs.size)}
    for width, height in SHAPES:
        patches = theirs.get_number_of_image_patches(height, width)
        found = image_tokens(QWEN2_VL, settings, width, height)
        assert (found.patches, found.tokens) == (patches, patches // 4), (width, height)


@pytest.mark.parametrize("most", [1, 4, 6, 12])
def test_internvl_as_transformers_and_vllm_count(most: int) -> None:
    from transformers import GotOcr2ImageProcessor

    theirs = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, max_patches=most)
    for width, height in SHAPES:
        tiles = theirs.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        new = image_tokens(INTERNVL3, {"max_patches": most}, width, height)
        old = image_tokens(INTERNVL2, {"max_dynamic_patch": most}, width, height)
        assert new == old and new.tokens == 256 * tiles + 2, (width, height)
        if engines.vllm_is_installed():
            assert old.tokens == 2 + 256 * _tiles_of_vllm(width, height, most), (width, height)


def _tiles_of_vllm(width: int, height: int, most: int) -> int:
    """As its processor of the authors' layout cuts: the tiles, and the whole image."""
    from vllm.transformers_utils.processors.internvl import (
        calculate_internvl_targets,
        get_internvl_target_ratios,
    )

    tiles, _, _ = calculate_internvl_targets(
        orig_width=width,
        orig_height=height,
        target_ratios=get_internvl_target_ratios(1, most),
        image_size=448,
        use_thumbnail=True,
    )
    return int(tiles)


@pytest.mark.parametrize("longest", [512, 1024, 1536, 2048])
def test_smolvlm_as_transformers_counts(longest: int) -> None:
    from transformers import Idefics3ImageProcessor

    sizes = SMOLVLM_SIZES | {"size": {"longest_edge": longest}}
    theirs = Idefics3ImageProcessor(**sizes)
    for width, height in SHAPES:
        tiles, rows, columns = theirs.get_number_of_image_patches(height, width)
        found = image_tokens(SMOLVLM, sizes, width, height)
        assert found.patches == max(1, tiles) * 32 * 32, (width, height)
        assert found.tokens - 64 * max(1, tiles) == rows * (2 * columns + 1) + (4 if rows else 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_as_vllm_counts(name: str, tmp_path: Path) -> None:
    """Images through vLLM's processor of the family's tiny model: what they take in a prompt and
    what the vision tower gets.
    """
    if not engines.vllm_is_installed():
        pytest.skip("vLLM is not installed here")
    family = FAMILIES[name]
    folder = write(family, tmp_path)
    options = {"mm_processor_kwargs": family.processor_options or None}
    shapes = [(73, 54), (54, 73), (100, 40), (96, 96), (40, 130)]
    config = json.loads((folder / "config.json").read_text())
    section = ModelSection(model=str(folder), processor_options=family.processor_options)
    files = [json.loads((folder / "processor_config.json").read_text())]
    settings = processor_settings(files, family.processor_options)
    largest = size_of(section).image  # type: ignore[union-attr]
    for shape, (tokens, values) in zip(shapes, _by_vllm(folder, shapes, options), strict=True):
        found = image_tokens(config, settings, *shape)
        # A tokenizer makes one or two tokens of the line breaks before SmolVLM's whole image.
        assert tokens <= found.tokens <= tokens + 1, shape
        assert found.values == values, shape
        assert found.tokens <= largest.tokens, shape


def _by_vllm(
    folder: Path, shapes: list[tuple[int, int]], options: dict[str, Any]
) -> list[tuple[int, int]]:
    """Tokens of the prompt, and numbers for the vision tower, of an image of each shape."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing.context import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    config = EngineArgs(model=str(folder), max_model_len=2048, **options).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    text = processor.dummy_inputs.get_dummy_text({"image": 1})
    prompt = processor.info.get_tokenizer().encode(text)
    found = []
    for shape in shapes:
        items = processor.info.parse_mm_data({"image": [Image.new("RGB", shape)]})
        inputs = ProcessorInputs(prompt=prompt, mm_data_items=items)
        made = processor.apply(inputs, TimingContext(enabled=False))
        (place,) = made["mm_placeholders"]["image"]
        (item,) = made["mm_kwargs"]["image"]
        values = item.get_data()
        found.append((place.length, values["pixel_values"].numel()))
    return found


def test_a_checkpoint_s_own_bounds_count() -> None:
    """The embedded L-VLM's processor takes no more than 12,544 pixels."""
    size = size_of(ModelSection(model=str(demo.LVLM)))
    assert size is not None and size.image == ImageTokens(tokens=21, patches=84, values=72576)


def test_a_name_tells_the_family() -> None:
    size = size_of(ModelSection(model="OpenGVLab/InternVL2-8B"))
    assert size is not None and size.image.tokens == 3330
