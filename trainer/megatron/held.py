"""Keeping parameters as they are, entry by entry, while others beside them train.

Two kinds of entries are held. Frozen ones: no gradient of theirs counts, for the norm that clipping
looks at neither, and no decay moves them; in a tensor that is frozen as a whole nothing has to be
held, as it is no optimizer's. And fresh ones behind a closed mask, as they were drawn:
behind a closed mask nothing is learned, and weight decay alone must not move what was drawn. Where
a mask is 0, whatever its fresh units have as weights, no gradient reaches them: neither those that
write a unit nor those that read it. AdamW's decay is decoupled from gradients, and would let them
shrink: a dimension that waits for its turn for thousands of steps would begin with next to nothing.
So all of them are put back after each step, those behind a mask until it has left 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.layout.placements import Placement
from flmgrow.model.axes import Axis, Box
from flmgrow.model.config import ModelConfig
from flmgrow.model.frozen import Booleans, Frozen
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.trainer.megatron.parameters import MOMENTS, OptimizerView, Parameter

STRIP = 1 << 22
"""Entries that are looked at at once."""


class HeldEntries:
    """The entries of this rank's parameters, and of their masters, that are frozen, or lie behind
    closed masks.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        config: ModelConfig,
        frozen: Frozen,
    ) -> None:
        """Of what is frozen, the moments are forgotten."""
        self._parameters = [parameter for parameter in parameters if parameter.trains]
        self._optimizer = optimizer
        self._tensors, self._sizes = logical_tensors(config), config.sizes
        self._shut: frozenset[Dimension] = frozenset()
        self._still: list[tuple[Parameter, Tensor]] = []
        self._closed: list[tuple[Tensor, Tensor]] = []
        for parameter in self._parameters:
            place = parameter.placement
            if any(frozen.count(part, part.box(place.ranges)) for part in place.parts):
                entries = frozen_entries(place, self._tensors, frozen)
                where = torch.from_numpy(entries).to(parameter.tensor.device)
                self._still.append((parameter, where))
        self._frozen = [held for each in self._still for held in self._changed(*each)]
        self._forget()

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
        self._closed = [held for p in self._parameters for held in self._found(p, fresh)]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let an optimizer's step see no gradient of frozen entries, and let all that are held be
        afterwards what they were before.
        """
        held = [*self._frozen, *self._closed]
        before = [values[where] for values, where in held]
        for parameter, where in self._still:
            parameter.gradient[where] = 0
        yield
        with torch.no_grad():
            for (values, where), known in zip(held, before, strict=True):
                values[where] = known

    @torch.no_grad()
    def _forget(self) -> None:
        """Let frozen entries have moments of 0, and keep them, as they have no gradient."""
        for parameter, where in self._still:
            kept = self._optimizer.kept(parameter.tensor)
            if kept is not None and kept.entry:
                for moment in MOMENTS:
                    kept.entry[str(moment)].view(-1)[where[kept.start : kept.stop]] = 0

    def _found(
        self, parameter: Parameter, fresh: Mapping[Axis, Booleans]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is changed of a parameter, flat, with where it is closed."""
        entries = closed_entries(parameter.placement, self._tensors, fresh)
        if entries.any():
            yield from self._changed(
                parameter, torch.from_numpy(entries).to(parameter.tensor.device)
            )

    def _changed(self, parameter: Parameter, where: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what a step changes of a parameter, flat, with ``where`` in it."""
        weight = parameter.tensor.detach().view(-1)
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
    return _entries(placement, lambda name, box: _in_box(tensors[name], box, fresh))


def frozen_entries(
    placement: Placement, tensors: Mapping[str, LogicalTensor], frozen: Frozen
) -> Booleans:
    """Return which entries of an array, flat, are frozen."""
    return _entries(placement, lambda name, box: frozen.entries(tensors[name], box))


def _entries(placement: Placement, within: Callable[[str, Box], Booleans]) -> Booleans:
    """Return for the entries of an array, flat, what ``within`` says of boxes of tensors."""
    parts = [
        strip.arrange(
            [
                within(segment.tensor, box)
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
