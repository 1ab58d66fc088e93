"""From a command line to a run: flags over a YAML file over a preset over the job's own configuration, all of it one typed tree."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from mpa_ray import presets
from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError, RunError

USAGE = 2
FAILED = 3


def main(job: Config, argv: Sequence[str] | None = None) -> None:
    """Runs a job from the command line. Exits with 0, 2 (the configuration or an input cannot be used) or 3 (the run could not go on)."""
    try:
        config = parse(job, sys.argv[1:] if argv is None else argv)
        from mpa_ray.pipeline import run

        run(config)
    except ConfigurationError as error:
        _fail(error, USAGE)
    except RunError as error:
        _fail(error, FAILED)


def _fail(error: Exception, code: int) -> None:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def parse(job: Config, argv: Sequence[str]) -> Config:
    """The configuration of a command line.

    Raises:
        ConfigurationError: a line for each setting that is unknown, of the wrong type, missing, or at odds with another.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=presets.NAMES)
    first.add_argument("--config", type=Path)
    early, rest = first.parse_known_args(argv)
    tree = job.model_dump(exclude_unset=True)
    if early.preset:
        tree = merge(tree, presets.preset(early.preset))
    if early.config:
        tree = merge(tree, _read_yaml(early.config))
    base = validate(tree)
    names = ", ".join(presets.NAMES)
    description = f"{Config.__doc__} Before all other flags: --preset NAME ({names}) and --config FILE (YAML with the names below)."
    try:
        config = tyro.cli(Config, default=base, args=rest, description=description, use_underscores=True)
    except ValidationError as error:
        raise ConfigurationError(problems(error)) from error
    missing = config.missing()
    if missing:
        raise ConfigurationError("\n".join(f"{flag} is not set; give it on the command line, in --config, or take a --preset" for flag in missing))
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"--config {path}: there is no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"--config {path}: expected settings as `name: value`, found {type(tree).__name__}")
    return tree


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
        raise ConfigurationError(problems(error)) from error


def problems(error: ValidationError) -> str:
    """One line a problem: the setting, what is wrong, the value that was given, and the near name where one was mistyped."""
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _names(Config, item["loc"][:-1]), n=1)
            hint = f"; did you mean {'.'.join([*map(str, item['loc'][:-1]), near[0]])}?" if near else ""
            lines.append(f"{name}: unknown setting{hint}")
        elif item["type"] == "value_error":
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        else:
            lines.append(f"{name}: {item['msg']}; it is {item['input']!r}")
    return "\n".join(lines)


def _names(section: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        section = get_type_hints(section).get(str(part), section)
    return list(section.model_fields)
