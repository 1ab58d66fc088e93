"""The demo's models: their shared tokenizer and processor, their two sizes, how their weights
start, and asking them with transformers.

Both are plain Qwen2-VL, so transformers and vLLM load their folders like any other checkpoint.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mpa_ray.demo.facts import COLORS, SHAPES
from mpa_ray.demo.questions import PLAIN_WORDINGS, WORDINGS
from mpa_ray.tasks import prompts

# Pixels. A 96x96 image has 64 patches, merged by fours into 16 tokens for the language model.
PATCH = 12
MERGE = 2  # patches a side

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_TOKENS = [PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO]

# Each of these is one token: to spell them out, the language model would read dozens of tokens that
# never tell it anything.
INSTRUCTION = prompts.ANSWERING.removesuffix("{question}")
ANNOTATION_PROMPTS = (
    prompts.SCENE_TEXT,
    prompts.CHART,
    prompts.WORLD_KNOWLEDGE,
    prompts.PATHOLOGY_YES_NO,
)

# Qwen2-VL's own form without its default system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part"
    " %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Depths and widths; both models are 64 wide throughout, with two heads and one key-value
    head.
    """

    layers: int
    inner: int
    vision_layers: int
    vision_mlp_ratio: int


SIZES = {
    "lvlm": Size(layers=3, inner=192, vision_layers=3, vision_mlp_ratio=4),
    "svlm": Size(layers=2, inner=128, vision_layers=2, vision_mlp_ratio=3),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """About 500 tokens, the same ones for both models.

    They come of the plain wordings alone: other wordings fall into pieces that the S-VLM has met,
    not into tokens it never saw.
    """
    return train_tokenizer(_tokenizer_corpus(), size=512, words=(INSTRUCTION, *ANNOTATION_PROMPTS))


def train_tokenizer(
    corpus: Iterable[str], *, size: int, words: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` tokens; `words` are further tokens, whole."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=5,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def _tokenizer_corpus() -> Iterator[str]:
    for wordings in WORDINGS.values():
        for place in PLAIN_WORDINGS:
            for color in COLORS:
                question = wordings[place].format(color=color)
                yield f"{question} Question: {question}, Answer: {color} user\n assistant\n"
    for word in (*COLORS, *SHAPES, "Yes", "No", "user", "assistant", "system"):
        yield f"{word} {word} " * 8


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, max_pixels: int = 112**2, patch_size: int = PATCH
) -> Qwen2VLProcessor:
    """Images are brought between (4 patches)^2 and `max_pixels` pixels; by default a 96x96 image
    passes through unresized.
    """
    vision = {
        "min_pixels": (4 * patch_size) ** 2,
        "max_pixels": max_pixels,
        "patch_size": patch_size,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**vision),
        tokenizer=tokenizer,
        # No video is ever shown, but neither transformers nor vLLM loads a Qwen2-VL processor
        # without it.
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    size: Size, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Qwen2VLForConditionalGeneration:
    """An untrained Qwen2-VL of that size, in fp32."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(_config(size, tokenizer)).float()
    _initialize(model)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    return model


def _config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    token_id = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            # Half a head (16 frequencies) split over time, height and width, as in the large
            # Qwen2-VL (16, 24, 24 of 64). The base is small because so are the positions: a prompt
            # has some 60 tokens.
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 1000.0,
            },
            "tie_word_embeddings": True,
            "bos_token_id": token_id(PAD),
            "eos_token_id": token_id(END),
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": size.vision_mlp_ratio,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=token_id(IMAGE),
        video_token_id=token_id(VIDEO),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=True,
    )


@torch.no_grad()
def _initialize(model: nn.Module) -> None:
    """Scale by fan-in: Qwen2-VL's standard deviation of 0.02 is meant for widths of thousands, and
    at 64 nothing gets through.

    What is added to the residual stream starts at half of that.
    """
    for name, weight in model.named_parameters():
        if weight.dim() != 2:
            continue
        nn.init.normal_(weight, std=0.05 if "embed" in name else 0.7 / weight.shape[1] ** 0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
            weight.mul_(0.5)


def save(
    model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write the model in bf16, with everything AutoProcessor and vLLM need beside it."""
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)


@torch.inference_mode()
def reply(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 128,
) -> list[str]:
    """What the model says to each (image, text), through the chat template. Temperature 0 is
    greedy; above, torch's seed decides.
    """
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature
        else {"do_sample": False}
    )
    replies = []
    for start in range(0, len(images), batch_size):
        shown = list(images[start : start + batch_size])
        said = [_chat(processor, text) for text in texts[start : start + batch_size]]
        inputs = processor(
            images=shown, text=said, padding=True, padding_side="left", return_tensors="pt"
        )
        generated = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        replies += processor.batch_decode(
            generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return replies


def _chat(processor: Qwen2VLProcessor, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
