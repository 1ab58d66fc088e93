"""Which settings decide what a run's output holds, and by which of them two runs differ."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from mpa_ray.config.config import Config
from mpa_ray.config.locations import lasting
from mpa_ray.config.section import MayChange, ReadBy, Section, marker
from mpa_ray.schema import absolute


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide what comes out, flat: {"lvlm.model": ...}; what `MayChange` is left
    out. Two runs may share an output folder when `changes` finds none.
    """
    flat: dict[str, Any] = {}
    for name, value in _lasting_settings(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    # The list of images names where they were; in a new upload they are elsewhere.
    return flat | {"images": config.images}


def _lasting_settings(section: BaseModel) -> dict[str, Any]:
    """The fields of a section that are part of a run's identity, as in YAML."""
    settings: dict[str, Any] = {}
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if marker(field, MayChange):
            continue
        value = getattr(section, name)
        if isinstance(value, Section):
            settings[name] = _lasting_settings(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            settings[name] = [_lasting_settings(item) for item in value]
        elif isinstance(value, BaseModel):
            # A task of the user's own.
            settings[name] = {key: _lasting(item) for key, item in plain[name].items()}
        else:
            settings[name] = _lasting(plain[name])
    return settings


def _lasting(value: Any) -> Any:
    return lasting(value) if isinstance(value, str) and value.startswith("/") else value


def of_identity(flat: Mapping[str, Any]) -> Config:
    """The configuration that an `identity` was taken of, with the defaults of what is not in it.

    Raises:
        ValidationError: it is of another version of this program.
    """
    return Config.model_validate(nested(flat))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """An `identity` as a tree of sections."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        section, dot, key = name.partition(".")
        if dot:
            tree.setdefault(section, {})[key] = value
        else:
            tree[name] = value
    return tree


def changes(
    before: Config, now: Config, *, trained: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The settings by which `now` is another run than `before`: name -> what it was and is.

    Args:
        before: of the run that is there.
        now: of the call.
        trained: the comparisons whose training has begun. What only comparisons read may change
            until one of them has read it.
    """
    was, is_now = identity(before), identity(now)
    a, b = _by_places(was), _by_places(is_now)
    differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return {
        name: (was.get(name), is_now.get(name))
        for name in differing
        if _is_read(name, trained) and _is_read(name, now.ablations)
    }


def keep_used(config: Config, before: Config, trained: Collection[str]) -> Config:
    """`config` with those settings of `before` that the comparisons `trained` have read, where no
    comparison of its own reads them.
    """
    used = [
        name
        for name, field in Config.model_fields.items()
        if marker(field, ReadBy)
        and _is_read(name, trained)
        and not _is_read(name, config.ablations)
    ]
    return config.model_copy(update={name: getattr(before, name) for name in used})


def _is_read(name: str, arms: Collection[str]) -> bool:
    """Whether a run with the comparisons `arms` reads a setting of `identity`."""
    read_by = marker(Config.model_fields[name.partition(".")[0]], ReadBy)
    return read_by is None or not read_by.arms.isdisjoint(arms)


def _by_places(flat: dict[str, Any]) -> dict[str, Any]:
    """A local model whose folder is gone reads like a hub name, and is what it was all the same."""
    models = {name: absolute(flat[name]) for name in ("lvlm.model", "svlm.model")}
    return (
        flat
        | models
        | {"jury": [juror | {"model": absolute(juror["model"])} for juror in flat["jury"]]}
    )
