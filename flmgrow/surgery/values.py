"""The values of a grown box: copies bit for bit, all else computed in float64 and cast once.

Values must not depend on how the output is cut into boxes, nor on how the source is laid out: what
needs more than the box itself comes from ``statistics.py``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flmgrow.formats.reading import LogicalReader
from flmgrow.model.arrays import Array, FloatArray, IntArray
from flmgrow.model.axes import Axis, AxisMap, Box, Fill, Role, Sizes, full_box, split
from flmgrow.model.tensors import Init, LogicalTensor
from flmgrow.operators.draws import normal
from flmgrow.operators.growth import Growth, Move, count, factors, moves
from flmgrow.operators.vocab import ROW_NOISE
from flmgrow.surgery.kept_statistics import KeptStatistics
from flmgrow.surgery.statistics import Statistics

PIECE = 1 << 16
"""Elements computed at once: few enough for all that becomes of them to stay in the cache."""

Make = Callable[[Box], FloatArray]
"""Gives the values of a piece of a move."""

Adjust = Callable[[FloatArray, Box], None]
"""Changes the values of a piece in place."""

FALLBACK_STD = 0.02
"""The spread drawn with where the source has none (an output projection that is still zero)."""


class GrownValues:
    """Computes any box of any tensor of the grown model.

    ``init_std`` replaces the source tensor's own spread for drawn entries, and for noise.
    """

    def __init__(
        self, growth: Growth, reader: LogicalReader, init_std: float | None = None
    ) -> None:
        self._growth = growth
        self._reader = reader
        self._statistics = Statistics(reader, growth.draw)
        self._init_std = init_std

    def keep(self, kept: KeptStatistics, state: str) -> None:
        """Take the spreads and means of ``state`` that an earlier run has kept."""
        self._statistics.keep(kept, state)

    def box(self, tensor: LogicalTensor, box: Box, dtype: np.dtype[Any]) -> Array:
        """Return the values of ``box`` of the grown ``tensor``, in its shape and ``dtype``."""
        result = np.empty(box.shape, dtype)
        for move in moves(self._growth, tensor, box):
            self._fill(result[move.box.relative_to(box)], tensor, move)
        return result

    def _fill(self, target: Array, tensor: LogicalTensor, move: Move) -> None:
        """Fill ``target`` with the values of a move, piece by piece where they are computed."""
        name = self._growth.source_name(tensor)
        if move.fill is Fill.ZERO:
            target[...] = 0
            return
        if move.fill is Fill.DRAWN:
            make = self._drawn(tensor, name, move.box)
        else:
            assert move.old is not None
            if move.fill is None and not self._computes(tensor, move):
                self._reader.read_into(target, name, move.old)
                return
            make = self._computed(tensor, name, move, move.old)
        for piece in split(move.box, PIECE):
            target[piece.relative_to(move.box)] = make(piece)

    def _computes(self, tensor: LogicalTensor, move: Move) -> bool:
        """Whether old values are computed and not copied: with factors of 1 alone they stay.

        Version 1 computed all of a tensor if it did any of it, which made 0 of every -0.
        """
        if not self._growth.changes(tensor) or self._growth.draw == 1:
            return self._growth.changes(tensor)
        return any(
            (axis_map.centre and Role.WRITES in roles) or (axis_map.noise and Role.READS in roles)
            for _, axis_map, roles in self._mapped(tensor)
        ) or any((factor != 1.0).any() for factor in factors(self._growth, tensor, move.box))

    def _normal(self, name: str, indices: Sequence[IntArray]) -> FloatArray:
        return normal(self._growth.seed, name, indices, self._growth.draw)

    def _old(self, tensor: LogicalTensor, name: str, move: Move, old: Box) -> Make:
        """Old values as they are stored; or their mean, with noise where entries shall part."""
        if not move.mean_axes:
            stored = self._reader.read(name, old)
            return lambda piece: stored[piece.relative_to(move.box)].astype(np.float64)
        mean = np.broadcast_to(self._statistics.mean(name, old, *move.mean_axes), move.box.shape)
        if move.fill is not Fill.NEAR:
            return lambda piece: mean[piece.relative_to(move.box)].copy()
        std = ROW_NOISE * self._drawn_std(tensor, name, move.box)

        def near(piece: Box) -> FloatArray:
            noise = self._normal(tensor.name, _indices(piece)) * std
            values: FloatArray = mean[piece.relative_to(move.box)] + noise
            return values

        return near

    def _computed(self, tensor: LogicalTensor, name: str, move: Move, old: Box) -> Make:
        """Old values or their mean, centred, scaled and noised as their roles ask."""
        values_of = self._old(tensor, name, move, old)
        steps = [
            *self._centrings(tensor, name, move, old),
            *self._scalings(tensor, move),
            *self._noises(tensor, name, move),
        ]

        def computed(piece: Box) -> FloatArray:
            values = values_of(piece)
            if tensor.shift:
                values += tensor.shift
            for step in steps:
                step(values, piece)
            if tensor.shift:
                values -= tensor.shift
            values += 0.0
            return values

        return computed

    def _centrings(
        self, tensor: LogicalTensor, name: str, move: Move, old: Box
    ) -> Iterator[Adjust]:
        """Take from old writers their mean over an axis that is centred."""
        for place, axis_map, roles in self._mapped(tensor):
            if axis_map.centre and Role.WRITES in roles:
                across = (*old.ranges[:place], (0, axis_map.old_size), *old.ranges[place + 1 :])
                axes = sorted({*move.mean_axes, place})
                mean = self._statistics.mean(name, Box(across), *axes)

                def centre(values: FloatArray, piece: Box, mean: FloatArray = mean) -> None:
                    values -= _part(mean, piece, move.box)

                yield centre

    def _scalings(self, tensor: LogicalTensor, move: Move) -> Iterator[Adjust]:
        """Multiply by the factors of old entries; those that are 1 everywhere do nothing."""
        for factor in factors(self._growth, tensor, move.box):
            if (factor != 1.0).any():

                def scale(values: FloatArray, piece: Box, factor: FloatArray = factor) -> None:
                    values *= _part(factor, piece, move.box)

                yield scale

    def _noises(self, tensor: LogicalTensor, name: str, move: Move) -> Iterator[Adjust]:
        """Add what tells copies apart."""
        for place, axis_map, roles in self._mapped(tensor):
            if axis_map.noise and Role.READS in roles:
                std = self._std(tensor, name, move.box)
                noise = partial(self._noise, tensor, place, axis_map, std)

                def part(values: FloatArray, piece: Box, noise: Make = noise) -> None:
                    values += noise(piece)

                yield part

    def _mapped(self, tensor: LogicalTensor) -> list[tuple[int, AxisMap, frozenset[Role]]]:
        return [
            (place, self._growth.maps[axis], roles)
            for place, (axis, roles) in enumerate(zip(tensor.axes, tensor.roles, strict=True))
            if axis in self._growth.maps
        ]

    def _noise(
        self, tensor: LogicalTensor, place: int, axis_map: AxisMap, std: float, box: Box
    ) -> FloatArray:
        """Noise in pairs of opposite sign: its sum over the copies of a source index is zero.

        Copies 0 and 1 get +n and -n, 2 and 3 another pair; an odd last copy gets none.
        """
        start, stop = box.ranges[place]
        number = axis_map.copy_number[start:stop]
        paired = number < axis_map.copies[start:stop] // 2 * 2
        sign = np.where(paired, 1.0 - 2.0 * (number % 2), 0.0)
        indices = _indices(box)
        indices[place] = axis_map.source[start:stop] + axis_map.old_size * (number // 2)
        noise = self._normal(f"{tensor.name} noise", indices)
        share = axis_map.scale[Role.READS][start:stop]
        shape = [1] * len(indices)
        shape[place] = -1
        noise *= (sign * share * axis_map.noise).reshape(shape)
        noise *= std
        self._silence_padding(tensor, box, noise)
        return noise

    def _silence_padding(self, tensor: LogicalTensor, box: Box, values: FloatArray) -> None:
        """Draw nothing into vocabulary padding: how much of it there is depends on the layout."""
        if Axis.VOCAB in tensor.axes:
            place = tensor.axes.index(Axis.VOCAB)
            first = max(0, self._growth.new.vocab - box.ranges[place][0])
            np.moveaxis(values, place, 0)[first:] = 0.0

    def _drawn(self, tensor: LogicalTensor, name: str, box: Box) -> Make:
        """Fresh entries, as they are stored; a branch that starts at zero is zero in them, too."""
        normally = tensor.init is Init.NORMAL
        std = self._drawn_std(tensor, name, box) if normally else 0.0
        same = 1.0 if tensor.init is Init.ONES else 0.0
        gates = factors(self._growth, tensor, box, fresh=True)

        def drawn(piece: Box) -> FloatArray:
            if normally:
                values = self._normal(tensor.name, _indices(piece))
                values *= std
                self._silence_padding(tensor, piece, values)
            else:
                values = np.full(piece.shape, same)
            for gate in gates:
                values *= _part(gate, piece, box)
                values += 0.0
            values -= tensor.shift
            return values

        return drawn

    def _drawn_std(self, tensor: LogicalTensor, name: str, box: Box) -> float:
        """The spread of drawn entries: that which was given, or the old tensor's own."""
        return self._std(tensor, name, box) if self._init_std is None else self._init_std

    def _std(self, tensor: LogicalTensor, name: str, box: Box) -> float:
        """The spread of the old tensor, in the old layer that stands behind the box's one layer."""
        layer = self.donor(box.ranges[0][0]) if tensor.layered else None
        return self._spread(name, layer)

    def _spread(self, name: str, layer: int | None) -> float:
        """The spread of an old tensor; of its true vocabulary, as padding depends on the layout."""
        whole = full_box(self._reader.tensors[name].shape(self._growth.old.sizes))
        if layer is not None:
            whole = Box(((layer, layer + 1), *whole.ranges[1:]))
        return self._statistics.std(name, whole) or FALLBACK_STD

    def spreads(
        self, tensors: Mapping[str, LogicalTensor], sizes: Sizes, share: tuple[int, int] = (0, 1)
    ) -> dict[str, float]:
        """Return the spread that entries were drawn with, by tensor and new layer.

        With a ``share`` of (i, n), only every n-th of them, beginning with the i-th.
        """
        result: dict[str, float] = {}
        first, step = share
        number = 0
        for tensor in tensors.values():
            name = self._growth.source_name(tensor)
            layers = range(sizes[Axis.LAYER]) if tensor.layered else (None,)
            for layer in layers:
                whole = full_box(tensor.shape(sizes))
                if layer is not None:
                    whole = Box(((layer, layer + 1), *whole.ranges[1:]))
                counts = count(self._growth, tensor, whole)
                if tensor.init is not Init.NORMAL or not counts.drawn + counts.near:
                    continue
                if number % step == first:
                    donor = None if layer is None else self.donor(layer)
                    label = tensor.name if layer is None else f"{tensor.name}[{layer}]"
                    drawn = self._init_std
                    result[label] = self._spread(name, donor) if drawn is None else drawn
                number += 1
        return result

    def donor(self, layer: int) -> int:
        """Return the old layer behind a new one."""
        axis_map = self._growth.maps.get(Axis.LAYER)
        return layer if axis_map is None else int(axis_map.donors[layer])


def _part(factor: FloatArray, piece: Box, box: Box) -> FloatArray:
    """Cut out of an array that broadcasts against ``box`` what broadcasts against ``piece``."""
    spans = zip(factor.shape, piece.relative_to(box), strict=True)
    part: FloatArray = factor[tuple(slice(None) if n == 1 else span for n, span in spans)]
    return part


def _indices(box: Box) -> list[IntArray]:
    return [np.arange(start, stop, dtype=np.int64) for start, stop in box.ranges]
