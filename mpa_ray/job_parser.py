"""The command line of the jobs that are no runs: `--help` with the job's own text, and the near name where a flag was mistyped."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_RUN_BY_FLAG = "run_by_flag"


class JobParser(argparse.ArgumentParser):
    """argparse's, with whole flags only.

    Args:
        description: the job's docstring, shown as it is, examples included.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def add_run(self, *flags: str) -> None:
        """The output folder of a run, as an argument or behind one of `flags`; it is `run` of what is parsed."""
        self.add_argument("run", nargs="?", metavar="RUN", help="the output folder of a run, local, s3:// or gs://")
        self.add_argument(*flags, dest=_RUN_BY_FLAG, metavar="RUN", help="the same")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = super().parse_args(args, namespace)
        if hasattr(given, _RUN_BY_FLAG):
            runs = {given.run, getattr(given, _RUN_BY_FLAG)} - {None}
            if len(runs) != 1:
                both = f"one RUN is needed, and {' and '.join(sorted(runs))} are given"
                self.error(both if runs else "the following arguments are required: RUN")
            given.run = runs.pop()
        return given

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line, as a run does, and ends with exit code 2."""
        hints = []
        if message.startswith("unrecognized arguments"):
            known = [option for action in self._actions for option in action.option_strings]
            for word in re.findall(r"(?<!\S)--[\w-]+", message):
                near = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(word.replace("-", "_"), known, n=1)
                hints += [f"; did you mean {near[0]}?" if near else ""]
        self.exit(2, f"error: {message}{''.join(hints)}; --help says what there is\n")


def run_first(argv: Sequence[str], flag: str) -> list[str]:
    """For jobs that take the flags of a run too: a RUN that is their first argument stands behind its flag."""
    return [flag, *argv] if argv and not argv[0].startswith("-") else list(argv)
