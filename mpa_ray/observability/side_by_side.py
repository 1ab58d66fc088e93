"""Several pieces of work at the same time, in threads, which Ctrl-C ends too.

Python raises KeyboardInterrupt in the main thread alone. What the other threads do asks here
whether it shall continue: each dataset of Ray Data at each step of its execution, and whatever
waits.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ray.data._internal.execution.execution_callback import ExecutionCallback

_interrupted = Event()

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T], *, at_once: int) -> list[R]:
    """`work` of each item, so many of them at the same time, in the order of the items.

    Where one fails, those that run are finished and no other is begun; where the caller is
    interrupted, those that run are ended.
    """
    try:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except KeyboardInterrupt:
                _interrupted.set()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        _interrupted.clear()


def is_interrupted() -> bool:
    """Whether the work that runs beside others shall end."""
    return _interrupted.is_set()


@cache
def ends_when_interrupted() -> type["ExecutionCallback"]:
    """What Ray Data is given to call at each step of a dataset's execution, which this ends."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data.exceptions import ExecutionTimeoutError

    class EndsWhenInterrupted(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            if is_interrupted():
                # Of all errors that may be raised here, this is one that Ray Data does not show as
                # an error of its own.
                raise ExecutionTimeoutError("interrupted")

    return EndsWhenInterrupted
