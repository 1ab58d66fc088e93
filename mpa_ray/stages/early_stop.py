"""How a stage ends before its time without losing anything: the engine cannot serve any more (a
wrong key, a spent budget), and nothing is broken.

An error raised inside a dataset would throw away every part that is on its way through later
stages. So the actor notes its reason instead (`mpa_ray.stages.call_notes`) and lets go of what it
was not yet asked; reads that are still to come give empty parts; whatever is complete flows on to
its commit; and the run, when the stream has ended, says the reason (exit code 3). The same command
resumes the run.
"""

from collections.abc import Callable

import pyarrow as pa

from mpa_ray.errors import RunError
from mpa_ray.stages.call_notes import CallNotes, note
from mpa_ray.storage.folder import Folder


def request_stop(output: Folder, reason: str) -> None:
    """End the stage: nothing new is begun from here on."""
    note(output, CallNotes.request_stop, reason)


def stop_reason(output: Folder) -> str | None:
    """Why the stage was ended, or None while it runs."""
    return note(output, CallNotes.stop_reason)


def begin_call(output: Folder) -> None:
    """Forget what an earlier call of this process has noted. In the driver, before any stage."""
    note(output, CallNotes.clear)


def raise_if_stopped(output: Folder, done: str) -> None:
    """End the run where its stage was ended.

    Raises:
        RunError: the reason, and `done`.
    """
    reason = stop_reason(output)
    if reason is not None:
        raise RunError(f"{reason}. {done}; the same command resumes the run")


def read_unless_stopped(
    number: int, *, read: Callable[[int], pa.Table], output: Folder, schema: pa.Schema
) -> pa.Table:
    """The part `number`, or an empty one when the stage was ended."""
    return schema.empty_table() if stop_reason(output) is not None else read(number)
