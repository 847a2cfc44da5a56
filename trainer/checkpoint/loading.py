"""Filling parameters and optimizer from any checkpoint that flmgrow can open.

Ranks read the boxes of logical tensors that they hold, so a checkpoint need not have the layout,
the format or the precision of the run.
"""

from collections.abc import Sequence
from math import prod

import torch

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.reading import AssembledArray, LogicalReader
from flmgrow.formats.torch_file.file import scalar
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.text import Found, Text
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter, empty, fill


def load(checkpoint: Checkpoint, parameters: Sequence[Parameter], optimizer: OptimizerView) -> None:
    """Fill parameters and optimizer with what ``checkpoint`` holds of them.

    Raises:
        BadCheckpointError: For damaged bytes, as far as the format has sums.
    """
    step = 0 if checkpoint.optimizer is None else step_count(checkpoint.optimizer)
    for parameter in parameters:
        values = {state: _values(parameter, reader) for state, reader in checkpoint.readers.items()}
        fill(parameter, optimizer, values, step)
    if optimizer.counts_by_group and step:
        for group in optimizer.groups:
            group["step"] = step


def _values(parameter: Parameter, reader: LogicalReader) -> torch.Tensor:
    stored = AssembledArray(parameter.placement, reader)
    values, data = empty(stored.dtype, prod(parameter.placement.shape))
    stored.read_into(0, data)
    return values


def step_count(optimizer: OptimizerState) -> int:
    """Return how many steps Adam has counted.

    Raises:
        BadCheckpointError: If it does not say.
    """
    found = optimizer.step
    if found is None:
        found = next((g["step"] for g in optimizer.groups if "step" in g), None)
    if isinstance(found, TensorRecord):
        found = scalar(found)
    if not isinstance(found, int | float):
        raise BadCheckpointError(
            Text("optimizer: counts ", Found(f"{found!r:.40}")), wanted="a number of steps"
        )
    return int(found)
