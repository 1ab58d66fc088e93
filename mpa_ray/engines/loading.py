"""A model section to its engine."""

import importlib
import importlib.util
from collections.abc import Callable

from mpa_ray.config import LocalModelSection
from mpa_ray.config.engines import ENGINES
from mpa_ray.engines.protocol import Engine
from mpa_ray.errors import ConfigurationError
from mpa_ray.schema import Stage
from mpa_ray.storage.folder import Folder


def load(model: LocalModelSection, *, stage: str = "", output: Folder | None = None) -> Engine:
    """Load a model into this process; seconds to minutes.

    Args:
        model: which, and how.
        stage: who asks; a paid model's ledger says so.
        output: the run's folder, where a paid model's ledger is kept.
    """
    if model.engine not in ENGINES:
        return load_user_engine(model.engine)(model)
    if model.kind.loads_checkpoint:
        from mpa_ray.models import families

        # What the Parity Identifier asks is trained afterwards: what cannot be is refused now, not
        # after all images are annotated.
        families.check_loaded("model", model, trained=stage == Stage.PARITY_IDENTIFIER)
        model = families.within_context(model)
    # The engine's file is imported here, because it imports what serves the model.
    engine: Engine = importlib.import_module(f"mpa_ray.engines.{model.engine}").load(
        model, stage=stage, output=output
    )
    return engine


def load_user_engine(name: str) -> Callable[[LocalModelSection], Engine]:
    """The user's function behind `module:function`.

    Raises:
        ConfigurationError: there is no such module, or no such function in it.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"engine={name!r}: no module {error.name!r}; install it, or run from its folder"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"engine={name!r}: {module} has no function {function!r}")
    return found


def vllm_is_installed() -> bool:
    """Whether vLLM can be imported here, found out without importing it."""
    return importlib.util.find_spec("vllm") is not None
