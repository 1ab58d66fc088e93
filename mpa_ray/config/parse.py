"""A tree of settings to a configuration: merged, validated, and every problem a line with the name,
the value and the fix.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mpa_ray.config.config import TASK_TAGS, Config
from mpa_ray.config.describe import settings
from mpa_ray.errors import ConfigurationError


def section_in(kind: Any) -> type[BaseModel] | None:
    """The section that a setting is, may be (`task`), or is a list of (`jury`)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((section for part in get_args(kind) if (section := section_in(part))), None)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, section by section."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(tree: Mapping[str, Any]) -> Config:
    """The typed configuration of a tree; every problem is a line of the error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(*problems(error)) from error


def problems(error: ValidationError, root: type[BaseModel] = Config) -> list[str]:
    """One line a problem: the setting, what is wrong, the value that was given, and the near name
    where one was mistyped.
    """
    lines = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"] if part not in TASK_TAGS]
        name = ".".join(path)
        if item["type"] == "extra_forbidden":
            likely = [
                ".".join([*path[:-1], name]) for name in _near(path[-1], _names(root, path[:-1]))
            ] or _elsewhere(root, path[-1])
            hint = f"; did you mean {' or '.join(likely)}?" if likely else ""
            lines.append(f"{name}: unknown setting{hint}")
        elif item["type"] == "value_error":
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        else:
            lines.append(f"{name}: {item['msg']}; it is {item['input']!r}")
    return lines


def _names(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        # A place in a list, or a key of a mapping, is no field: what is there is the section that
        # was found already.
        field = section.model_fields.get(part)
        section = (field and section_in(field.annotation)) or section
    return list(section.model_fields)


def _near(name: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that were likely meant: the nearest in letters, else by initials (`lr`),
    else those with the word in them.
    """
    near = difflib.get_close_matches(name, names, n=1)
    by_initials = [
        known for known in names if "".join(word[0] for word in known.split("_")) == name
    ]
    return near or by_initials or [known for known in names if name in known.split("_")]


def _elsewhere(root: type[BaseModel], name: str) -> list[str]:
    """Settings of other sections that are called so, or nearly: `--workers` where `--pl.workers`
    was meant.
    """
    by_last = {setting.name: setting.name.rpartition(".")[2] for setting in settings(root)}
    meant = [name] if name in by_last.values() else _near(name, sorted(set(by_last.values())))
    return [whole for whole, last in by_last.items() if last in meant][:3]
