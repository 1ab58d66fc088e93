"""What an image becomes in a model of each family: tokens of a prompt, patches of the vision tower.

The rules are those of the families' own processors (transformers' `get_number_of_image_patches`,
vLLM's `get_num_image_tokens`), written as arithmetic on a checkpoint's configuration, because
placement needs them where no model is loaded. docs/families.md has figures.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

# How much longer than wide, or wider than long, an image may be that is counted on: photographs,
# pages and charts. Families that round up make a little more of a narrower one.
_LONGEST_TO_SHORTEST = 4
# Of an unknown family: as Qwen2-VL.
_PATCH, _MERGE = 14, 2
# Of InternVL: pixels of a tile's side and of a patch's.
_TILE = (("image_size", 448), ("patch_size", _PATCH))
# Of SmolVLM: pixels of a side, however large it is asked to be.
_SMOLVLM_MOST = 4096
# By which published models are known where none of their files can be read.
_IN_NAMES = (("internvl", "internvl_chat"), ("smolvlm", "idefics3"), ("llava", "llava"))


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """What an image becomes.

    Attributes:
        tokens: in the prompt, with those that stand between its tiles.
        patches: that pass through the vision tower, over all tiles.
        values: numbers that the processor makes of it: pixels, channels, and frames where the
            family has those.
    """

    tokens: int
    patches: int
    values: int


def processor_settings(files: Iterable[Json], options: Json) -> dict[str, Any]:
    """How a checkpoint's processor treats an image.

    Args:
        files: those of its JSON files that say so, the more general first: in some the image
            processor's settings are a part.
        options: `processor_options`, which go before them.
    """
    settings: dict[str, Any] = {}
    for file in files:
        settings |= {**file, **(file.get("image_processor") or {})}
    # InternVL's processor cuts images whatever its file says, unless a call says otherwise.
    settings.pop("crop_to_patches", None)
    return settings | dict(options)


def largest_image(config: Json, processor: Json, *, max_pixels: int) -> ImageTokens:
    """The most that an image of up to `max_pixels` becomes, whatever its shape from 1:4 to 4:1.

    Args:
        config: the checkpoint's `config.json`.
        processor: of `processor_settings`.
        max_pixels: that an image is shrunk to.
    """
    of_each = (image_tokens(config, processor, *shape) for shape in _shapes(max_pixels))
    return max(of_each, key=lambda image: (image.tokens, image.patches))


def image_tokens(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """What an image of `width` x `height` pixels becomes; arguments as of `largest_image`."""
    of_family = _FAMILIES.get(str(config.get("model_type")))
    if of_family is None:
        return _merged_patches({}, {}, width, height)
    return of_family(config, processor, width, height)


def model_type_of_name(name: str) -> str | None:
    """The `model_type` of a published model by its name; None where the name tells nothing."""
    return next((kind for part, kind in _IN_NAMES if part in name.lower()), None)


def _shapes(max_pixels: int) -> Iterator[tuple[int, int]]:
    narrowest = max(1, math.isqrt(max_pixels // _LONGEST_TO_SHORTEST))
    for width in range(narrowest, max(1, max_pixels // narrowest) + 1):
        yield width, max(1, max_pixels // width)


def _merged_patches(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """Qwen2-VL to Qwen3-VL: each side rounded to whole tokens of 2 x 2 patches, within the bounds
    of the processor's own.
    """
    vision = config.get("vision_config") or {}
    patch = vision.get("patch_size") or processor.get("patch_size") or _PATCH
    merge = vision.get("spatial_merge_size") or _MERGE
    size = processor.get("size") or {}
    least = processor.get("min_pixels") or size.get("shortest_edge") or 0
    most = processor.get("max_pixels") or size.get("longest_edge") or math.inf
    side = patch * merge
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side**2 > most:
        shrunk = math.sqrt(width * height / most)
        rows, columns = (max(1, math.floor(length / shrunk / side)) for length in (height, width))
    elif rows * columns * side**2 < least:
        grown = math.sqrt(least / (width * height))
        rows, columns = (math.ceil(length * grown / side) for length in (height, width))
    tokens = max(1, rows) * max(1, columns)
    frames = vision.get("temporal_patch_size") or 2
    patches = tokens * merge**2
    return ImageTokens(tokens=tokens, patches=patches, values=patches * 3 * frames * patch**2)


def _internvl(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """InternVL in transformers' layout."""
    vision = config.get("vision_config") or {}
    tokens = processor.get("image_seq_length") or config.get("image_seq_length") or 256
    cuts = processor.get("crop_to_patches", True)
    most = processor.get("max_patches", 12) if cuts else 1
    least = processor.get("min_patches", 1) if cuts else 1
    tile, patch = (_side(vision.get(name), default) for name, default in _TILE)
    tiles = _tiles(width, height, tile=tile, least=least, most=most)
    return _tiled(tiles + (tiles > 1), tokens, tile, patch, around=2)


