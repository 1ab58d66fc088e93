"""Whether an API can be asked at all."""

import importlib.util
import os

from mpa_ray.config import ModelSection
from mpa_ray.errors import ConfigurationError


def check_api(flag: str, model: ModelSection) -> None:
    """Refuse what cannot be asked; any name may be a model behind an API, so the name is not
    looked at.

    Raises:
        ConfigurationError: the client is not installed, or OpenAI itself is to be asked and there
            is no key. Other servers may need none.
    """
    if not importlib.util.find_spec("openai"):
        raise ConfigurationError(
            f"{flag}.engine='openai' needs the package openai; install mpa_ray[api]"
        )
    if not model.base_url and not os.environ.get(model.api_key_env):
        from mpa_ray.engines.openai import missing_key

        raise ConfigurationError(f"{flag}.engine='openai': {missing_key(model)}")
