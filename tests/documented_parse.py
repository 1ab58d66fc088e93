"""Parsing a documented command by what it would start, so that a renamed flag or job is found where
the command itself cannot run.
"""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from mpa_ray import cli
from mpa_ray.config.describe import settings
from mpa_ray.config.section import Section
from tests.documented import ROOT

_ASSIGNMENT = re.compile(r"\w+=.*")
# The shell's own, and tools of every machine.
_SHELL = {"cd", "export", "mkdir", "source", "cat", "ls", "echo", "cp", "tar"}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block; what a pipe or a semicolon divides are several."""
    for line in text.replace("\\\n", " ").split("\n"):
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("|", "&&", ";", "&"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def check(words: Sequence[str]) -> None:
    """Raises, or exits, where the command could not be understood by what it starts."""
    words = list(words)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if not words or words[0] in _SHELL:
        return
    program, *arguments = words
    match program.rpartition("/")[2]:
        case "python" | "python3" if arguments[0] == "-m":
            assert find_spec(arguments[1].partition(".")[0]), f"no module {arguments[1]}"
        case "python" | "python3":
            check_script(arguments[0], arguments[1:])
        case "make":
            for target in (
                word for word in arguments if "=" not in word and not word.startswith("-")
            ):
                subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
        case "ray":
            check_ray(arguments)
        case _:
            raise AssertionError(
                f"{program}: there is no way to check it; mark the block <!-- outside: reason -->"
            )


def check_script(path: str, argv: list[str]) -> None:
    """A job or a benchmark: its own parser takes the arguments."""
    assert (ROOT / path).is_file(), f"no file {path}"
    # A benchmark imports those beside it, which only its own process finds.
    names = {} if path.startswith("benchmarks/") else runpy.run_path(str(ROOT / path))
    if "CONFIG" in names:
        # The doctor looks at a machine too, without a run.
        whole = not path.endswith("doctor.py")
        cli.parse(
            names["CONFIG"], [word for word in argv if whole or word != "--quick"], whole=whole
        )
    elif "parse" in names:
        names["parse"](argv)
    elif "arguments" in names:
        names["arguments"]().parse_args(argv)
    else:
        ended = subprocess.run(
            [sys.executable, str(ROOT / path), *argv, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr


def check_ray(argv: list[str]) -> None:
    """Ray's command line, by its own parser; and after `--` of a submission, ours."""
    import click
    from ray.scripts.scripts import cli as group

    ours = argv[argv.index("--") + 1 :] if "--" in argv else []
    command: Any = group
    rest = argv[: argv.index("--")] if ours else argv
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(click.Context(command), rest)
    command.make_context(name, [*rest, *(["--", *ours] if ours else [])])
    check(ours)


def flag_is_known(flag: str) -> bool:
    """Whether a run, or any job, takes the flag."""
    path = flag.removeprefix("--").replace("-", "_").split(".")
    # The doctor takes this one out of a run's by hand.
    return cli._type_of(path) is not None or flag in {"--quick", *_flags_of_jobs()}


def _flags_of_jobs() -> set[str]:
    if not _FLAGS:
        for path in (ROOT / "jobs").glob("*.py"):
            names = runpy.run_path(str(path))
            if "arguments" in names:
                _FLAGS.update(
                    option
                    for action in names["arguments"]()._actions
                    for option in action.option_strings
                )
            for section in (
                value
                for value in names.values()
                if isinstance(value, type) and issubclass(value, Section)
            ):
                _FLAGS.update(f"--{setting.name}" for setting in settings(section))
    return _FLAGS


_FLAGS: set[str] = set()