def _internvl_chat(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """InternVL in its authors' layout, whose processor's settings are in `config.json`."""
    settings = {**config, **processor}
    vision = config.get("vision_config") or {}
    cuts = settings.get("dynamic_image_size", True)
    tile = config.get("force_image_size") or _side(vision.get("image_size"), 448)
    patch = _side(vision.get("patch_size"), _PATCH)
    tiles = _tiles(
        width,
        height,
        tile=tile,
        least=settings.get("min_dynamic_patch", 1) if cuts else 1,
        most=settings.get("max_dynamic_patch", 12) if cuts else 1,
    )
    thumbnail = settings.get("use_thumbnail", True) and tiles > 1
    tokens = int((tile // patch) ** 2 * config.get("downsample_ratio", 0.5) ** 2)
    return _tiled(tiles + thumbnail, tokens, tile, patch, around=2)


def _side(length: Any, default: int) -> int:
    return int(length[0] if isinstance(length, list | tuple) else length or default)


def _tiles(width: int, height: int, *, tile: int, least: int, most: int) -> int:
    """Tiles of the grid whose shape is nearest to the image's; of grids of one shape the largest
    whose area is below twice the image's.
    """
    grids = sorted(
        (columns * rows, columns / rows)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if columns * rows >= least
    )
    nearest = min(abs(width / height - shape) for _, shape in grids)
    fitting = [count for count, shape in grids if abs(width / height - shape) == nearest]
    return max([fitting[0], *(n for n in fitting if width * height > 0.5 * tile**2 * n)])


def _tiled(tiles: int, tokens: int, tile: int, patch: int, *, around: int = 0) -> ImageTokens:
    """Tiles of `tile` x `tile` pixels and `tokens` each, and so many tokens of text around them."""
    return ImageTokens(
        tokens=tiles * tokens + around,
        patches=tiles * (tile // patch) ** 2,
        values=tiles * 3 * tile**2,
    )


def _smolvlm(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """Idefics3, SmolVLM and SmolVLM2: the longer side enlarged to a length, whatever it was, then
    tiles and the whole image beside them.
    """
    vision = config.get("vision_config") or {}
    tile = (processor.get("max_image_size") or {}).get("longest_edge") or 512
    patch = vision.get("patch_size") or 16
    tokens = (
        processor.get("image_seq_len") or ((tile // patch) // config.get("scale_factor", 4)) ** 2
    )
    longest = min((processor.get("size") or {}).get("longest_edge") or 4 * tile, _SMOLVLM_MOST)
    shorter = longest * min(width, height) / max(width, height)
    sides = [math.ceil(length / tile) for length in (longest, _even(int(shorter)))]
    cut = processor.get("do_image_splitting", True) and max(sides) > 1
    rows, columns = (sides if height > width else sides[::-1]) if cut else (0, 0)
    # Two tokens before a tile and one behind a row; before, behind and around the whole image four.
    around = rows * (2 * columns + 1) + (4 if cut else 3)
    return _tiled(rows * columns + 1, tokens, tile, patch, around=around)


def _even(length: int) -> int:
    return length + length % 2


def _llava(config: Json, processor: Json, width: int, height: int) -> ImageTokens:
    """LLaVA 1.5 and TinyLLaVA: one square whatever the image."""
    vision = config.get("vision_config") or {}
    side, patch = vision.get("image_size") or 336, vision.get("patch_size") or _PATCH
    # CLIP's tower gives a token of the whole beside the patches'; "default" leaves the first out.
    whole = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
    without = config.get("vision_feature_select_strategy", "default") == "default"
    return _tiled(1, (side // patch) ** 2, side, patch, around=whole - without)


_FAMILIES: dict[str, Callable[[Json, Json, int, int], ImageTokens]] = {
    "qwen2_vl": _merged_patches,
    "qwen2_5_vl": _merged_patches,
    "qwen3_vl": _merged_patches,
    "qwen3_vl_moe": _merged_patches,
    "internvl": _internvl,
    "internvl_chat": _internvl_chat,
    "idefics3": _smolvlm,
    "smolvlm": _smolvlm,
    "llava": _llava,
}
