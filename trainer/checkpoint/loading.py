"""Filling parameters and optimizer from any checkpoint that flmgrow can open.

Ranks read the boxes of logical tensors that they hold, so a checkpoint need not have the layout,
the format or the precision of the run. They read them a stretch at a time, and of Adam's moments
no more than they keep: what loading takes beside the run's own memory is as large for any model.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.placements import Slice
from flmgrow.formats.reading import AssembledArray, LogicalReader
from flmgrow.model.states import State
from flmgrow.text import Found, Text
from flmgrow.trainer.megatron.parameters import (
    Counted,
    OptimizerView,
    Parameter,
    Stretches,
    fill,
)

STRETCH = 1 << 20
"""Elements that are read at once."""


def load(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    optimizer: OptimizerView,
    still: Collection[Slice],
) -> Counted:
    """Fill parameters and optimizer with what ``checkpoint`` holds of them.

    ``still`` is what lies in frozen parameters. Returns what Adam has counted then.

    Raises:
        BadCheckpointError: For damaged bytes, as far as the format has sums.
    """
    counted = counted_of(checkpoint, still)
    for parameter in parameters:
        stored = {
            state: _stretches(parameter, reader)
            for state, reader in checkpoint.readers.items()
            if parameter.trains or state in (State.WEIGHT, State.MASTER)
        }
        fill(parameter, optimizer, stored, counted.of(parameter))
    if optimizer.counts_by_group and counted.steps:
        for group in optimizer.groups:
            group["step"] = counted.steps
    return counted


def counted_of(checkpoint: Checkpoint, still: Collection[Slice]) -> Counted:
    """Return what Adam has counted where a stage begins with ``checkpoint``.

    What is ``still`` has no state. What had none before begins here, behind by all that was
    counted.

    Raises:
        BadCheckpointError: If its optimizer state does not say, or says less than nothing.
    """
    frozen: dict[Slice, int | None] = dict.fromkeys(sorted(still, key=str))
    state = checkpoint.optimizer
    if state is None:
        return Counted(0, frozen)
    steps = state.step_count
    most = max((lag or 0 for lag in state.lags.values()), default=0)
    if most > steps:
        what = Text("optimizer: lags behind by ", Found(most), " steps")
        raise BadCheckpointError(what, where=checkpoint.folder, wanted=f"at most {steps}")
    known = {each: steps if lag is None else lag for each, lag in state.lags.items()}
    return Counted(steps, {**{each: lag for each, lag in known.items() if lag}, **frozen})


def _stretches(parameter: Parameter, reader: LogicalReader) -> Stretches:
    """Return what reads a parameter from ``reader``, a stretch at a time."""
    array = AssembledArray(parameter.placement, reader)
    dtype = getattr(torch, array.dtype)

    def read(start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        for at, values in array.stretches(start, stop, STRETCH):
            yield at, torch.from_numpy(values.view(np.uint8)).view(dtype)

    return read
