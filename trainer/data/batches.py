"""The batches of each step and replica, resumable at any sample.

Sample n is always the same, whatever the batch is (:mod:`flmgrow.trainer.data.samples`). So all
that a checkpoint must remember is how many samples were consumed, and of which sequence
(:mod:`flmgrow.trainer.data.course`), and a stage with another batch goes on at the very next one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer.data.samples import Sample, Samples

MicroBatches = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Batching:
    """How a stage takes samples: ``batch`` per step, of which a replica computes its own.

    A replica computes ``micro_batch`` samples at once.

    Raises:
        UsageError: If that does not divide.
    """

    batch: int
    micro_batch: int
    replicas: int = 1
    replica: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.micro_batch, self.replicas) < 1:
            raise UsageError("batch, micro-batch and replicas: wanted at least 1 of each")
        if self.batch % (self.micro_batch * self.replicas):
            raise UsageError(
                f"a batch of {self.batch} does not divide into micro-batches of "
                f"{self.micro_batch} on {self.replicas} replicas"
            )
        if not 0 <= self.replica < self.replicas:
            raise UsageError(f"replica {self.replica} of {self.replicas}: counted from 0")

    def micro_batches(self, consumed: int) -> Iterator[range]:
        """Yield the samples of each of the replica's micro-batches, after ``consumed`` samples."""
        stride = self.micro_batch * self.replicas
        first = consumed + self.replica * self.micro_batch
        for start in range(first, consumed + self.batch, stride):
            yield range(start, start + self.micro_batch)


class Batches:
    """The batches of a stage after ``consumed`` samples, as micro-batches of one replica.

    ``size`` says how many samples a step reads by how many were read here before it; by default
    ``batching`` does.
    """

    def __init__(
        self,
        samples: Samples,
        batching: Batching,
        consumed: int = 0,
        size: Callable[[int], int] | None = None,
    ) -> None:
        self._samples = samples
        self._batching = batching
        self._begin = consumed
        self._size = size
        self.consumed = consumed

    def next_batching(self) -> Batching:
        """Return how the next step is taken."""
        if self._size is None:
            return self._batching
        return replace(self._batching, batch=self._size(self.consumed - self._begin))

    def __iter__(self) -> Iterator[MicroBatches]:
        """Yield the micro-batches of one step after the other, for ever."""
        while True:
            batching = self.next_batching()
            ranges = batching.micro_batches(self.consumed)
            step = [stacked([self._samples[index] for index in indices]) for indices in ranges]
            self.consumed += batching.batch  # before the step is seen: a save comes after it
            yield step


def stacked(samples: Sequence[Sample]) -> dict[str, npt.NDArray[Any]]:
    """Return a micro-batch: the four arrays of :class:`Sample`, each (samples, sequence length).

    Beside them ``taught`` and ``source``, each (samples,).
    """
    names = ("tokens", "labels", "loss_mask", "positions", "taught", "source")
    return {name: np.stack([getattr(sample, name) for sample in samples]) for name in names}


def blank(batching: Batching, length: int) -> MicroBatches:
    """Return micro-batches of the right shapes, as :class:`Batches` has them, that hold nothing."""
    row = np.zeros(length, np.int64)
    sample = Sample(row, row, np.ones(length, np.float32), np.arange(length))
    return [stacked([sample] * len(indices)) for indices in batching.micro_batches(0)]


def checked(micro_batches: MicroBatches, vocab: int) -> MicroBatches:
    """Return ``micro_batches``, which hold no ids that a model of ``vocab`` ids has not.

    Tensor ranks would look none of these up, and train on something else without a word.

    Raises:
        BadDataError: If they hold such ids.
    """
    for batch in micro_batches:
        for ids in (batch["tokens"], batch["labels"]):
            if ids.min() < 0 or ids.max() >= vocab:
                wrong = int(ids.min() if ids.min() < 0 else ids.max())
                raise BadDataError(
                    f"the corpora hold token {wrong}, the model has 0 to {vocab - 1}",
                    "prepare them with the tokenizer of the model, or make vocab_size larger",
                )
    return micro_batches
