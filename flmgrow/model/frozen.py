"""Parts of a model by the indices of its axes: which entries of which tensors do not train.

A growth makes indices of axes: new layers, new channels. What it made, and what was there before,
is told entry by entry from these alone: an entry is old if none of its indices is fresh. So are
parts that somebody names, as layers, tensors or units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from flmgrow.model.axes import Axis, Box, Sizes, split
from flmgrow.model.masks import Fresh
from flmgrow.model.tensors import LogicalTensor

Booleans = NDArray[np.bool_]

_PIECE = 1 << 22
"""Entries that are looked at at once."""


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """The entries whose index is chosen on every axis of ``axes`` that their tensor has.

    ``tensors`` are the only ones that are meant, None for all; of these, only such as have the
    axes that are ``needed``.
    """

    axes: Mapping[Axis, Booleans] = field(default_factory=dict)
    tensors: frozenset[str] | None = None
    needed: frozenset[Axis] = frozenset()

    def _chosen(self, tensor: LogicalTensor, box: Box) -> list[tuple[int, Booleans]] | None:
        """Return what is chosen of a box, by the place of the axis; None if nothing is."""
        meant = self.tensors is None or tensor.name in self.tensors
        if not meant or not self.needed.issubset(tensor.axes):
            return None
        return [
            (place, self.axes[axis][start:stop])
            for place, (axis, (start, stop)) in enumerate(zip(tensor.axes, box.ranges, strict=True))
            if axis in self.axes
        ]

    def covers(self, tensor: LogicalTensor, box: Box) -> bool:
        """Whether all entries of a box are in the part."""
        chosen = self._chosen(tensor, box)
        return chosen is not None and all(found.all() for _, found in chosen)

    def count(self, tensor: LogicalTensor, box: Box) -> int:
        """Return how many entries of a box are in the part."""
        chosen = self._chosen(tensor, box)
        if chosen is None:
            return 0
        along = {place: int(found.sum()) for place, found in chosen}
        return prod(along.get(place, extent) for place, extent in enumerate(box.shape))

    def entries(self, tensor: LogicalTensor, box: Box) -> Booleans:
        """Return which entries of a box are in the part."""
        chosen = self._chosen(tensor, box)
        found = np.full(box.shape, chosen is not None)
        for place, along in chosen or ():
            shape = [1] * found.ndim
            shape[place] = -1
            found &= along.reshape(shape)
        return found


@dataclass(frozen=True, eq=False)
class Frozen:
    """What does not train: all entries of any of the parts."""

    parts: Sequence[FrozenPart] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    def covers(self, tensor: LogicalTensor, box: Box) -> bool:
        """Whether one of the parts has all of a box."""
        return any(part.covers(tensor, box) for part in self.parts)

    def count(self, tensor: LogicalTensor, box: Box) -> int:
        """Return how many entries of a box are frozen."""
        counts = [found for part in self.parts if (found := part.count(tensor, box))]
        if len(counts) < 2 or max(counts) == box.count:
            return max(counts, default=0)
        pieces = split(box, _PIECE)
        return sum(int(np.count_nonzero(self.entries(tensor, each))) for each in pieces)

    def entries(self, tensor: LogicalTensor, box: Box) -> Booleans:
        """Return which entries of a box are frozen."""
        found = np.zeros(box.shape, np.bool_)
        for part in self.parts:
            found |= part.entries(tensor, box)
        return found


def old_axes(fresh: Fresh, sizes: Sizes) -> dict[Axis, Booleans]:
    """Return which indices of each axis that grew are old: a part of these axes is what is old."""
    return {axis: ~np.isin(np.arange(sizes[axis]), indices) for axis, indices in fresh.items()}
