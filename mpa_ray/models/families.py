"""Which checkpoints can be served and trained, told from their `config.json`, and how large they
are.

Any family works whose model transformers knows as image-text-to-text and whose processor has a chat
template. What is refused here is refused with the reason before weights are loaded: for a folder
when the job starts, for a hub name where it is loaded.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_ray.config import LocalModelSection
from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.models import checkpoint, node_cache
from mpa_ray.storage.folder import Folder, is_remote

if TYPE_CHECKING:
    import torch

SVLM_PARAMETERS = 5_000_000_000
"""The paper's bound between small and large (its taxonomy)."""

_INTERNVL = (
    "a checkpoint in the transformers layout (OpenGVLab/InternVL3-2B-hf, or one converted"
    " as transformers converts InternVL)"
)
_LLAVA = (
    "one in the LLaVA layout (bczhou/tiny-llava-v1-hf, llava-hf/..., or one converted as"
    " transformers converts LLaVA)"
)

# Model types of layouts that are their authors' own and that transformers 5 does not have, and what
# to take instead.
_ORIGINAL_LAYOUTS = {
    "internvl_chat": _INTERNVL,
    "tiny_llava_stablelm": _LLAVA,
    "tiny_llava_phi": _LLAVA,
    "tinyllava": _LLAVA,
    "llava_llama": _LLAVA,
}
# Of these, what vLLM has a model for; the checkpoint's own code is then run for configuration and
# tokenizer alone.
_SERVED_BY_VLLM = {"internvl_chat"}

# Under which a checkpoint's configuration has that of its language model.
LANGUAGE_MODEL = ("text_config", "llm_config", "language_config")

# The files of a checkpoint that can name code.
_NAMES_CODE = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)

# Hub names known to be in such a layout, so that a job refuses them without asking the hub.
_PUBLISHED_AS = (
    (re.compile(r"OpenGVLab/(Mini-)?InternVL.*(?<!-hf)(?<!-HF)"), "internvl_chat"),
    (re.compile(r"bczhou/TinyLLaVA-.*"), "tiny_llava_stablelm"),
    (re.compile(r"tinyllava/TinyLLaVA-.*"), "tinyllava"),
)


def check(flag: str, model: LocalModelSection, *, trained: bool) -> None:
    """Refuse a local checkpoint that cannot be served, or not trained where it must be. Most hub
    names are left to `check_loaded`.

    Raises:
        ConfigurationError: with the reason and the fix.
    """
    config = _known_config(model)
    if config is not None:
        _refuse(flag, model, config, trained=trained)


def check_loaded(flag: str, model: LocalModelSection, *, trained: bool) -> None:
    """`check` where a model is loaded, for hub names too; what a checkpoint with trusted code may
    run is checked here.

    Raises:
        ConfigurationError: with the reason and the fix.
    """
    from transformers import PreTrainedConfig

    place, revision = checkpoint.local(model.model), checkpoint.arguments(model)["revision"]
    config, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    _refuse(flag, model, config, trained=trained)
    # A trained copy keeps its origin's name in its code's places, so they are compared with what is
    # trusted and not with where it lies.
    trusted = (model.trust_remote_code or "").rpartition("@")[0]
    for code in _code_places(place, revision) if trusted else ():
        repository, dashes, _ = code.partition("--")
        if dashes and repository != trusted:
            raise ConfigurationError(
                f"{flag}={model.model!r}: its code is not in it but in {repository}, which"
                f" trust_remote_code={model.trust_remote_code!r}"
                " does not name; take a copy of the model with the code inside"
            )


def within_context(model: LocalModelSection) -> LocalModelSection:
    """`model` with a `max_model_len` of no more than the context its checkpoint states: an engine
    refuses to serve more.

    What scales positions (RoPE scaling) is left to the engine, and so is a checkpoint that states
    nothing.
    """
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(
        checkpoint.local(model.model), revision=checkpoint.arguments(model)["revision"]
    )
    language = next(
        (config[name] for name in LANGUAGE_MODEL if isinstance(config.get(name), dict)), config
    )
    stated = language.get("max_position_embeddings") or config.get("max_position_embeddings")
    scaling = language.get("rope_scaling") or language.get("rope_parameters") or {}
    if not isinstance(stated, int) or scaling.get("factor") or stated >= model.max_model_len:
        return model
    return model.model_copy(update={"max_model_len": stated})


