"""From a command line to a run: flags over a YAML file over a preset over the job's own
configuration, all of it one typed tree.
"""

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mpa_ray.config import Config
from mpa_ray.config.describe import help_lines, settings
from mpa_ray.config.parse import merge, problems, section_in, validate
from mpa_ray.demo import presets
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes

# What most runs set; `--help` shows these, `--help-all` every setting.
OFTEN = (
    *(
        "images",
        "output",
        "task",
        "annotations",
        "parity",
        "ablations",
        "rounds",
        "seed",
        "max_quarantined",
    ),
    *(
        "lvlm.model",
        "lvlm.engine",
        "lvlm.max_pixels",
        "lvlm.max_replicas",
        "lvlm.gpus_per_replica",
        "lvlm.engine_options",
    ),
    *(
        "lvlm.max_cost_usd",
        "svlm.model",
        "svlm.max_replicas",
        "svlm.gpus_per_replica",
        "annotate.questions_per_image",
    ),
    *(
        "pl.workers",
        "pl.gpus_per_worker",
        "pl.zero_stage",
        "pl.learning_rate",
        "pl.batch_size",
        "pl.replay",
    ),
    *("evaluate.benchmark", "evaluate.format", "evaluate.images", "evaluate.lvlm"),
)

S = TypeVar("S", bound=BaseModel)


def main(job: Config, argv: Sequence[str] | None = None, *, about: str | None = None) -> None:
    """Run a job from the command line. Exit with 0, 2 (the configuration or an input cannot be
    used) or 3 (the run could not continue).

    Args:
        job: the job's own configuration, which presets, YAML and flags go over.
        argv: the command line, without the program.
        about: what `--help` begins with, examples included.
    """
    with exit_codes():
        config = parse(job, sys.argv[1:] if argv is None else argv, about=about)
        from mpa_ray.pipeline import run

        run(config)


def parse(
    job: Config, argv: Sequence[str], *, about: str | None = None, whole: bool = True
) -> Config:
    """The configuration of a command line.

    Args:
        job: the job's own configuration.
        argv: the command line, without the program.
        about: what `--help` begins with.
        whole: every setting that a run cannot do without must be there.

    Raises:
        ConfigurationError: a line for each setting that is unknown, of the wrong type, missing, or
            at odds with another.
    """
    given = flags(argv)
    names, file, wants_help, wants_all = (
        given.pop(name, None) for name in ("preset", "config", "help", "help_all")
    )
    if file is not None:
        given = merge(_read_yaml(Path(file)), given)
    tree = job.model_dump(exclude_unset=True)
    own_inputs = any(
        given.get(name) or tree.get(name) for name in ("images", "annotations", "parity")
    )
    for name in [names] if isinstance(names, str) else names or ():
        if name not in presets.NAMES:
            raise ConfigurationError(
                f"--preset {name}: there is no such preset; take one of {', '.join(presets.NAMES)}"
            )
        tree = merge(tree, presets.preset(name, own_inputs=own_inputs))
    tree = merge(tree, given)
    if wants_help or wants_all:
        _show_help(about or Config.__doc__ or "", validate(tree), whole=bool(wants_all))
    config = validate(tree)
    missing = config.missing() if whole else []
    if missing:
        fix = "give it on the command line, in --config, or take a --preset"
        raise ConfigurationError(*(f"{flag} is not set; {fix}" for flag in missing))
    return config


def parse_section(default: S, argv: Sequence[str], *, about: str, often: Sequence[str]) -> S:
    """The settings of a job that is no run: flags over `default`.

    Args:
        default: the job's section, with what it has without a flag.
        argv: the command line, without the program.
        about: what `--help` begins with.
        often: the names that `--help` shows; `--help-all` shows all.

    Raises:
        ConfigurationError: as `parse`.
    """
    given = flags(argv, type(default))
    wants_help, wants_all = (given.pop(name, None) for name in ("help", "help_all"))
    if wants_help or wants_all:
        _print_help(about, default, often=often, whole=bool(wants_all), more=())
    try:
        return type(default).model_validate(merge(default.model_dump(exclude_unset=True), given))
    except ValidationError as error:
        raise ConfigurationError(*problems(error, type(default))) from error


def _show_help(about: str, config: Config, *, whole: bool) -> NoReturn:
    files = (
        "  --config FILE                 YAML with the names below; flags go over it.\n"
        f"  --preset NAME...              Sets of settings: {', '.join(presets.NAMES)}."
    )
    _print_help(about, config, often=OFTEN, whole=whole, more=[files])


def _print_help(
    about: str, section: BaseModel, *, often: Sequence[str], whole: bool, more: Sequence[str]
) -> NoReturn:
    """What the job does, and its flags with the values they have in it, to stdout."""
    found = list(settings(type(section), values=section))
    if not whole:
        found = sorted(
            (setting for setting in found if setting.name in often),
            key=lambda setting: often.index(setting.name),
        )
    rest = [
        "  --help-all                    Every setting, with its whole meaning; docs/ has the"
        " guide."
    ]
    rest = [
        *([] if whole else rest),
        "",
        "In a flag, dashes stand for underscores too: --pl.learning-rate.",
    ]
    lines = help_lines(found, width=shutil.get_terminal_size((100, 40)).columns, whole=whole)
    print("\n".join([about.strip(), "", *more, *rest, "", *lines]))
    sys.exit(0)


