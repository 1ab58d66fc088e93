"""Tiny models of random weights in the true architecture of each S-VLM family: configuration,
tokenizer, processor and chat template.

Sizes are the smallest that keep each family's own traits (tiles, window attention, deepstack, a
tower of another width). The chat templates are the published ones; where those have branches for
videos and tools, these branches are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

_QWEN2_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and"
    " message['role'] != 'system' %}"
    "<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if"
    " message['content'] is string %}"
    "{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{"
    " image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text']"
    " }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN3_TEMPLATE = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content +"
    " '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in"
    " message.content %}"
    "{%- if content.type == 'image' or 'image' in content or 'image_url' in content"
    " %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{-"
    " '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if"
    " message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in"
    " message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] =="
    " 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if"
    " add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if"
    " message['content'] is string %}{{ message['content'] }}{% else %}{% for content in"
    " message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif"
    " content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif"
    " %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'"
    " }}{% endif %}"
)
# llava-hf's. It ends no reply: what stops the model is the end token that training appends.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() +"
    " ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{"
    " '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] |"
    " selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto',"
    " 'text') %}{% generation %}"
    "{{ content['text'] + ' '}}"
    "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{"
    " 'ASSISTANT:' }}{% endif %}"
)

_CORPUS = [
    "user system assistant User: Assistant: USER: ASSISTANT: You are a helpful assistant. Question:"
    " Answer: Yes No red green blue circle square",
    "Answer the following question in a single word or phrase.\n What color is the sign? What does"
    " it say? How many shapes are there? Is it closed?",
] * 4

_LLAMA_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
_QWEN_VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's tiny model is made.

    Attributes:
        build: gives the model and its processor.
        image_tokens: what a 96 x 96 image becomes with those processor_options, without the tokens
            around it.
        processor_options: passed to the processor wherever it is used.
        settings: further ones of the model's section.
        published_names: a part of weights' names as transformers 5 gives them to a new model, and
            as they are published, which vLLM knows.
    """

    build: Callable[[], tuple[Any, Any]]
    image_tokens: int
    processor_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    published_names: tuple[str, str] = ("", "")


