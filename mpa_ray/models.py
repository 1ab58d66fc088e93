"""Models as they are named: a hub name, a local folder, or a prefix in an object store. Names are checked before anything loads them."""

import hashlib
import os
import re
from pathlib import Path

from filelock import FileLock

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage import Folder, is_remote

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check(flag: str, model: str) -> None:
    """Refuses what cannot be a model.

    Raises:
        ConfigurationError: a folder that is not there or holds no `config.json`, or a text that is neither a folder nor a hub name.
    """
    if is_remote(model):
        if not Folder.at(model).exists("config.json"):
            raise ConfigurationError(f"{flag}={model!r} holds no config.json; give a prefix with a model in the Hugging Face layout")
        return
    path = Path(model).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise ConfigurationError(f"{flag}={model!r} is no model folder: it holds no config.json; give a folder in the Hugging Face layout")
    elif model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(model):
        raise ConfigurationError(f"{flag}={model!r} is neither a folder nor a hub name such as Qwen/Qwen2-VL-2B-Instruct")


def local(model: str) -> str:
    """What `from_pretrained` and vLLM take: the name itself, or the local copy of a model in an object store, downloaded once a node."""
    if not is_remote(model):
        return str(Path(model).expanduser()) if Path(model).expanduser().exists() else model
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mpa_ray" / hashlib.sha256(model.encode()).hexdigest()[:16]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{cache}.lock"):
        if not (cache / ".complete").exists():
            Folder.at(model).download(cache)
            (cache / ".complete").touch()
    return str(cache)
