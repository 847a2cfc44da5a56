"""Keeping the fresh parameters behind a closed mask as they were drawn.

Behind a closed mask nothing is learned, and weight decay alone must not move what was drawn. Where
a mask is 0, whatever its fresh units have as weights, no gradient reaches them: neither those that
write a unit nor those that read it. AdamW's decay is decoupled from gradients, and would let them
shrink: a dimension that waits for its turn for thousands of steps would begin with next to nothing.
So they are put back after each step, until their mask has left 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flmgrow.formats.layout.placements import Placement
from flmgrow.model.axes import Axis, Box
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter

STRIP = 1 << 22
"""Entries that are looked at at once."""

Booleans = NDArray[np.bool_]


class ClosedUnits:
    """The entries of this rank's parameters, and of their masters, that lie behind closed masks."""

    def __init__(
        self, parameters: Sequence[Parameter], optimizer: OptimizerView, config: ModelConfig
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._tensors, self._sizes = logical_tensors(config), config.sizes
        self._shut: frozenset[Dimension] = frozenset()
        self._held: list[tuple[Tensor, Tensor]] = []

    def move_to(self, masks: Mapping[Dimension, Mask]) -> None:
        """Know which of ``masks`` are closed."""
        shut = frozenset(name for name, mask in masks.items() if mask.value == 0)
        if shut == self._shut:
            return
        self._shut = shut
        fresh = {
            axis: np.isin(np.arange(self._sizes[axis]), indices)
            for name in shut
            for axis, indices in masks[name].fresh.items()
        }
        self._held = [held for p in self._parameters for held in self._found(p, fresh)]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let the closed entries be afterwards what they were before."""
        before = [values[where] for values, where in self._held]
        yield
        with torch.no_grad():
            for (values, where), known in zip(self._held, before, strict=True):
                values[where] = known

    def _found(
        self, parameter: Parameter, fresh: Mapping[Axis, Booleans]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is changed of a parameter, flat, with where it is closed."""
        entries = closed_entries(parameter.placement, self._tensors, fresh)
        if not entries.any():
            return
        weight = parameter.tensor.detach().view(-1)
        where = torch.from_numpy(entries).to(weight.device)
        yield weight, where
        kept = self._optimizer.kept(parameter.tensor)
        if kept is not None and kept.master.data_ptr() != weight[kept.start :].data_ptr():
            yield kept.master.detach().view(-1), where[kept.start : kept.stop]


def closed_entries(
    placement: Placement,
    tensors: Mapping[str, LogicalTensor],
    fresh: Mapping[Axis, Booleans],
) -> Booleans:
    """Return which entries of an array, flat, have an index of ``fresh`` units on some axis."""
    parts = [
        strip.arrange(
            [
                _in_box(tensors[segment.tensor], box, fresh)
                for segment, box in zip(strip.segments, strip.boxes, strict=True)
            ]
        ).reshape(-1)
        for strip in placement.strips(STRIP)
    ]
    return np.concatenate(parts)


def _in_box(tensor: LogicalTensor, box: Box, fresh: Mapping[Axis, Booleans]) -> Booleans:
    found = np.zeros(box.shape, np.bool_)
    for place, (axis, (start, stop)) in enumerate(zip(tensor.axes, box.ranges, strict=True)):
        if axis in fresh:
            np.moveaxis(found, place, 0)[fresh[axis][start:stop]] = True
    return found