def flags(argv: Sequence[str], root: type[BaseModel] = Config) -> dict[str, Any]:
    """Flags as a tree: `--pl.workers 2`, `--pl.workers=2`, `--evaluate.lvlm`, `--evaluate.no_lvlm`,
    `--ablations consistent no_pi_all`.

    Types are left to `validate`, which says of a flag what it says of the same setting in YAML.

    Raises:
        ConfigurationError: a value without a flag, or one that cannot be read.
    """
    tree: dict[str, Any] = {}
    for flag, values in _grouped(argv):
        path = flag.removeprefix("--").replace("-", "_").split(".")
        negated = [*path[:-1], path[-1].removeprefix("no_")]
        if not values and negated != path and _type_of(negated, root) is bool:
            path, values = negated, ["false"]
        kind = _type_of(path, root)
        if not values and kind not in (bool, None):
            raise ConfigurationError(f"{flag} needs a value; give it as {flag} VALUE")
        if len(values) > 1 and not _takes_many(path, kind):
            raise ConfigurationError(
                f"{flag} takes one value, and {values[1]!r} stands after it; a value with spaces"
                " is put into quotes"
            )
        read = [_value(flag, text, kind) for text in values]
        section = tree
        for part in path[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigurationError(
                    f"{flag}: {part} was given a value of its own before; give one of the two"
                )
        one = read[0] if read else True
        section[path[-1]] = (
            read
            if len(read) > 1 or (get_origin(kind) is tuple and not isinstance(one, list))
            else one
        )
    return tree


def _takes_many(path: Sequence[str], kind: Any) -> bool:
    """Whether several values may follow a flag; of an unknown one something else is said."""
    return kind is None or get_origin(kind) is tuple or path == ["preset"]


def _grouped(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the values up to the next one."""
    flag = ""
    values: list[str] = []
    for text in argv:
        if text.startswith("--") or text == "-h":
            if flag:
                yield flag, values
            flag, equals, value = text.partition("=")
            flag, values = "--help" if flag == "-h" else flag, [value] if equals else []
        elif not flag:
            raise ConfigurationError(
                f"{text!r} comes before any flag; settings are given as --name value"
            )
        else:
            values.append(text)
    if flag:
        yield flag, values


def _value(flag: str, text: str, kind: Any) -> Any:
    """Text stays text where the setting is one; else it is read as YAML, which knows numbers, true
    and false, lists and mappings.
    """
    try:
        text.encode()
        return text if kind in (str, str | None) else yaml.safe_load(text)
    except UnicodeEncodeError:
        raise ConfigurationError(f"{flag}={text!r} is not UTF-8; rename what it names") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{flag}={text!r}: not YAML: {' '.join(str(error).split())}"
        ) from error


def _type_of(path: Sequence[str], root: type[BaseModel] = Config) -> Any:
    """The type of a setting; None where there is no setting of the name."""
    if path in (["preset"], ["config"]):
        return str
    if path in (["help"], ["help_all"]):
        return bool
    kind: Any = root
    for part in path:
        section = section_in(kind)
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        kind = field.annotation
    return kind


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"--config {path}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(
            f"--config {path}: cannot be read: {error.strerror}; give a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--config {path}: not YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"--config {path}: expected settings as `name: value`, found {type(tree).__name__}"
        )
    return tree


_RUN_BY_FLAG = "run_by_flag"


class JobParser(argparse.ArgumentParser):
    """argparse's, with whole flags only.

    Args:
        description: the job's docstring, shown as it is, examples included.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_run(self, *flags: str) -> None:
        """The output folder of a run, as an argument or behind one of `flags`; it is `run` of what
        is parsed.
        """
        self.add_argument(
            "run",
            nargs="?",
            metavar="RUN",
            help="the output folder of a run, local, s3:// or gs://",
        )
        self.add_argument(*flags, dest=_RUN_BY_FLAG, metavar="RUN", help="the same")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        given = super().parse_args(args, namespace)
        if hasattr(given, _RUN_BY_FLAG):
            runs = {given.run, getattr(given, _RUN_BY_FLAG)} - {None}
            if len(runs) != 1:
                both = f"one RUN is needed, and {' and '.join(sorted(runs))} are given"
                self.error(both if runs else "the following arguments are required: RUN")
            given.run = runs.pop()
        return given

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, as a run does, and end with exit code 2."""
        hints = []
        if message.startswith("unrecognized arguments"):
            known = [option for action in self._actions for option in action.option_strings]
            for word in re.findall(r"(?<!\S)--[\w-]+", message):
                near = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(
                    word.replace("-", "_"), known, n=1
                )
                hints += [f"; did you mean {near[0]}?" if near else ""]
        self.exit(2, f"error: {message}{''.join(hints)}; --help says what there is\n")


def run_first(argv: Sequence[str], flag: str) -> list[str]:
    """For jobs that take the flags of a run too: a RUN that is their first argument stands behind
    its flag.
    """
    return [flag, *argv] if argv and not argv[0].startswith("-") else list(argv)
