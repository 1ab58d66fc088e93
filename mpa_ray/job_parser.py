"""The command line of the jobs that are no runs: `--help` with the job's own text, and the near name where a flag was mistyped."""

import argparse
import difflib
import re
from typing import NoReturn


class JobParser(argparse.ArgumentParser):
    """argparse's, with whole flags only.

    Args:
        description: the job's docstring, shown as it is, examples included.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line, as a run does, and ends with exit code 2."""
        hints = []
        if message.startswith("unrecognized arguments"):
            known = [option for action in self._actions for option in action.option_strings]
            for word in re.findall(r"(?<!\S)--[\w-]+", message):
                near = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(word.replace("-", "_"), known, n=1)
                hints += [f"; did you mean {near[0]}?" if near else ""]
        self.exit(2, f"error: {message}{''.join(hints)}; --help says what there is\n")
