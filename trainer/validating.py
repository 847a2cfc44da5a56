"""Validation of a stage: the mean loss of batches that are never trained on.

All ranks take part at once: an error that one of them meets, all meet.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flmgrow.formats.history.training_state import Carried
from flmgrow.trainer.data.batches import MicroBatches, checked
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.data.validation import HeldOut, sample_count, validation_batches
from flmgrow.trainer.metrics.records import ValidationRecord
from flmgrow.trainer.ranks.agreement import summed, together
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.steps import Losses, losses_of, run_batch


@torch.no_grad()
def validate(
    models: Sequence[Any], run: RunConfig, data: StageData, iteration: int, carried: Carried
) -> ValidationRecord:
    """Return the loss of ``models`` on what is held out, after step ``iteration``.

    ``models`` are this rank's pipeline chunks, ``carried`` is what was trained on up to there.
    """
    held_out = data.held_out
    assert held_out is not None
    losses = _losses(models, run, held_out)
    return ValidationRecord(
        iteration,
        carried.tokens,
        carried.flops,
        losses.mean,
        run.stage.name,
        by_corpus=losses.by(held_out.corpora) if len(held_out.corpora) > 1 else {},
    )


def validated(run: RunConfig, held_out: HeldOut) -> int:
    """Return how many samples of what is held out a validation reads."""
    stage = run.stage
    return sample_count(stage.log, stage.training.batch, held_out.once)


def _losses(models: Sequence[Any], run: RunConfig, held_out: HeldOut) -> Losses:
    """Return the losses on what is held out, of each corpus too."""
    length, sources = run.stage.data.sequence_length, len(held_out.corpora)
    sums = None
    for micro_batches in _batches(run, held_out):
        found = run_batch(
            models, micro_batches, sequence_length=length, forward_only=True, sources=sources
        ).cpu()
        sums = found if sums is None else sums + found
    assert sums is not None
    return losses_of(summed(sums.tolist()))


def _batches(run: RunConfig, held_out: HeldOut) -> Iterator[MicroBatches]:
    """Yield what is validated on, on all ranks at once."""
    chunks = run.layout.pp if run.layout.vpp > 1 else 1
    count = validated(run, held_out)
    batches = validation_batches(held_out.samples, count, run.batching, chunks)
    good = (checked(each, run.config.vocab) for each in batches)
    while micro_batches := together(lambda: next(good, None)):
        yield micro_batches
