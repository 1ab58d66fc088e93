"""What runs inside vLLM's own workers: the count of vision encoder runs, which vLLM keeps for
itself.

The prefix cache's `num_cached_tokens` does not tell it: an image all of whose full blocks were
cached is encoded again when one token of it lies in a block that was not.
"""

from typing import Any


class EncoderRuns:
    """Mixed into vLLM's worker by its `worker_extension_cls`; called through `collective_rpc`."""

    model_runner: Any

    def start_counting_encoder_runs(self) -> None:
        """Counts from now on. The scheduler says with each step which images have to be encoded for
        it.
        """
        execute = self.model_runner.execute_model
        self._encoder_runs = 0

        def counting(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._encoder_runs += sum(map(len, scheduler_output.scheduled_encoder_inputs.values()))
            return execute(scheduler_output, *args, **kwargs)

        self.model_runner.execute_model = counting

    def count_encoder_runs(self) -> int:
        """Images encoded so far, each time it was done."""
        return self._encoder_runs
