"""How a job ends: its exit code, and the lines that say why."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mpa_ray.errors import (
    FAILED,
    INTERRUPTED,
    USAGE,
    ConfigurationError,
    RunError,
    meant_for_people,
)
from mpa_ray.observability.clean_text import visible_line


@contextmanager
def exit_codes() -> Iterator[None]:
    """End a job with 2 (the configuration or an input cannot be used), 3 (it could not continue)
    or 130 (Ctrl-C), each with its lines on stderr.
    """
    try:
        yield
    except (ConfigurationError, RunError, OSError) as error:
        said = meant_for_people(error)
        if said is None:
            raise
        _end(said, USAGE if isinstance(said, ConfigurationError) else FAILED)
    except KeyboardInterrupt:
        print(
            "\nstopped; what is finished is kept, and the same command resumes the run",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def _end(error: Exception, code: int) -> NoReturn:
    """Each problem on a line. A line break inside of one may come from a name: what follows it is
    set in, so that it cannot look like a line of ours."""
    for problem in error.args:
        line, *rest = map(visible_line, str(problem).split("\n"))
        print(f"error: {line}", *rest, sep="\n       ", file=sys.stderr)
    sys.exit(code)
