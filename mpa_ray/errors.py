"""The errors that are meant for people: one line that names the thing and the fix."""

import errno
import re
from typing import Any

USAGE = 2
FAILED = 3
INTERRUPTED = 130
# A disk that is full, over its quota, read-only or failing, wherever that was noticed.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

_IN_TRACEBACK = re.compile(
    r"^mpa_ray\.errors\.(ConfigurationError|RunError|StorageError): (.+)$", re.MULTILINE
)


class ConfigurationError(ValueError):
    """The configuration or its inputs cannot be used. Raised before any model loads; a job exits
    with code 2. Several problems are several arguments: each is a line of its own."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class RunError(RuntimeError):
    """The run cannot continue (nothing to train on, too much quarantined, storage failing). What is
    finished stays; a job exits with 3.
    """


class StorageError(RunError):
    """A disk or an object store failed for another reason than that something is not there, and
    again when asked again.
    """


class NothingToTeach(RunError):
    """There is no row to train on: no annotation, none that the S-VLM lacks, or none beside the
    held-out ones.
    """

    record: Any = None
    """What run.json would say of the run (a `RunRecord`), where it came so far."""


def meant_for_people(error: BaseException) -> ConfigurationError | RunError | None:
    """What is to be said of an error in one line: an error of ours, also one that a worker raised,
    or a failing disk. None for others.

    Of errors of a dataset's workers Ray keeps no more than the traceback, as text.
    """
    found = _IN_TRACEBACK.search(str(error))
    if found is not None:
        return (ConfigurationError if found[1] == "ConfigurationError" else RunError)(found[2])
    if isinstance(error, ConfigurationError | RunError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK:
        return RunError(f"{error}. Fix the storage and give the same command again")
    return None
