"""Feeding the reference forward from a checkpoint, a part of one tensor at a time."""

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Axis, Box, full_box, split
from flmgrow.model.branches import UnitMasks
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.module import Model
from flmgrow.surgery.execution import Progress

CPU = torch.device("cpu")
BLOCK = 1 << 20
"""Elements of a matrix read at once."""


class CheckpointWeights:
    """Reads logical tensors on demand, as torch tensors of ``dtype``; keeps none of them.

    At most ``block`` elements of a matrix are read at once, but at least one row. ``progress`` is
    told the bytes that were read. ``device`` is where the tensors are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        block: int = BLOCK,
        progress: Progress = lambda _: None,
        device: torch.device = CPU,
    ) -> None:
        self._device = device
        self._reader = checkpoint.reader
        self._dtype = dtype
        self._block = block
        self._progress = progress

    def _tensor(self, name: str, values: Array) -> Tensor:
        self._progress(values.nbytes)
        shift = self._reader.tensors[name].shift
        exact = np.float64 if shift or values.dtype == np.float64 else np.float32
        wide = torch.from_numpy(values.astype(exact, copy=False))
        return (wide + shift if shift else wide).to(self._device, self._dtype)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer, without the layer axis), in its own shape."""
        box = full_box(self._reader.shape(name))
        if layer is None:
            return self._tensor(name, self._reader.read(name, box))
        box = Box(((layer, layer + 1), *box.ranges[1:]))
        return self._tensor(name, self._reader.read(name, box)[0])

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table, with the shape of ``ids`` and the table's columns behind; each
        distinct row is read once.
        """
        distinct, inverse = torch.unique(ids, return_inverse=True)
        columns = self._reader.shape(name)[1]
        read = [
            self._reader.read(name, Box(((row, row + 1), (0, columns))))
            for row in distinct.tolist()
        ]
        return self._tensor(name, np.concatenate(read))[inverse]

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        """Yield a tensor (of one layer) as a matrix whose columns are the last ``inputs`` axes, in
        consecutive parts (rows, columns); the first ``stop`` rows of a table.
        """
        shape = self._reader.shape(name)
        first = () if layer is None else ((layer, layer + 1),)
        rest = full_box(shape).ranges[len(first) :]
        if stop is not None:
            rest = ((0, stop), *rest[1:])
        columns = prod(shape[-inputs:])
        for box in split(Box((*first, *rest)), max(self._block, columns)):
            yield self._tensor(name, self._reader.read(name, box)).reshape(-1, columns)


def load_resident(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device | str
) -> Model:
    """Return the model of a checkpoint with its weights in memory, its masks applied.

    ``dtype`` is the stored one if None. The vocabulary comes without its padding.
    """
    chosen: torch.dtype = getattr(torch, checkpoint.dtype) if dtype is None else dtype
    source = CheckpointWeights(checkpoint, chosen)
    weights = {}
    for name, tensor in checkpoint.reader.tensors.items():
        value = source.tensor(name)
        rows = checkpoint.config.vocab if Axis.VOCAB in tensor.axes[:1] else len(value)
        weights[name] = value[:rows].clone()
    masks = unit_masks(masks_of(checkpoint), checkpoint, chosen)
    return Model(checkpoint.config, weights, masks).to(device)


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Return how many bytes one pass over all weights reads, about."""
    reader = checkpoint.reader
    stored = reader.stored_elements().items()
    return sum(count * reader.dtype(name).itemsize for name, count in stored)


def unit_masks(
    masks: Mapping[Dimension, Mask],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> UnitMasks:
    """Return the multipliers that ``masks`` mean for the units of ``checkpoint``."""
    sizes = checkpoint.config.sizes

    def values(dimension: Dimension) -> Tensor | None:
        mask = masks.get(dimension)
        if mask is None or mask.value == 1.0:
            return None
        return torch.from_numpy(mask.values(sizes)).to(device, dtype)

    return UnitMasks(
        hidden=values(Dimension.WIDTH),
        heads=values(Dimension.HEADS),
        ffn=values(Dimension.FFN),
        layers=values(Dimension.DEPTH),
    )
