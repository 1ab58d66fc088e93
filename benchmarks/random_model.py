"""Qwen2-VL of random weights in a given size, whose replies never end early: what a benchmark asks
and trains.

    python benchmarks/random_model.py qwen2-vl-7b FOLDER cuda
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from demo_pair.models import (
    END,
    IMAGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    build_processor,
    train_tokenizer,
)
from mpa_ray.tasks import prompts

_PATCH = 14
# So that the words of our prompts are about as many tokens as in a published tokenizer.
_CORPUS = [
    prompts.PREAMBLE,
    prompts.ANSWERING,
    prompts.SCENE_TEXT,
    prompts.CHART,
    prompts.WORLD_KNOWLEDGE,
    "user assistant",
] * 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and the side in pixels of the square images it is asked about: (side / 28) squared
    tokens each. `head` and `vision_head` are the widths of a head; of the language model's heads,
    half are key-value heads unless `kv_heads` says otherwise.
    """

    hidden: int
    inner: int
    layers: int
    vision_hidden: int
    vision_layers: int
    side: int
    vocabulary: int = 1024
    head: int = 64
    kv_heads: int | None = None
    vision_head: int = 64
    tied: bool = False


SIZES = {
    # 36 million parameters, 256 image tokens.
    "prefill": Size(hidden=512, inner=1536, layers=8, vision_hidden=384, vision_layers=6, side=448),
    # 1 million parameters, 16 image tokens.
    "overhead": Size(hidden=128, inner=384, layers=3, vision_hidden=128, vision_layers=2, side=112),
    # 24 million parameters, 64 image tokens.
    "training": Size(
        hidden=256,
        inner=768,
        layers=6,
        vision_hidden=192,
        vision_layers=4,
        side=224,
        vocabulary=32_000,
    ),
    # As published: 2.2 and 8.3 billion parameters; 484 image tokens, about those of a photo.
    "qwen2-vl-2b": Size(
        hidden=1536,
        inner=8960,
        layers=28,
        vision_hidden=1280,
        vision_layers=32,
        side=616,
        vocabulary=151_936,
        head=128,
        kv_heads=2,
        vision_head=80,
        tied=True,
    ),
    "qwen2-vl-7b": Size(
        hidden=3584,
        inner=18_944,
        layers=28,
        vision_hidden=1280,
        vision_layers=32,
        side=616,
        vocabulary=152_064,
        head=128,
        kv_heads=4,
        vision_head=80,
    ),
}


def build(size: Size, folder: Path, *, device: str = "cpu") -> Path:
    """Writes the model to `folder` in the Hugging Face layout, in bf16. On a GPU, billions of
    weights are drawn in seconds.
    """
    tokenizer = train_tokenizer(_CORPUS, size=size.vocabulary)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(
            config(size, tokenizer), dtype=torch.bfloat16
        )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=1.0 / weight.shape[1] ** 0.5)
        # No reply ends before it is cut: a logit of 0 is never the largest of a thousand.
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(END)] = 0
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    model.save_pretrained(folder)
    build_processor(tokenizer, max_pixels=size.side**2, patch_size=_PATCH).save_pretrained(folder)
    return folder


def config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """The configuration of a model of that size."""
    token_id = tokenizer.convert_tokens_to_ids
    heads = size.hidden // size.head
    return Qwen2VLConfig(
        text_config={
            "vocab_size": max(size.vocabulary, len(tokenizer)),
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": size.kv_heads or max(1, heads // 2),
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [size.head // 8, 3 * size.head // 16, 3 * size.head // 16],
                "rope_theta": 1000000.0,
            },
            "tie_word_embeddings": size.tied,
            "bos_token_id": token_id(PAD),
            "eos_token_id": token_id(END),
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_hidden,
            "hidden_size": size.hidden,
            "num_heads": size.vision_hidden // size.vision_head,
            "mlp_ratio": 4,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=token_id(IMAGE),
        video_token_id=token_id(VIDEO),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=size.tied,
    )


if __name__ == "__main__":
    build(SIZES[sys.argv[1]], Path(sys.argv[2]), device=sys.argv[3])
