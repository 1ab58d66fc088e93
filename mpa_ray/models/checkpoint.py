"""Models as they are named: a hub name, a local folder, or a prefix in an object store. Names are
checked before anything loads them.
"""

import re
from pathlib import Path
from typing import Any

from mpa_ray.config import LocalModelSection
from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.models import node_cache
from mpa_ray.storage.folder import Folder, is_remote

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check(flag: str, model: str) -> None:
    """Refuse what cannot be a model.

    Raises:
        ConfigurationError: a folder that is not there, holds no `config.json`, or has weights that
            are damaged or pickled; or a text that is neither a folder nor a hub name.
    """
    if is_remote(model):
        _check_remote(flag, model)
        return
    path = Path(model).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"{flag}={model!r} is no model folder: it holds no config.json; give a folder in"
                " the Hugging Face layout"
            )
        node_cache.check_whole(path)
    elif model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(model):
        raise ConfigurationError(
            f"{flag}={model!r} is neither a folder nor a hub name such as Qwen/Qwen2-VL-2B-Instruct"
        )


def _check_remote(flag: str, model: str) -> None:
    try:
        found = Folder.at(model).exists("config.json")
    except StorageError:
        if not node_cache.has_copy(model):
            raise
        return
    if not found:
        raise ConfigurationError(
            f"{flag}={model!r} holds no config.json; give a prefix with a model in the Hugging"
            " Face layout"
        )


def arguments(model: LocalModelSection) -> dict[str, Any]:
    """What every `from_pretrained` is told of a model beside its place: the revision, and whether
    its own code may run (and then which).
    """
    if model.trust_remote_code is None:
        return {"revision": model.revision, "trust_remote_code": False}
    commit = model.trust_remote_code.rpartition("@")[2]
    return {"revision": commit, "code_revision": commit, "trust_remote_code": True}


def same_tensors(one: str, other: str) -> bool:
    """Whether two models of this node have tensors of the same names and shapes; not where one of
    them is a hub name.
    """
    folders = [Path(name).expanduser() for name in (one, other)]
    if not all(folder.is_dir() for folder in folders):
        return False
    first, second = (
        {
            name: shape
            for file in folder.glob("*.safetensors")
            for name, shape in node_cache.tensor_shapes(file).items()
        }
        for folder in folders
    )
    return first == second


def local(model: str) -> str:
    """What `from_pretrained` and vLLM take on this node: a hub name itself, or the folder of a
    model, whose weights are checked to be whole; a model in an object store is copied to the node
    before (`mpa_ray.models.node_cache`).

    Raises:
        ConfigurationError: weights are missing or cut off, or there is no model.
        StorageError: the object store failed, or there is no room.
    """
    if is_remote(model):
        return str(node_cache.copy_of(model))
    path = Path(model).expanduser()
    if not path.exists():
        return model
    node_cache.check_whole(path)
    return str(path)
