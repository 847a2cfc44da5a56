"""Feeding the reference forward from a checkpoint, one tensor at a time."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.reading import Array
from flmgrow.model.axes import Box, full_box, split
from flmgrow.model.forward import UnitMasks
from flmgrow.model.masks import Dimension, Mask

BLOCK = 1 << 24
"""Elements of a table read at once."""


class CheckpointWeights:
    """Reads logical tensors on demand, as torch tensors of ``dtype``; keeps none of them."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._reader = checkpoint.reader
        self._dtype = dtype

    def _tensor(self, name: str, values: Array) -> Tensor:
        shift = self._reader.tensors[name].shift
        exact = np.float64 if shift or values.dtype == np.float64 else np.float32
        wide = torch.from_numpy(values.astype(exact, copy=False))
        return (wide + shift if shift else wide).to(self._dtype)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer, without the layer axis)."""
        box = full_box(self._reader.shape(name))
        if layer is None:
            return self._tensor(name, self._reader.read(name, box))
        box = Box(((layer, layer + 1), *box.ranges[1:]))
        return self._tensor(name, self._reader.read(name, box)[0])

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table; each distinct row is read once."""
        distinct, inverse = torch.unique(ids, return_inverse=True)
        columns = self._reader.shape(name)[1]
        read = [
            self._reader.read(name, Box(((row, row + 1), (0, columns))))
            for row in distinct.tolist()
        ]
        return self._tensor(name, np.concatenate(read))[inverse]

    def blocks(self, name: str, stop: int) -> Iterator[Tensor]:
        """Yield rows 0 to ``stop`` of a table, in consecutive blocks."""
        columns = self._reader.shape(name)[1]
        for box in split(Box(((0, stop), (0, columns))), max(BLOCK, columns)):
            yield self._tensor(name, self._reader.read(name, box))


def unit_masks(
    masks: Mapping[Dimension, Mask], checkpoint: Checkpoint, dtype: torch.dtype
) -> UnitMasks:
    """Return the multipliers that ``masks`` mean for the units of ``checkpoint``."""
    sizes = checkpoint.config.sizes

    def values(dimension: Dimension) -> Tensor | None:
        mask = masks.get(dimension)
        if mask is None or mask.value == 1.0:
            return None
        return torch.from_numpy(mask.values(sizes)).to(dtype)

    return UnitMasks(
        hidden=values(Dimension.WIDTH),
        heads=values(Dimension.HEADS),
        ffn=values(Dimension.FFN),
        layers=values(Dimension.DEPTH),
    )
