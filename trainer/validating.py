"""Validation of a stage: the mean losses on the sets that it is validated on.

All ranks take part at once: an error that one of them meets, all meet.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flmgrow.formats.history.training_state import Carried
from flmgrow.trainer.data.batches import MicroBatches, checked
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.data.validation import (
    TextSize,
    ValidationSet,
    read_again,
    sample_count,
    text_size,
    validation_batches,
)
from flmgrow.trainer.metrics.records import SetLoss, ValidationRecord
from flmgrow.trainer.ranks.agreement import summed, together
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.data import HELD_OUT
from flmgrow.trainer.steps import Losses, losses_of, run_batch


class Validation:
    """The sets that a stage is validated on, the main one first, and how large their texts are."""

    def __init__(self, run: RunConfig, data: StageData) -> None:
        main = run.stage.validation_set
        self._run = run
        self._sets = sorted(data.validation, key=lambda each: each.name != main)
        self._lengths = data.tokenizer.byte_lengths
        self._sizes: dict[str, TextSize] = {}

    @torch.no_grad()
    def losses(self, models: Sequence[Any], iteration: int, carried: Carried) -> ValidationRecord:
        """Return the losses of ``models`` on all sets, after step ``iteration``.

        ``models`` are this rank's pipeline chunks, ``carried`` is what was trained on up to there.
        """
        found = {each.name: self._loss(models, each) for each in self._sets}
        main = found[self._sets[0].name]
        named = bool(self._run.stage.data.validation_sets)
        return ValidationRecord(
            iteration,
            carried.tokens,
            carried.flops,
            main.loss,
            self._run.stage.name,
            by_corpus=main.by_corpus,
            bits_per_byte=main.bits_per_byte,
            sets=found if named else {},
        )

    def _loss(self, models: Sequence[Any], part: ValidationSet) -> SetLoss:
        """Return the loss on one set."""
        losses = _losses(models, self._run, part)
        bits = None
        if self._lengths is not None:
            if part.name not in self._sizes:
                count, lengths = validated(self._run, part), self._lengths
                self._sizes[part.name] = together(lambda: text_size(part.samples, count, lengths))
            bits = self._sizes[part.name].bits_per_byte(losses.mean)
        several = len(part.corpora) > 1
        return SetLoss(losses.mean, bits, losses.by(part.corpora) if several else {})


def notes_on(run: RunConfig, data: StageData) -> Iterator[str]:
    """Yield what somebody may not expect of a stage's validation."""
    for part in data.validation:
        told = "" if part.name == HELD_OUT else f"validation set {part.name}: "
        yield from part.notes
        yield from (f"{told}{note}" for note in read_again(validated(run, part), part.once))
    if data.validation and data.tokenizer.byte_lengths is None:
        yield (
            "a validation tells no bits per byte: with this tokenizer, the bytes of a token depend "
            "on those beside it, or are not known"
        )


def validated(run: RunConfig, part: ValidationSet) -> int:
    """Return how many samples of a set a validation reads."""
    stage = run.stage
    return sample_count(stage.log, stage.training.batch, part.once, part.asked)


def _losses(models: Sequence[Any], run: RunConfig, part: ValidationSet) -> Losses:
    """Return the losses on a set, of each corpus too."""
    length, sources = run.stage.data.sequence_length, len(part.corpora)
    sums = None
    for micro_batches in _batches(run, part):
        found = run_batch(
            models, micro_batches, sequence_length=length, forward_only=True, sources=sources
        ).cpu()
        sums = found if sums is None else sums + found
    assert sums is not None
    return losses_of(summed(sums.tolist()))


def _batches(run: RunConfig, part: ValidationSet) -> Iterator[MicroBatches]:
    """Yield what is validated on, on all ranks at once."""
    chunks = run.layout.pp if run.layout.vpp > 1 else 1
    count = validated(run, part)
    batches = validation_batches(part.samples, count, run.batching, chunks)
    good = (checked(each, run.config.vocab) for each in batches)
    while micro_batches := together(lambda: next(good, None)):
        yield micro_batches
