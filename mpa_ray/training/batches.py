"""Who learns what: each worker's share of every optimizer step, in micro-batches."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mpa_ray.config import TrainingSection
from mpa_ray.training.objective import Batch, Collate
from mpa_ray.training.training_data import Sample, TrainingSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's part of one optimizer step: micro-batches of (indices, how many of them are
    learned), the same number for all workers.
    """

    micro_batches: list[tuple[list[int], int]]
    batch_size: int

    @property
    def learned(self) -> int:
        return sum(learned for _, learned in self.micro_batches)


def shares(
    order: np.ndarray,
    *,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    workers: int,
    start: int = 0,
) -> Iterator[Share]:
    """The worker's share of every step from sample `start` of `order` on. Every sample is learned
    exactly once, by one worker.

    A last batch that is not full is trained on as it is. Where a batch does not divide evenly,
    workers repeat a sample without learning it, so that all of them make the same calls: ZeRO waits
    for each.
    """
    for first in range(start, len(order), batch_size):
        batch = order[first : first + batch_size]
        per_worker = -(-len(batch) // workers)
        own = batch[rank * per_worker : (rank + 1) * per_worker].tolist()
        learned = len(own)
        own += [int(batch[0])] * (per_worker - learned)
        micro = [
            (own[begin : begin + micro_batch_size], max(0, min(micro_batch_size, learned - begin)))
            for begin in range(0, per_worker, micro_batch_size)
        ]
        yield Share(micro_batches=micro, batch_size=len(batch))


def of_like_length(
    micro_batches: list[list[Sample]], *, learned: int
) -> list[tuple[list[Sample], int]]:
    """The samples of a step in micro-batches of the same sizes, short ones with short ones, so that
    little of a batch is padding. Gradients add up over the step, so nothing else changes. With each
    comes how many of it are learned: the first `learned` samples of all.

    How long a sample is for the model is estimated, alike for all families: pixels by 28 x 28, and
    characters by four.
    """

    def length(sample: Sample) -> float:
        return (
            sample.image.width * sample.image.height / 784
            + (len(sample.question) + len(sample.answer)) / 4
        )

    samples = [sample for micro_batch in micro_batches for sample in micro_batch]
    ordered = iter(sorted(samples[:learned], key=length) + samples[learned:])
    found, begun = [], 0
    for micro_batch in micro_batches:
        size = len(micro_batch)
        found.append(([next(ordered) for _ in range(size)], max(0, min(size, learned - begun))))
        begun += size
    return found


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A worker's micro-batches of a whole training.

    Attributes:
        samples: what is trained on.
        order: their indices in the order of training, all epochs one after the other.
        collate: makes a batch of samples.
        rank: of the worker.
        workers: how many there are.
        dtype: the model's, which image tensors are handed over in.
    """

    samples: TrainingSet
    order: np.ndarray
    collate: Collate
    settings: TrainingSection
    rank: int
    workers: int
    dtype: "torch.dtype"

    @property
    def batch_size(self) -> int:
        """Samples of an optimizer step."""
        # `with_hyperparameters` has filled it in.
        assert self.settings.batch_size is not None
        return self.settings.batch_size

    @property
    def steps(self) -> int:
        """The optimizer steps of the training."""
        return math.ceil(len(self.order) / self.batch_size)

    def after(self, done: int) -> Iterator[tuple[Share, list[Batch]]]:
        """Yield the worker's share of every step after the first `done` samples of the order.

        Images are decoded in as many threads as the worker has cores.
        """
        with ThreadPoolExecutor(max(1, int(self.settings.cpus))) as pool:
            for share in shares(
                self.order,
                batch_size=self.batch_size,
                micro_batch_size=self.settings.micro_batch_size,
                rank=self.rank,
                workers=self.workers,
                start=done,
            ):
                indices = [index for indices, _ in share.micro_batches for index in indices]
                samples = iter(self.samples.read(indices, pool))
                micro_batches = [
                    list(islice(samples, len(indices))) for indices, _ in share.micro_batches
                ]
                drawn = of_like_length(micro_batches, learned=share.learned)
                yield (
                    share,
                    [self._made(samples, learned=learned) for samples, learned in drawn],
                )

    def _made(self, samples: list[Sample], *, learned: int) -> Batch:
        """The batch of `samples`, its image tensors in the model's precision, and in memory that a
        GPU copies from while it computes.
        """
        batch = self.collate(samples, learned=learned)
        made = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in batch.items()
        }
        if self.settings.gpus_per_worker:
            return {
                name: value if name == "labels" else value.pin_memory()
                for name, value in made.items()
            }
        return made
