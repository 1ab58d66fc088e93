"""What each engine can do. Whoever has to know asks here, and not for the engine's name;
`mpa_ray.engines` loads them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What can be known of an engine without loading it.

    Attributes:
        is_api: the model runs elsewhere: no GPU, no checkpoint and one actor here, and its requests
            are paid.
        loads_checkpoint: it loads a checkpoint in the Hugging Face layout. An engine of the user's
            own knows itself what a name means.
        holds_form: a reply can be held to a form while it is drawn (`Sampling.form`).
        takes_options: it has options of its own (`engine_options`).
        has_own_models: it serves models that transformers does not have.
        has_kv_cache: it takes GPU memory for a KV cache, so that the memory bounds the images in
            flight.
    """

    is_api: bool = False
    loads_checkpoint: bool = False
    holds_form: bool = False
    takes_options: bool = True
    has_own_models: bool = False
    has_kv_cache: bool = False


ENGINES: dict[str, EngineKind] = {
    "vllm": EngineKind(
        loads_checkpoint=True, holds_form=True, has_own_models=True, has_kv_cache=True
    ),
    "transformers": EngineKind(loads_checkpoint=True, takes_options=False),
    "openai": EngineKind(is_api=True),
}
# `module:function`; that it does what it is asked is its author's to see to.
_OWN = EngineKind(holds_form=True)


def engine_kind(name: str) -> EngineKind:
    """Of one of `ENGINES`, or of the user's own."""
    return ENGINES.get(name, _OWN)
