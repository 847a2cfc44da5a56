"""Filling parameters and optimizer from any checkpoint that flmgrow can open.

Ranks read the boxes of logical tensors that they hold, so a checkpoint need not have the layout,
the format or the precision of the run.
"""

from collections.abc import Collection, Sequence
from math import prod

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
    empty,
    fill,
)


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
        values = {
            state: _values(parameter, reader)
            for state, reader in checkpoint.readers.items()
            if parameter.trains or state in (State.WEIGHT, State.MASTER)
        }
        fill(parameter, optimizer, values, counted.of(parameter))
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


def _values(parameter: Parameter, reader: LogicalReader) -> torch.Tensor:
    stored = AssembledArray(parameter.placement, reader)
    values, data = empty(stored.dtype, prod(parameter.placement.shape))
    stored.read_into(0, data)
    return values
