"""Log lines of the run's own, in the driver and in its workers, each with the run and the stage.

Workers write theirs to Ray's log files, as plain lines. With MPA_LOG_FORMAT=json in the driver's
environment they are JSON, one object a line, and so are Ray's own lines beside them; the driver
then writes what it says (`progress.say`) to its standard error too, in the same form. What it says
on standard output stays for people.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.clean_text import visible

LOG = logging.getLogger("mpa_ray")
VARIABLE = "MPA_LOG_FORMAT"
_FORMATS = ("plain", "json")
# What every record has; the rest is what a line says beside its message.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

_run, _process_stage = "", ""
_stage: ContextVar[str] = ContextVar("stage", default="")


class _Where(logging.Filter):
    """Adds run and stage."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.run, record.stage = _run, _stage.get() or _process_stage
        return True


class _Plain(logging.Formatter):
    """One line a message, whatever texts of models and files are in it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(run)s %(stage)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\\n")


class _Json(logging.Formatter):
    """The names of Ray's own JSON lines, as far as they go."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "name": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


_WHERE = _Where()


def wants_json() -> bool:
    """Whether this process's environment asks for JSON lines.

    Raises:
        ConfigurationError: it asks for something else.
    """
    asked = os.environ.get(VARIABLE) or "plain"
    if asked not in _FORMATS:
        raise ConfigurationError(
            f"{VARIABLE}={asked!r} is no format of log lines; set it to {' or '.join(_FORMATS)}"
        )
    return asked == "json"


def in_driver(run: str) -> None:
    """The lines of this process are of `run` from here on; they are written where JSON is asked
    for.
    """
    global _run
    _run = run
    if wants_json() and not LOG.handlers:
        _write(_Json())


def in_worker(run: str, stage: str) -> None:
    """The lines of this process are of a stage of `run` from here on. How they look was settled
    where Ray was started.
    """
    global _run, _process_stage
    _run, _process_stage = run, stage
    handlers = logging.getLogger().handlers
    for handler in handlers:
        if _WHERE not in handler.filters:
            handler.addFilter(_WHERE)
    if handlers:
        LOG.setLevel(logging.INFO)
    elif not LOG.handlers:
        _write(_Plain())


def _write(formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_WHERE)
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Lines of this thread, and of those that copy its context, are of the stage `name`."""
    before = _stage.set(name)
    try:
        yield
    finally:
        _stage.reset(before)


def run_id(output: str | None) -> str:
    """A short name of an output folder, by its URI, for tags and logs: its last name and a hash,
    the same in every call on it.
    """
    if output is None:
        return ""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", output.rpartition("/")[2])[:40]
    return f"{name}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"
