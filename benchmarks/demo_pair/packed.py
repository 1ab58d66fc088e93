"""A fast training forward over a Qwen2-VL: several conversations share one image and one row.

transformers' own forward takes one conversation a row, so that the image would be read again for
every question, and its shapes change from batch to batch, which torch.compile pays for. Here a row
is

    <|im_start|>user\n<|vision_start|> IMAGE <|vision_end|> question, answer
        <|vision_end|> question, answer ...
    `------------ prefix -----------'  `---- segment ----'  `---- segment ----'

and a block mask lets a segment see the prefix and itself. Positions start over at each segment, so
that each is computed exactly as if it stood alone behind the image; tests hold the two forwards
against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from benchmarks.demo_pair.models import END, MERGE, PATCH, START, VISION_END, VISION_START
from mpa_ray.demo.render import SIDE

GRID = SIDE // PATCH  # patches a side
IMAGE_GRID = GRID // MERGE  # tokens a side, as the language model sees the image

# The constants of CLIP, which Qwen2-VL's image processor normalizes by.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

Exchange = tuple[str, str]  # what the user says after the image, what the model answers


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """B rows of L tokens. `labels` holds at each place the token to predict there, or -100."""

    ids: Tensor  # int64 [B, L]; the image's places hold padding
    positions: Tensor  # int64 [3, B, L]: time, height, width
    mask: Tensor  # bf16 [B, 1, L, L], added to the attention scores
    labels: Tensor  # int64 [B, L]


class PackedForward:
    """Computes the loss of a model's own weights on packed rows of a fixed length."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        *,
        length: int,
    ) -> None:
        self.model = model
        self.length = length
        self._tokenizer = tokenizer
        self._opening = self._encode(f"{START}user\n{VISION_START}")
        self._prefix_positions = _prefix_positions(len(self._opening))
        self._vision_rotation = _vision_rotation(model.config.vision_config)
        self._segments: dict[Exchange, tuple[Tensor, int]] = {}
        self._run_vision, self._run_language = self._vision, self._language

    def compile(self) -> None:
        self._run_vision = torch.compile(self._vision, dynamic=False)
        self._run_language = torch.compile(self._language, dynamic=False)

    def loss(self, pixels: Tensor, exchanges: Sequence[Sequence[Exchange]]) -> Tensor:
        """Mean cross-entropy over the answers' tokens. `pixels` is uint8 [B, 96, 96, 3];
        `exchanges` lists those of each image.
        """
        rows = self.pack(exchanges)
        hidden = self.hidden_states(pixels, rows)
        answered = rows.labels >= 0
        logits = F.linear(hidden[answered], self._embedding.weight).float()
        return F.cross_entropy(logits, rows.labels[answered])

    def hidden_states(self, pixels: Tensor, rows: PackedRows) -> Tensor:
        """What the language model's last norm gives out: [B, L, width]."""
        image = self._run_vision(patches(pixels))
        text = self._embedding(rows.ids)
        before, after = len(self._opening), len(self._opening) + IMAGE_GRID**2
        embeddings = torch.cat([text[:, :before], image.to(text.dtype), text[:, after:]], dim=1)
        cos, sin = self._text_rotation(embeddings, rows.positions)
        return self._run_language(embeddings, cos, sin, rows.mask)

    def pack(self, exchanges: Sequence[Sequence[Exchange]]) -> PackedRows:
        """Raises ValueError where an image's exchanges do not fit into a row."""
        count, length, prefix = len(exchanges), self.length, len(self._prefix_positions)
        ids = torch.zeros(count, length, dtype=torch.long)
        positions = torch.zeros(count, length, 3, dtype=torch.long)
        segment_of = torch.full((count, length), -1)
        labels = torch.full((count, length), -100)
        ids[:, : len(self._opening)] = torch.tensor(self._opening)
        positions[:, :prefix] = self._prefix_positions
        segment_of[:, :prefix] = 0
        first_position = int(self._prefix_positions.max()) + 1
        for row, of_image in enumerate(exchanges):
            start = prefix
            for number, exchange in enumerate(of_image, start=1):
                tokens, answer_start = self._segment(exchange)
                end = start + len(tokens)
                if end > length:
                    raise ValueError(f"length={length} is too short for {of_image}: raise it")
                ids[row, start:end] = tokens
                positions[row, start:end] = (first_position + torch.arange(len(tokens)))[:, None]
                segment_of[row, start:end] = number
                labels[row, start + answer_start - 1 : end - 1] = tokens[answer_start:]
                start = end
        return PackedRows(
            ids=ids,
            positions=positions.permute(2, 0, 1),
            mask=_block_mask(segment_of),
            labels=labels,
        )

    @property
    def _embedding(self) -> torch.nn.Embedding:
        return self.model.model.language_model.embed_tokens

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _segment(self, exchange: Exchange) -> tuple[Tensor, int]:
        """The segment's tokens, and where among them the answer starts."""
        if exchange not in self._segments:
            said, answer = exchange
            question = self._encode(f"{VISION_END}{said}{END}\n{START}assistant\n")
            self._segments[exchange] = (
                torch.tensor(question + self._encode(answer + END)),
                len(question),
            )
        return self._segments[exchange]

    def _vision(self, x: Tensor) -> Tensor:
        """[B, patches, values] -> [B, image tokens, width]"""
        vision = self.model.model.visual
        cos, sin = self._vision_rotation
        x = F.linear(x, vision.patch_embed.proj.weight.flatten(1))
        batch, places, width = x.shape
        for block in vision.blocks:
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).view(batch, places, 3, heads, width // heads)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = _attend(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(batch, places, width))
            x = x + block.mlp(block.norm2(x))
        return vision.merger.mlp(vision.merger.ln_q(x).reshape(batch, places // MERGE**2, -1))

    def _language(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]"""
        language, config = self.model.model.language_model, self.model.config.text_config
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        batch, length, width = x.shape
        for layer in language.layers:
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            query = attention.q_proj(normed).view(batch, length, heads, -1).transpose(1, 2)
            key = attention.k_proj(normed).view(batch, length, key_heads, -1).transpose(1, 2)
            value = attention.v_proj(normed).view(batch, length, key_heads, -1).transpose(1, 2)
            key = _rotate(key, cos, sin).repeat_interleave(heads // key_heads, dim=1)
            value = value.repeat_interleave(heads // key_heads, dim=1)
            mixed = _attend(_rotate(query, cos, sin), key, value, mask)
            x = x + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return language.norm(x)

    def _text_rotation(self, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Multimodal rotary embedding: cos and sin, each [B, 1, L, head width]."""
        cos, sin = self.model.model.language_model.rotary_emb(embeddings.float(), positions)
        if cos.dim() == 4:  # not yet merged over time, height and width
            sections = self.model.config.text_config.rope_parameters["mrope_section"] * 2
            cos, sin = (
                torch.cat(
                    [part[i % 3] for i, part in enumerate(wave.split(sections, dim=-1))], dim=-1
                )
                for wave in (cos, sin)
            )
        return cos[:, None], sin[:, None]


def patches(pixels: Tensor) -> Tensor:
    """What Qwen2-VL's image processor makes of the images: uint8 [B, 96, 96, 3] -> [B, 64, values
    of a patch].

    Patches that are merged later come one after another. The frame stands twice: Qwen2-VL reads a
    still image as a film of two frames.
    """
    batch, blocks = len(pixels), IMAGE_GRID
    x = (pixels.float() / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    x = x.permute(0, 3, 1, 2).reshape(batch, 3, blocks, MERGE, PATCH, blocks, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, GRID**2, 3, 1, PATCH**2)
    return x.expand(-1, -1, -1, 2, -1).reshape(batch, GRID**2, -1)


def _prefix_positions(opening: int) -> Tensor:
    """Positions (time, height, width) of the opening tokens and the image's: int64 [prefix length,
    3].
    """
    text = [(place, place, place) for place in range(opening)]
    image = [
        (opening, opening + row, opening + column)
        for row in range(IMAGE_GRID)
        for column in range(IMAGE_GRID)
    ]
    return torch.tensor(text + image)


def _vision_rotation(config: PreTrainedConfig) -> tuple[Tensor, Tensor]:
    """Two-dimensional rotary embedding of the patches, in the order of `patches`: cos and sin, each
    [patches, head width].
    """
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    rows, columns = (
        axis.reshape(IMAGE_GRID, MERGE, IMAGE_GRID, MERGE).permute(0, 2, 1, 3).flatten()[:, None]
        for axis in (rows, columns)
    )
    width = config.embed_dim // config.num_heads // 2
    frequencies = 1 / 10_000 ** (torch.arange(0, width, 2).float() / width)
    angles = torch.cat([rows * frequencies, columns * frequencies], dim=-1).repeat(1, 2)
    return angles.cos(), angles.sin()


def _block_mask(segment_of: Tensor) -> Tensor:
    """0 where a place may look, very negative where not. Every place sees itself, so that padding
    gives no NaN.
    """
    length = segment_of.shape[1]
    mine, theirs = segment_of[:, :, None], segment_of[:, None, :]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & (
        (theirs == 0) | (theirs == mine)
    )
    visible |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~visible, -1e4)[:, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.float().softmax(dim=-1).to(value.dtype) @ value


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)
