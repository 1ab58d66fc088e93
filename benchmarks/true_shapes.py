"""The paper's S-VLMs in their true shape with random weights, and batches for them without a
tokenizer: for figures that need torch and transformers and nothing else.

A shape is what the published configuration says of widths, depths, vocabulary and tiles; memory and
arithmetic depend on nothing else. InternVL2-4B's fused projections stand as Llama's, which have the
same sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Tensors = dict[str, Any]

# A question and an answer, beside the image.
TEXT_TOKENS, ANSWER_TOKENS = 64, 8
# Ids that mean something. The others are drawn above them.
_IMAGE, _PAD, _END, _START, _FIRST_WORD = 0, 1, 2, 3, 8


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A stack of transformer layers: the language model or the vision tower."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its images.

    Attributes:
        kind: which of `_KINDS` builds it.
        side: of a tile, in pixels.
        patch: pixels a side.
        merge: patches a side that become one token.
        tiles: how many an image may become; the last is the most.
        tied: whether the head's weights are those of the input embeddings.
    """

    kind: str
    text: Tower
    vision: Tower
    vocabulary: int
    side: int
    patch: int
    merge: int
    tiles: tuple[int, ...]
    tied: bool = False

    @property
    def patches(self) -> int:
        """Of a tile."""
        return (self.side // self.patch) ** 2

    @property
    def tile_tokens(self) -> int:
        """What the language model sees of a tile."""
        return (self.side // self.patch // self.merge) ** 2


_INTERN_VIT = Tower(hidden=1024, inner=4096, layers=24, heads=16)
SHAPES = {
    # 484 tokens an image, about what max_pixels makes of a photo.
    "Qwen2-VL-2B": Shape(
        kind="qwen2_vl",
        text=Tower(hidden=1536, inner=8960, layers=28, heads=12, kv_heads=2),
        vision=Tower(hidden=1280, inner=5120, layers=32, heads=16),
        vocabulary=151_936,
        side=616,
        patch=14,
        merge=2,
        tiles=(1,),
        tied=True,
    ),
    # A square image is one tile, a photo of 4:3 twelve and a thumbnail.
    "InternVL2-2B": Shape(
        kind="internvl",
        text=Tower(hidden=2048, inner=8192, layers=24, heads=16, kv_heads=8),
        vision=_INTERN_VIT,
        vocabulary=92_553,
        side=448,
        patch=14,
        merge=2,
        tiles=(1, 7, 13),
    ),
    "InternVL2-4B": Shape(
        kind="internvl",
        text=Tower(hidden=3072, inner=8192, layers=32, heads=32, kv_heads=32),
        vision=_INTERN_VIT,
        vocabulary=32_020,
        side=448,
        patch=14,
        merge=2,
        tiles=(1, 7, 13),
    ),
    "SmolVLM-500M": Shape(
        kind="idefics3",
        text=Tower(hidden=960, inner=2560, layers=32, heads=15, kv_heads=5),
        vision=Tower(hidden=768, inner=3072, layers=12, heads=12),
        vocabulary=49_280,
        side=512,
        patch=16,
        merge=4,
        tiles=(1, 13, 17),
    ),
    "TinyLLaVA-2B": Shape(
        kind="llava",
        text=Tower(hidden=2048, inner=5632, layers=24, heads=32, kv_heads=32),
        vision=Tower(hidden=1152, inner=4304, layers=27, heads=16),
        vocabulary=100_352,
        side=384,
        patch=14,
        merge=1,
        tiles=(1,),
    ),
}


def tiny(shape: Shape) -> Shape:
    """The same architecture and tiles, narrow and a few layers deep: for a CPU."""
    narrow = {"hidden": 64, "inner": 128, "layers": 4, "heads": 2}
    return replace(
        shape,
        text=Tower(**narrow, kv_heads=1),
        vision=Tower(**narrow),
        vocabulary=512,
        side=shape.patch * shape.merge * 4,
    )


def build(shape: Shape, *, device: str, dtype: Any) -> Any:
    """The model, made where it is used: random weights of the library's own spread."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(_KINDS[shape.kind](shape), dtype=dtype)
    return model.train()


def batch(shape: Shape, *, samples: int, tiles: int, device: str, dtype: Any) -> Tensors:
    """`samples` images of `tiles` tiles each, a question after each, and an answer at its end: what
    a processor and the collator would give.

    Returns:
        `input_ids` and `attention_mask` of shape (samples, tokens), and the image tensors.
    """
    import torch

    image = tiles * shape.tile_tokens
    torch.manual_seed(0)
    words = torch.randint(_FIRST_WORD, shape.vocabulary, (samples, TEXT_TOKENS + ANSWER_TOKENS))
    # An image begins after a token that says so.
    start = torch.full((samples, 1), _START)
    ids = torch.cat([start, torch.full((samples, image), _IMAGE), words], dim=1)
    tile = (3, shape.side, shape.side)
    tensors: Tensors
    if shape.kind == "qwen2_vl":
        across = shape.side // shape.patch
        tensors = {
            "pixel_values": torch.randn(samples * shape.patches, 3 * 2 * shape.patch**2),
            "image_grid_thw": torch.tensor([[1, across, across]] * samples),
            "mm_token_type_ids": (ids == _IMAGE).int(),
        }
    elif shape.kind == "idefics3":
        tensors = {"pixel_values": torch.randn(samples, tiles, *tile)}
    else:
        tensors = {"pixel_values": torch.randn(samples * tiles, *tile)}
    tensors |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in tensors.items()
    }


def loss(model: Any, given: Tensors) -> Any:
    """The negative log likelihood of the answers. The head is computed for their positions alone,
    as the Parity Leveler does.
    """
    import torch

    kept = model(**given, logits_to_keep=ANSWER_TOKENS + 1, use_cache=False).logits[:, :-1]
    answers = given["input_ids"][:, -ANSWER_TOKENS:]
    return torch.nn.functional.cross_entropy(kept.flatten(0, 1).float(), answers.flatten())


def _text(shape: Shape, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.text.hidden,
        "intermediate_size": shape.text.inner,
        "num_hidden_layers": shape.text.layers,
        "num_attention_heads": shape.text.heads,
        "num_key_value_heads": shape.text.kv_heads,
        "max_position_embeddings": 8192,
        "pad_token_id": _PAD,
        "bos_token_id": _END,
        "eos_token_id": _END,
        **more,
    }


def _vision(shape: Shape, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": shape.vision.hidden,
        "intermediate_size": shape.vision.inner,
        "num_hidden_layers": shape.vision.layers,
        "num_attention_heads": shape.vision.heads,
        "image_size": shape.side,
        "patch_size": shape.patch,
        **more,
    }


def _qwen2_vl(shape: Shape) -> Any:
    from transformers import Qwen2VLConfig

    head = shape.text.hidden // shape.text.heads
    rope = {
        "rope_type": "default",
        "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
        "rope_theta": 1e6,
    }
    vision = {
        "depth": shape.vision.layers,
        "embed_dim": shape.vision.hidden,
        "hidden_size": shape.text.hidden,
        "num_heads": shape.vision.heads,
        "mlp_ratio": shape.vision.inner // shape.vision.hidden,
        "patch_size": shape.patch,
        "spatial_merge_size": shape.merge,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }
    return Qwen2VLConfig(
        text_config=_text(shape, rope_parameters=rope, tie_word_embeddings=shape.tied),
        vision_config=vision,
        image_token_id=_IMAGE,
        video_token_id=_FIRST_WORD - 1,
        vision_start_token_id=_START,
        vision_end_token_id=_START + 1,
        tie_word_embeddings=shape.tied,
    )


def _internvl(shape: Shape) -> Any:
    from transformers import InternVLConfig

    square = {
        "image_size": [shape.side, shape.side],
        "patch_size": [shape.patch, shape.patch],
        "attention_bias": True,
    }
    return InternVLConfig(
        text_config=_text(shape, model_type="llama"),
        vision_config=_vision(shape) | square,
        image_token_id=_IMAGE,
        image_seq_length=shape.tile_tokens,
        tie_word_embeddings=shape.tied,
    )


def _idefics3(shape: Shape) -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        text_config=_text(shape),
        vision_config=_vision(shape),
        image_token_id=_IMAGE,
        pad_token_id=_PAD,
        scale_factor=shape.merge,
        tie_word_embeddings=shape.tied,
    )


def _llava(shape: Shape) -> Any:
    from transformers import LlavaConfig

    stablelm = {"model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.25}
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return LlavaConfig(
        text_config=_text(shape, **stablelm),
        vision_config=_vision(shape, **siglip),
        image_token_index=_IMAGE,
        image_seq_length=shape.tile_tokens,
        vision_feature_select_strategy="full",
        pad_token_id=_PAD,
    )


_KINDS: dict[str, Callable[[Shape], Any]] = {
    "qwen2_vl": _qwen2_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "llava": _llava,
}
