"""What an engine is: what goes in, what comes out, and how it fails."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from mpa_ray.config import LocalModelSection
from mpa_ray.observability.clean_text import storable


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
    """How a reply is drawn. `temperature` 0 is greedy; `seed` makes a drawn reply repeatable;
    `form` is a regular expression that the whole reply is held to while it is drawn, by vLLM and by
    own engines that can.
    """

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

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        """The model's reply to a user message of the image and then the text.

        `image_id` names the image to the engine's caches: equal ids must mean equal pixels.

        Raises:
            RequestRejected: this request cannot be served; others can.
            EngineDied: the engine is broken.
            RunError: no request can be served from here on (the API's key is wrong, the budget is
                spent), and nothing is broken.
        """

    def close(self) -> None:
        """Free the device."""


@runtime_checkable
class TakesWeights(Protocol):
    """An engine that can go on with the weights of another checkpoint."""

    async def take_weights(self, model: LocalModelSection) -> bool:
        """Serve `model` from here on; False, and nothing has changed, where its weights do not fit.
        No request is in the engine meanwhile.

        Raises:
            EngineDied: the engine broke over it.
        """
