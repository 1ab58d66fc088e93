"""What Ray Data asks at each step of a dataset's execution. It imports Ray: import it where Ray is used already."""

from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from mpa_ray import side_by_side


class EndsWhenInterrupted(ExecutionCallback):
    """Ends the execution where the threads of the run were interrupted."""

    def on_execution_step(self, executor: Any) -> None:
        if side_by_side.is_interrupted():
            # Of all errors that may be raised here, this is one that Ray Data does not show as an error of its own.
            raise ExecutionTimeoutError("interrupted")
