"""The models of a run: that each is there, of a family that works, and may be had. No weights are
fetched.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from mpa_ray import engines
from mpa_ray.config import Config, LocalModelSection, ModelSection
from mpa_ray.engines import api_key
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.models import checkpoint, families
from mpa_ray.storage.folder import is_remote
from mpa_ray.tools.doctor.finding import Finding, named_models


def access(config: Config) -> Iterator[Finding]:
    """That each model is there and of a family that works; of a hub name only its configuration is
    fetched, never weights.
    """
    for name, model in named_models(config).items():
        what = f"{name} {model.model}"
        try:
            if isinstance(model, ModelSection) and model.kind.is_api:
                api_key.check_api(name, model)
                yield Finding(
                    state="ok",
                    what=what,
                    said="behind an API; the key is set"
                    if os.environ.get(model.api_key_env)
                    else "no key",
                )
                continue
            if not model.kind.loads_checkpoint:
                engines.load_user_engine(model.engine)
                yield Finding(state="ok", what=what, said=f"served by {model.engine}")
                continue
            checkpoint.check(f"{name}.model", model.model)
            families.check(f"{name}.model", model, trained=name == "svlm")
            yield from _fetched(what, name, model)
        except (ConfigurationError, RunError, OSError) as error:
            yield Finding(state="failed", what=what, said=str(error))


def _fetched(what: str, name: str, model: LocalModelSection) -> Iterator[Finding]:
    parameters = families.count_parameters(model)
    if parameters is not None or is_remote(model.model) or Path(model.model).expanduser().exists():
        size = f", {parameters / 1e6:,.1f}M parameters" if parameters else ""
        yield Finding(state="ok", what=what, said=f"there{size}")
        return
    try:
        families.check_loaded(f"{name}.model", model, trained=name == "svlm")
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        fix = (
            "look at the name, at HF_TOKEN for a gated model, and at the network; or give a"
            " folder with a copy"
        )
        yield Finding(state="failed", what=what, said=said, fix=fix)
        return
    yield Finding(
        state="ok", what=what, said="its configuration is to be had; weights were not fetched"
    )
