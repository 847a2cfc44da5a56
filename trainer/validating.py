"""Validation of a stage: the mean loss of batches that are never trained on.

All ranks take part at once: an error that one of them meets, all meet.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flmgrow.formats.history.training_state import Carried
from flmgrow.trainer.data.batches import MicroBatches, checked
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.data.validation import sample_count, validation_batches
from flmgrow.trainer.metrics.records import ValidationRecord
from flmgrow.trainer.ranks.agreement import summed, together
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.steps import losses_of, run_batch


@torch.no_grad()
def validate(
    models: Sequence[Any], run: RunConfig, data: StageData, iteration: int, carried: Carried
) -> ValidationRecord:
    """Return the loss of ``models`` on what is held out, after step ``iteration``.

    ``models`` are this rank's pipeline chunks, ``carried`` is what was trained on up to there.
    """
    stage = run.stage
    sums = torch.zeros(4, dtype=torch.float64)
    length = stage.data.sequence_length
    for micro_batches in _held_out(run, data):
        found = run_batch(models, micro_batches, sequence_length=length, forward_only=True)
        sums += found.cpu()
    loss = losses_of(summed(sums.tolist())).mean
    return ValidationRecord(iteration, carried.tokens, carried.flops, loss, stage.name)


def validated(run: RunConfig, data: StageData) -> int:
    """Return how many samples a validation reads."""
    stage = run.stage
    return sample_count(stage.log, stage.training.batch, data.held_out_samples)


def _held_out(run: RunConfig, data: StageData) -> Iterator[MicroBatches]:
    """Yield what is validated on, on all ranks at once."""
    assert data.held_out is not None
    chunks = run.layout.pp if run.layout.vpp > 1 else 1
    batches = validation_batches(data.held_out, validated(run, data), run.batching, chunks)
    good = (checked(each, run.config.vocab) for each in batches)
    while micro_batches := together(lambda: next(good, None)):
        yield micro_batches
