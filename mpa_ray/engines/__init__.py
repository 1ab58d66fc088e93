"""What answers a prompt about an image, by one small protocol: `vllm` by default, `transformers` as fallback, `openai` for any such API,
`module:function` for an engine of the user's own."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from mpa_ray.clean_text import storable
from mpa_ray.config import ModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.schema import Stage
from mpa_ray.storage import Folder


class RequestRejected(ValueError):
    """The engine refused one request, for its length for example. The row is at fault and is
    quarantined with `why`; the engine is well."""

    def __init__(self, why: str) -> None:
        super().__init__(storable(why))


class EngineDied(RuntimeError):
    """The engine broke while it served this request, and perhaps because of it. It serves nothing
    more and must be loaded again."""

    def __init__(self, why: str) -> None:
        super().__init__(storable(why))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a reply is drawn. `temperature` 0 is greedy; `seed` makes a drawn reply repeatable; `form` is a regular expression that the whole
    reply is held to while it is drawn, by vLLM and by own engines that can."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    form: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back.

    Attributes:
        text: the reply, without special tokens. A lone surrogate, which could not be stored, is
            U+FFFD.
        prompt_tokens: of the prompt, the image's included.
        cached_tokens: of those, how many the prefix cache served.
        output_tokens: of the reply.
        finish_reason: "stop" where the model ended by itself, "length" where `max_tokens` cut it.
    """

    text: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", storable(self.text))


class Engine(Protocol):
    """Serves one model in this process (or from it)."""

    async def ask(self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling) -> Reply:
        """The model's reply to a user message of the image and then the text.

        `image_id` names the image to the engine's caches: equal ids must mean equal pixels.

        Raises:
            RequestRejected: this request cannot be served; others can.
            EngineDied: the engine is broken.
            RunError: no request can be served from here on (the API's key is wrong, the budget is spent), and nothing is broken.
        """

    def close(self) -> None:
        """Frees the device."""


@runtime_checkable
class CountsEncoderRuns(Protocol):
    """An engine that knows how often its vision encoder ran."""

    async def encoder_runs(self) -> int | None:
        """Images encoded since the engine was loaded, each time it was done; None where that is not known."""


def load(model: ModelSection, *, stage: str = "", output: Folder | None = None) -> Engine:
    """Loads a model into this process; seconds to minutes.

    Args:
        model: which, and how.
        stage: who asks; a paid model's ledger says so.
        output: the run's folder, where a paid model's ledger is kept.
    """
    if model.engine == "openai":
        from mpa_ray.engines.openai import OpenAIEngine
        from mpa_ray.ledger import Ledger

        return OpenAIEngine(model, Ledger(model, stage=stage, output=output))
    if ":" in model.engine:
        return own(model.engine)(model)
    from mpa_ray import families

    # What the Parity Identifier asks is trained afterwards: what cannot be is refused now, not after all images are annotated.
    families.check_loaded("model", model, trained=stage == Stage.PARITY_IDENTIFIER)
    model = families.within_context(model)
    if model.engine == "vllm":
        from mpa_ray.engines.vllm import VllmEngine

        return VllmEngine(model)
    from mpa_ray.engines.transformers import TransformersEngine

    return TransformersEngine(model)


def own(name: str) -> Callable[[ModelSection], Engine]:
    """The user's function behind `module:function`.

    Raises:
        ConfigurationError: there is no such module, or no such function in it.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"engine={name!r}: no module {error.name!r}; install it, or run from its folder") from error
    if not callable(found):
        raise ConfigurationError(f"engine={name!r}: {module} has no function {function!r}")
    return found


def vllm_is_installed() -> bool:
    """Whether vLLM can be imported here, found out without importing it."""
    return importlib.util.find_spec("vllm") is not None