def _refuse(
    flag: str, model: LocalModelSection, config: Mapping[str, Any], *, trained: bool
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return
    named = f"{flag}={model.model!r} is of the type {kind!r}"
    trust = f"read that code and set trust_remote_code to {model.model}@ and its commit"
    by_vllm = model.kind.has_own_models and not trained
    if kind in _ORIGINAL_LAYOUTS:
        instead = _ORIGINAL_LAYOUTS[kind]
        if not (by_vllm and kind in _SERVED_BY_VLLM):
            what = "train" if trained else "serve"
            raise ConfigurationError(
                f"{named}, a layout of its authors' own that we cannot {what}; take {instead}"
            )
        if model.trust_remote_code is None:
            raise ConfigurationError(
                f"{named}: vLLM has the model, but its configuration and tokenizer are custom code,"
                f" which stays off; {trust}, or take {instead}"
            )
    elif not by_vllm and "AutoModelForImageTextToText" not in (config.get("auto_map") or {}):
        what = (
            "a text model without images"
            if kind in CONFIG_MAPPING_NAMES
            else "unknown to transformers"
        )
        raise ConfigurationError(
            f"{named}, {what}; take a model that transformers lists as image-text-to-text, in its"
            " layout"
        )
    elif not by_vllm and model.trust_remote_code is None:
        raise ConfigurationError(f"{named}, whose model is custom code, which stays off; {trust}")


def _code_places(place: str, revision: str | None) -> Iterator[str]:
    """Where a checkpoint says that its code is: "module.Class", or "repository--module.Class" for
    another repository's.
    """
    from transformers.utils import cached_file

    for name in _NAMES_CODE:
        file = cached_file(
            place, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        auto_map = json.loads(Path(file).read_text()).get("auto_map") if file else None
        for value in (auto_map or {}).values():
            yield from (
                code for code in (value if isinstance(value, list | tuple) else [value]) if code
            )


def _known_config(model: LocalModelSection) -> dict[str, Any] | None:
    if is_remote(model.model):
        try:
            return read_config(model.model)
        except StorageError:
            if not node_cache.has_copy(model.model):
                raise
            return None
    path = Path(model.model).expanduser() / "config.json"
    if not path.is_file():
        return next(
            ({"model_type": kind} for name, kind in _PUBLISHED_AS if name.fullmatch(model.model)),
            None,
        )
    return read_config(model.model)


def read_config(place: str, name: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a folder or of a prefix in an object store, or another of its
    configurations.

    Raises:
        ConfigurationError: it is damaged.
        StorageError: the object store failed.
    """
    folder = Folder.at(place)
    path = f"{folder.uri}/{name}"
    try:
        config = json.loads(folder.read_bytes(name))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no JSON: {error}; copy the model again") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} is no configuration of a model; copy the model again")
    return config


def published_dtype(source: Mapping[str, Any]) -> "torch.dtype | None":
    """The precision that a checkpoint's configuration names, for itself or for its language model;
    None where it names none.

    Args:
        source: the arguments of its `from_pretrained`.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**source)
    named = config.dtype or config.get_text_config().dtype
    return getattr(torch, str(named).removeprefix("torch.")) if named else None


def count_parameters(model: LocalModelSection) -> int | None:
    """Parameters of a local folder's safetensors, from their headers alone; None for hub names,
    object stores and other formats.

    Raises:
        ConfigurationError: a file is cut off or damaged.
    """
    if is_remote(model.model):
        return None
    files = sorted(Path(model.model).expanduser().glob("*.safetensors"))
    shapes = (shape for file in files for shape in node_cache.tensor_shapes(file).values())
    return sum(map(math.prod, shapes)) or None


def size_warning(model: LocalModelSection, parameters: int | None) -> str | None:
    """A line for a person where an S-VLM is larger than the paper's small ones. It is trained all
    the same.
    """
    if parameters is None or parameters <= SVLM_PARAMETERS:
        return None
    return (
        f"warning: svlm.model={model.model!r} has {parameters / 1e9:.1f}B parameters; the paper"
        " calls a model small up to"
        f" {SVLM_PARAMETERS / 1e9:.0f}B, and"
        " full training takes 16 bytes a parameter before activations (pl.zero_stage=3 and more"
        " pl.workers spread them)"
    )
