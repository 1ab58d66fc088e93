"""How large a model is, from what is cheap to read: a checkpoint's configuration and its files'
sizes; never its weights.

A folder, a prefix in an object store and a hub name that is in the node's cache are measured; for
other hub names the hub is asked; where it cannot be, the number in the name is taken
(`Qwen2-VL-72B`: 72 billion).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs

from mpa_ray.config import LocalModelSection
from mpa_ray.errors import StorageError
from mpa_ray.models.families import LANGUAGE_MODEL
from mpa_ray.models.image_tokens import (
    ImageTokens,
    largest_image,
    model_type_of_name,
    processor_settings,
)
from mpa_ray.storage.folder import Folder, is_remote

GIB = 2**30
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# What vLLM's `quantization` makes of 16-bit weights while it loads them.
_QUANTIZED_ON_LOADING = {"fp8": 1.0, "experts_int8": 1.0, "bitsandbytes": 0.5}
_IN_A_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", re.IGNORECASE)
# Where the configuration does not tell: what Qwen2-VL-7B takes a parameter (57 KB of 8.3 billion);
# larger models take less.
_KV_BYTES_PER_PARAMETER = 7e-6
# Where a checkpoint keeps its image processor's settings, the newer layout last; in that one they
# are a part of the processor's.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What placement must know of a model.

    Attributes:
        parameters: of the whole model, vision included.
        weight_bytes: of its weights as they are served.
        kv_bytes: that a token of context takes in the KV cache, over all layers, at 16 bits.
        heads: attention heads, which a tensor parallel size must divide; None where unknown.
        image: the most that an image of `max_pixels` becomes.
        source: how it is known, for people: "its files", "the hub", "its name".
    """

    parameters: int
    weight_bytes: int
    kv_bytes: int
    heads: int | None
    image: ImageTokens
    source: str


def size_of(model: LocalModelSection) -> ModelSize | None:
    """The size of a model that runs here; None for one behind an API, of the user's own engine, or
    of which nothing is known.
    """
    if not model.kind.loads_checkpoint or not model.model:
        return None
    try:
        found = _of_folder(model)
    except (OSError, StorageError):
        # The node that serves it may have a copy, and says what is wrong where it has none.
        found = None
    return found or _of_hub(model) or _of_name(model)


def size_from(
    config: Mapping[str, Any],
    file_bytes: int,
    model: LocalModelSection,
    *,
    processor: Sequence[Mapping[str, Any]] = (),
    parameters: int | None = None,
    source: str,
) -> ModelSize:
    """The size of a checkpoint.

    Args:
        config: its `config.json`.
        processor: those of `_PROCESSOR_FILES` that it has.
        file_bytes: of its safetensors together.
        model: how it is served: `dtype` and vLLM's `quantization` change what its weights take.
        parameters: where they were counted; else they are told from `file_bytes`.
        source: see ModelSize.
    """
    language = next(
        (config[name] for name in LANGUAGE_MODEL if isinstance(config.get(name), dict)), config
    )
    published = str(
        _first(language, config, "dtype") or _first(language, config, "torch_dtype") or "bfloat16"
    )
    parameters = parameters or round(file_bytes / _WIDTHS.get(published, 2))
    weight_bytes = (
        file_bytes if model.dtype in ("auto", published) else parameters * _WIDTHS[model.dtype]
    )
    weight_bytes = round(
        weight_bytes
        * _QUANTIZED_ON_LOADING.get(str(model.engine_options.get("quantization")), 2.0)
        / 2
    )
    return ModelSize(
        parameters=parameters,
        weight_bytes=weight_bytes,
        kv_bytes=_kv_bytes(language) or round(parameters * _KV_BYTES_PER_PARAMETER),
        heads=language.get("num_attention_heads"),
        image=largest_image(
            config,
            processor_settings(processor, model.processor_options),
            max_pixels=model.max_pixels,
        ),
        source=source,
    )


def _first(language: Mapping[str, Any], config: Mapping[str, Any], key: str) -> Any:
    return language.get(key) or config.get(key)


def _kv_bytes(language: Mapping[str, Any]) -> int | None:
    """Keys and values, of every layer and KV head, 2 bytes a number."""
    layers, heads, width = (
        language.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not (layers and heads and width):
        return None
    return (
        2
        * 2
        * layers
        * (language.get("num_key_value_heads") or heads)
        * (language.get("head_dim") or width // heads)
    )


def _of_folder(model: LocalModelSection) -> ModelSize | None:
    from mpa_ray.models import families

    place = model.model if is_remote(model.model) else _folder_of(model)
    if place is None:
        return None
    folder = Folder.at(place)
    selector = pyarrow.fs.FileSelector(folder.path, allow_not_found=True)
    file_bytes = sum(
        info.size
        for info in folder.filesystem.get_file_info(selector)
        if info.is_file and info.path.endswith(".safetensors")
    )
    if not file_bytes or not folder.exists("config.json"):
        return None
    counted = (
        None
        if is_remote(place)
        else families.count_parameters(model.model_copy(update={"model": place}))
    )
    return size_from(
        families.read_config(place),
        file_bytes,
        model,
        processor=[
            families.read_config(place, name) for name in _PROCESSOR_FILES if folder.exists(name)
        ],
        parameters=counted,
        source="its files",
    )


def _folder_of(model: LocalModelSection) -> str | None:
    """The local folder of a model: itself, or what the hub's cache on this node has of it."""
    path = Path(model.model).expanduser()
    if path.is_dir():
        return str(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model.model, revision=model.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _of_hub(model: LocalModelSection) -> ModelSize | None:
    import httpx2
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if (
        is_remote(model.model)
        or constants.HF_HUB_OFFLINE
        or os.environ.get("HF_HUB_OFFLINE") == "1"
    ):
        return None
    try:
        files = (
            HfApi()
            .model_info(model.model, revision=model.revision, files_metadata=True, timeout=10)
            .siblings
            or []
        )
        file_bytes = sum(
            file.size or 0
            for file in files
            if file.rfilename.endswith(".safetensors") and "/" not in file.rfilename
        )
        known = {file.rfilename for file in files}

        def read(name: str) -> dict[str, Any]:
            place = hf_hub_download(model.model, name, revision=model.revision)
            return dict(json.loads(Path(place).read_text()))

        config = read("config.json")
        processor = [read(name) for name in _PROCESSOR_FILES if name in known]
    # It is a help and not needed: what the hub has against the name is said where the model is
    # loaded.
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError, ValueError):
        return None
    if not file_bytes:
        return None
    return size_from(config, file_bytes, model, processor=processor, source="the hub")


def _of_name(model: LocalModelSection) -> ModelSize | None:
    found = _IN_A_NAME.search(model.model.rpartition("/")[2])
    if found is None:
        return None
    parameters = round(float(found[1]) * (1e9 if found[2] in "bB" else 1e6))
    config = {"model_type": model_type_of_name(model.model)}
    return size_from(config, 2 * parameters, model, parameters=parameters, source="its name")
