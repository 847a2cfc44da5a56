"""The sets that a stage is validated on, and the micro-batches of a validation.

Validation reads the same text in every stage, so that its losses can be compared. It is a number of
samples, the first of each set's sequence, whatever a batch is: where a stage makes batches larger
the loss does not jump. Micro-batches that are not full are filled up with rows that do not count.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flmgrow.trainer.data.batches import Batching, MicroBatches, stacked
from flmgrow.trainer.data.samples import Sample, Samples
from flmgrow.trainer.data.tokenizer import ByteLengths
from flmgrow.trainer.stage.watching import LogSection

USUAL = 128
"""Samples, where nothing else is said; or all that there are, if they are fewer."""

_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Samples of ``corpora`` that are validated on: a sample's ``source`` is a place in these.

    ``once`` is how many there are before the first comes again; ``asked`` how many its section
    asks for. ``notes`` are what somebody may not expect of it.
    """

    name: str
    samples: Samples
    corpora: tuple[str, ...]
    once: int
    asked: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextSize:
    """The tokens of a set's samples that count, and the bytes of text that they are."""

    tokens: int
    bytes: int

    def bits_per_byte(self, loss: float) -> float | None:
        """Return a mean ``loss`` in nats per token as bits per byte; None where there is no text.

        The nats of all tokens over the bytes of all: a token that ends a document costs what it
        costs, and has no bytes.
        """
        return loss * self.tokens / (self.bytes * float(np.log(2))) if self.bytes else None


def text_size(samples: Samples, count: int, lengths: ByteLengths) -> TextSize:
    """Return the size of the first ``count`` samples; ``lengths`` are the bytes of each token."""
    tokens = total = 0
    for sample in (samples[index] for index in range(count)):
        counts = sample.loss_mask > 0
        tokens += int(counts.sum())
        total += int(lengths.of(sample.labels, sample.tokens)[counts].sum())
    return TextSize(tokens, total)


def sample_count(log: LogSection, batch: int, held_out: int, asked: int | None = None) -> int:
    """Return how many samples a validation reads, of ``held_out`` that there are.

    ``asked`` is what a set's own section says, before what holds for all.
    """
    if asked is not None:
        return asked
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
