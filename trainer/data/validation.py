"""The micro-batches of a validation, taken from the samples that are held out.

Validation reads the same text in every stage, so that its losses can be compared. It is a number of
samples, the first of the sequence that is held out, whatever a batch is: where a stage makes
batches larger the loss does not jump. Micro-batches that are not full are filled up with rows that
do not count.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flmgrow.trainer.data.batches import Batching, MicroBatches, stacked
from flmgrow.trainer.data.samples import Sample, Samples
from flmgrow.trainer.stage.watching import LogSection

USUAL = 128
"""Samples, where nothing else is said; or all that are held out, if they are fewer."""

_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Samples that are never trained on, of ``corpora``: a sample's ``source`` is a place in these.

    ``once`` is how many there are before the first comes again.
    """

    samples: Samples
    corpora: tuple[str, ...]
    once: int


def sample_count(log: LogSection, batch: int, held_out: int) -> int:
    """Return how many samples a validation reads, of ``held_out`` that there are."""
    if log.validation_samples is not None:
        return log.validation_samples
    if log.validation_batches is not None:
        return log.validation_batches * batch
    return min(USUAL, held_out)


def read_again(count: int, held_out: int) -> Iterator[str]:
    """Yield a note if a validation of ``count`` samples reads those ``held_out`` repeatedly."""
    if count > held_out:
        yield (
            f"a validation reads {count:,} samples, {held_out:,} are held out: "
            f"{count / held_out:.1f} times each"
        )


def validation_batches(
    held_out: Samples, count: int, batching: Batching, multiple: int
) -> Iterator[MicroBatches]:
    """Yield the first ``count`` samples in a replica's micro-batches, a few of these at once.

    How many at once is a ``multiple``, the same for all replicas, and does not depend on the batch.
    """
    stride = batching.micro_batch * batching.replicas
    needed = min(_AT_ONCE, -(-count // stride))
    step = stride * -(-needed // multiple) * multiple
    by = replace(batching, batch=step)
    empty = _empty(held_out[0])
    for begin in range(0, count, step):
        yield [
            stacked([held_out[index] if index < count else empty for index in indices])
            for indices in by.micro_batches(begin)
        ]


def _empty(sample: Sample) -> Sample:
    """Return a row like ``sample`` that does not count."""
    return replace(sample, loss_mask=np.zeros_like(sample.loss_mask))