def write(family: Family, folder: Path) -> Path:
    """The family's model in `folder`, in the Hugging Face layout."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model, processor = family.build()
    spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {
        name.replace(*family.published_names, 1): weight for name, weight in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def spread(model: Any) -> None:
    """Weights scaled by fan-in: at 0.02 and these widths every token gets the same logits, and a
    greedy reply would be decided by rounding.
    """
    import torch

    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.0 / weight.shape[1] ** 0.5)


def byte_level(special: list[str], **names: Any) -> Any:
    """A byte-level BPE, as Qwen and SmolLM2 have."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=448, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama_like(special: list[str], *, prefix_space: bool, **names: Any) -> Any:
    """A BPE over word marks with byte fallback, as Llama has: it puts <s> in front of whatever it
    reads.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        tokenizer_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if prefix_space else "never"
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names_of_bytes = [f"<0x{value:02X}>" for value in range(256)]
    reserved = ["<unk>", "<s>", "</s>", *names_of_bytes, *special]
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=512, special_tokens=reserved, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **names
    )


def _ends(model: Any, *tokens: int, **generation: Any) -> None:
    """What a published generation_config.json says."""
    model.generation_config.eos_token_id = list(tokens) if len(tokens) > 1 else tokens[0]
    for name, value in generation.items():
        setattr(model.generation_config, name, value)


def _qwen_tokenizer() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_QWEN_VISION_TOKENS]
    return byte_level(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    named = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            _QWEN_VISION_TOKENS,
            strict=True,
        )
    )
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}


def _qwen_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1000000.0}
    return _LLAMA_TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope} | ids | more


def _qwen_processor(
    processor: Any, tokenizer: Any, video: Any, *, patch: int, template: str
) -> Any:
    from transformers import Qwen2VLImageProcessor

    vision = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": (2 * patch) ** 2, "longest_edge": (8 * patch) ** 2},
    }
    return processor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=video(**vision),
        chat_template=template,
    )


def _qwen2_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
    }
    text = _qwen_text(tokenizer, tie_word_embeddings=True)
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **_qwen_ids(tokenizer)
    )
    model = Qwen2VLForConditionalGeneration(config)
    # As published with Qwen2-VL: drawn unless asked otherwise, and two tokens end a reply.
    _ends(
        model,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.001,
    )
    return model, _qwen_processor(
        Qwen2VLProcessor, tokenizer, Qwen2VLVideoProcessor, patch=14, template=_QWEN2_TEMPLATE
    )


def _qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 64,
    }
    vision |= {"window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(tokenizer, tie_word_embeddings=True),
        vision_config=vision,
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _ends(
        model,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.000001,
        repetition_penalty=1.05,
    )
    return model, _qwen_processor(
        Qwen2_5_VLProcessor, tokenizer, Qwen2VLVideoProcessor, patch=14, template=_QWEN2_TEMPLATE
    )


def _qwen3_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
    }
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope = {
        "rope_type": "default",
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
        "rope_theta": 5000000.0,
    }
    text = _qwen_text(tokenizer, head_dim=32, rope_parameters=rope, tie_word_embeddings=True)
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **_qwen_ids(tokenizer)
    )
    model = Qwen3VLForConditionalGeneration(config)
    _ends(
        model,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
    )
    return model, _qwen_processor(
        Qwen3VLProcessor, tokenizer, Qwen3VLVideoProcessor, patch=16, template=_QWEN3_TEMPLATE
    )


def _smol_tokenizer() -> Any:
    around = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
    }
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *around, *tiles], **names)


def _smol_config(config: Any, tokenizer: Any) -> Any:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = _LLAMA_TEXT | {
        "vocab_size": len(tokenizer),
        "pad_token_id": pad,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return config(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=pad,
        scale_factor=2,
    )


# SmolVLM's tiles are 512 pixels a side and its images 2048; 16 times smaller here. A tile becomes
# (32 / 8 / 2) squared = 4 tokens.
_SMOL_SIZES = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}}


def _smolvlm() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer = _smol_tokenizer()
    model = Idefics3ForConditionalGeneration(_smol_config(Idefics3Config, tokenizer))
    _ends(model, tokenizer.eos_token_id)
    image = Idefics3ImageProcessor(**_SMOL_SIZES)
    return model, Idefics3Processor(
        image_processor=image, tokenizer=tokenizer, image_seq_len=4, chat_template=_SMOLVLM_TEMPLATE
    )


def _smolvlm2() -> tuple[Any, Any]:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = _smol_tokenizer()
    model = SmolVLMForConditionalGeneration(_smol_config(SmolVLMConfig, tokenizer))
    _ends(model, tokenizer.eos_token_id)
    video = SmolVLMVideoProcessor(
        **_SMOL_SIZES,
        video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}},
    )
    image = SmolVLMImageProcessor(**_SMOL_SIZES)
    return model, SmolVLMProcessor(
        image_processor=image,
        tokenizer=tokenizer,
        video_processor=video,
        image_seq_len=4,
        chat_template=_SMOLVLM_TEMPLATE,
    )


_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _internvl(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    """A tile is 28 pixels a side here (448 in the published ones) and becomes (28 / 7 / 2) squared
    = 4 tokens.
    """
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [28, 28],
        "patch_size": [7, 7],
    }
    vision |= {"attention_bias": True}
    image_token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_token,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    _ends(model, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=12),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=_INTERNVL_TEMPLATE,
    )
    return model, processor


def _internvl2() -> tuple[Any, Any]:
    """InternVL2-2B and -8B in the transformers layout: InternLM2 becomes a Llama, and <|im_end|>
    ends a reply where the tokenizer says </s>.
    """
    special = ["<|im_start|>", "<|im_end|>", *_INTERNVL_TOKENS.values()]
    tokenizer = llama_like(
        special, prefix_space=False, pad_token="</s>", extra_special_tokens=_INTERNVL_TOKENS
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    return _internvl(
        tokenizer,
        _LLAMA_TEXT | ids | {"model_type": "llama", "vocab_size": len(tokenizer), "head_dim": 32},
    )


def _internvl3() -> tuple[Any, Any]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_INTERNVL_TOKENS.values()]
    tokenizer = byte_level(
        special,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_INTERNVL_TOKENS,
    )
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return _internvl(tokenizer, _LLAMA_TEXT | text)


def _llava(
    text: dict[str, Any],
    vision: dict[str, Any],
    tokenizer: Any,
    *,
    strategy: str,
    template: str | None,
    image_processor: Any,
) -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    vision |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 42,
        "patch_size": 14,
    }
    config = LlavaConfig(
        text_config=_LLAMA_TEXT | {"vocab_size": len(tokenizer)} | text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
        vision_feature_select_strategy=strategy,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
        chat_template=template,
    )
    return model, processor


def _tinyllava() -> tuple[Any, Any]:
    """bczhou/tiny-llava-v1-hf: CLIP and TinyLlama. It was published before processors had chat
    templates, and with settings that only sampling uses.
    """
    from transformers import CLIPImageProcessor

    tokenizer = llama_like(["<image>", "<pad>"], prefix_space=True, pad_token="<pad>")
    ids = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    image = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    model, processor = _llava(
        ids,
        {"model_type": "clip_vision_model"},
        tokenizer,
        strategy="default",
        template=None,
        image_processor=image,
    )
    _ends(model, 2)
    return model, processor


def _tinyllava_stablelm() -> tuple[Any, Any]:
    """TinyLLaVA-2.0B's parts, SigLIP and StableLM-2, in the LLaVA layout."""
    from transformers import SiglipImageProcessor

    tokenizer = byte_level(
        ["<|endoftext|>", "<image>"],
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    text = {
        "model_type": "stablelm",
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    image = SiglipImageProcessor(size={"height": 42, "width": 42})
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    model, processor = _llava(
        text, vision, tokenizer, strategy="full", template=LLAVA_TEMPLATE, image_processor=image
    )
    _ends(model, 0)
    return model, processor


_TOWER = ("vision_tower.", "vision_tower.vision_model.")
FAMILIES = {
    "qwen2-vl": Family(build=_qwen2_vl, image_tokens=9),
    "qwen2.5-vl": Family(build=_qwen2_5_vl, image_tokens=9),
    "qwen3-vl": Family(build=_qwen3_vl, image_tokens=9),
    "smolvlm": Family(
        build=_smolvlm, image_tokens=20, processor_options={"size": {"longest_edge": 64}}
    ),
    "smolvlm2": Family(
        build=_smolvlm2, image_tokens=4, processor_options={"do_image_splitting": False}
    ),
    "internvl2": Family(build=_internvl2, image_tokens=20, processor_options={"max_patches": 4}),
    "internvl3": Family(
        build=_internvl3, image_tokens=4, processor_options={"crop_to_patches": False}
    ),
    "tinyllava": Family(
        build=_tinyllava,
        image_tokens=9,
        settings={"chat_template": LLAVA_TEMPLATE},
        published_names=_TOWER,
    ),
    "tinyllava-2.0b": Family(build=_tinyllava_stablelm, image_tokens=9, published_names=_TOWER),
}

# What a published InternVL2 brings along as configuration code, shortened.
_INTERNVL2_CODE = """
from transformers import PretrainedConfig, Qwen2Config


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_channels, self.image_size, self.patch_size = 3, 28, 7
        self.qkv_bias, self.qk_normalization, self.norm_type = True, False, "layer_norm"
        self.layer_norm_eps, self.initializer_factor, self.hidden_act = 1e-6, 1.0, "gelu"
        self.hidden_size, self.intermediate_size = 64, 96
        self.num_attention_heads, self.num_hidden_layers = 2, 2


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    is_composition = True

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
        self.select_layer, self.force_image_size = -1, 28
        self.downsample_ratio, self.ps_version = 0.5, "v2"
        self.dynamic_image_size, self.use_thumbnail = True, True
        self.min_dynamic_patch, self.max_dynamic_patch = 1, 12
"""
_INTERNVL2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' +"
    " '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_internvl2_as_published(folder: Path) -> Path:
    """InternVL2 in the layout of its authors: custom code for the configuration, a template that
    takes plain text, no processor; without weights.
    """
    import json

    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_INTERNVL2_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    text = _LLAMA_TEXT | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
    }
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "llm_config": text,
        "vision_config": {"model_type": "intern_vit_6b"},
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_internvl_chat.py").write_text(_INTERNVL2_CODE)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": 28, "feature_extractor_type": "CLIPFeatureExtractor", "size": 28})
    )
    return folder
