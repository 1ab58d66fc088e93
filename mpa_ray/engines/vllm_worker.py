"""What mpa_ray adds to vLLM's worker process (vLLM's `worker_extension_cls`)."""

from typing import TYPE_CHECKING, Any


class TakesWeights:
    """Methods of the worker."""

    if TYPE_CHECKING:
        model_runner: Any

        def reload_weights(self, weights_path: str) -> None:
            """vLLM's own."""

    def take_weights(self, folder: str) -> None:
        """Replace the model's weights by those of a checkpoint of the same architecture."""
        from vllm.model_executor.layers.vocab_parallel_embedding import (
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        self.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            # vLLM 0.32 processes again what a checkpoint has weights for. A head that is tied to
            # the input embeddings has none, and on the CPU it would keep its packed copy of the old
            # ones.
            if isinstance(layer, ParallelLMHead) and isinstance(
                layer.quant_method, UnquantizedEmbeddingMethod
            ):
                layer.quant_method.process_weights_after_loading(layer)
