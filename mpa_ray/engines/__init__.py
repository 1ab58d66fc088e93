"""What answers a prompt about an image, by one small protocol: `vllm` by default, `transformers` as
fallback, `openai` for any such API, `module:function` for an engine of the user's own.
"""

from mpa_ray.engines.loading import load, load_user_engine, vllm_is_installed
from mpa_ray.engines.protocol import (
    Engine,
    EngineDied,
    Reply,
    RequestRejected,
    Sampling,
    TakesWeights,
)

__all__ = [
    "Engine",
    "EngineDied",
    "Reply",
    "RequestRejected",
    "Sampling",
    "TakesWeights",
    "load",
    "load_user_engine",
    "vllm_is_installed",
]
