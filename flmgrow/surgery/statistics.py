"""Spreads and means of a checkpoint's tensors, which must not depend on how they are read.

Drawn entries take the spread of the old tensor, centring and averaging need the mean over a whole
axis. Both are computed over whole vectors, or over a fixed sample, in logical order: so they are
the same for any layout of the source and any cut of the output into blocks.
"""

import threading
from collections.abc import Callable
from math import prod

import numpy as np

from flmgrow.formats.reading import LogicalReader
from flmgrow.model.arrays import Array, FloatArray
from flmgrow.model.axes import Box, split
from flmgrow.operators.draws import DRAW
from flmgrow.surgery.kept_statistics import KeptStatistics

SAMPLE = 1 << 18
"""Elements looked at to measure a spread: all of a tensor, or evenly spaced bands of it."""

BANDS = 16

OLD_SAMPLE = 1 << 22
"""The same in version 1, which took evenly spaced rows."""

BLOCK = 1 << 20
"""Elements read at once."""

SPAN = 128
"""Entries of an axis that are summed before their sum is added to those before them.

It decides on the rounding of a mean, which is why it depends on nothing.
"""

PIECE = 1 << 17
"""Elements summed at once: few enough to stay in the cache."""


def _with_ranges(box: Box, axes: tuple[int, ...], span: tuple[int, int]) -> Box:
    return Box(tuple(span if i in axes else old for i, old in enumerate(box.ranges)))


def _sum(values: Array, axis: int) -> FloatArray:
    """Sum in float64 over ``axis``, each vector alone: its neighbours do not matter.

    Of every ``SPAN`` entries, each eighth is added to the last; the eight sums are added in pairs,
    and what is left over one by one.
    """
    axis %= values.ndim
    if axis == values.ndim - 1:
        return _sum_rows(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:-1], 1)
    table = values.reshape(-1, values.shape[axis], prod(values.shape[axis + 1 :]))
    return _sum_inside(table).reshape(*values.shape[:axis], 1, *values.shape[axis + 1 :])


def _sum_rows(rows: Array) -> FloatArray:
    """Sum over the last axis of a matrix, a piece of its rows after the other."""
    total = np.zeros(len(rows))
    length = rows.shape[1]
    whole = length // SPAN * SPAN
    step = max(1, PIECE // max(1, length))
    for low in range(0, len(rows), step):
        wide = rows[low : low + step].astype(np.float64)
        spans = wide[:, :whole].reshape(len(wide), -1, SPAN)
        for sums in np.add.reduce(spans, -1).T:  # numpy adds up 128 of them as said above
            total[low : low + step] += sums
        total[low : low + step] += np.add.reduce(wide[:, whole:], -1)
    return total


def _sum_inside(table: Array) -> FloatArray:
    """Sum over the middle one of three axes, a piece after the other: as numpy adds up a row, but
    all vectors at once.
    """
    before, length, after = table.shape
    total = np.zeros((before, after))
    width = max(1, PIECE // min(SPAN, length))
    depth = max(1, width // after)
    for top in range(0, before, depth):
        for low in range(0, after, width):
            sums = total[top : top + depth, low : low + width]
            for start in range(0, length, SPAN):
                piece = table[top : top + depth, start : start + SPAN, low : low + width]
                sums += _sum_span(piece.astype(np.float64))
    return total


def _sum_span(table: FloatArray) -> FloatArray:
    """Sum over the middle axis, which has at most ``SPAN`` entries."""
    length = table.shape[1]
    eighths = length // 8 * 8
    if eighths:
        lanes = table[:, :8].copy()
        for start in range(8, eighths, 8):
            lanes += table[:, start : start + 8]
        pairs = lanes[:, 0::2] + lanes[:, 1::2]
        total: FloatArray = (pairs[:, 0] + pairs[:, 1]) + (pairs[:, 2] + pairs[:, 3])
    else:
        total = np.zeros((len(table), table.shape[2]))
    for last in range(eighths, length):
        total += table[:, last]
    return total


def _bands(box: Box) -> list[Box]:
    """Return ``box`` whole, or evenly spaced stretches of it in logical order."""
    if box.count <= SAMPLE:
        return [box]
    places = [(2 * i + 1) * box.count // (2 * BANDS) for i in range(BANDS)]
    return list(dict.fromkeys(_stretch(box, SAMPLE // BANDS, place) for place in places))


def _stretch(box: Box, limit: int, place: int) -> Box:
    """Return which of the boxes of ``split(box, limit)`` holds element number ``place``."""
    while box.count > limit and max(box.shape) > 1:
        axis = next(i for i, extent in enumerate(box.shape) if extent > 1)
        start, stop = box.ranges[axis]
        inner = box.count // (stop - start)
        step = max(1, limit // inner)
        low = start + place // inner // step * step
        place -= (low - start) * inner
        box = _with_ranges(box, (axis,), (low, min(low + step, stop)))
    return box


def _rows(box: Box) -> list[Box]:
    """Return ``box`` whole, or single rows evenly spaced along its first long axis: version 1."""
    if box.count <= OLD_SAMPLE:
        return [box]
    axis = next(i for i, extent in enumerate(box.shape) if extent > 1)
    start, stop = box.ranges[axis]
    step = min(-(-box.count // OLD_SAMPLE), stop - start)
    return [_with_ranges(box, (axis,), (row, row + 1)) for row in range(start, stop, step)]


class Statistics:
    """Spreads and means of one checkpoint's tensors; safe to share between threads.

    ``draw`` is the version of what is looked at for a spread.
    """

    def __init__(self, reader: LogicalReader, draw: int = DRAW) -> None:
        self._reader = reader
        self._sampled = _rows if draw == 1 else _bands
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], FloatArray] = {}
        self._kept: KeptStatistics | None = None
        self._state = ""

    def keep(self, kept: KeptStatistics, state: str) -> None:
        """Take what an earlier run has kept of ``state``, and keep what is found from now on."""
        self._kept, self._state = kept, state

    def _once(self, key: tuple[object, ...], compute: Callable[[], FloatArray]) -> FloatArray:
        with self._lock:
            if key not in self._known:
                self._known[key] = self._found(f"{self._state} {key}", compute)
            return self._known[key]

    def _found(self, name: str, compute: Callable[[], FloatArray]) -> FloatArray:
        if self._kept is None:
            return compute()
        values = self._kept.get(name)
        if values is None:
            values = compute()
            self._kept.add(name, values)
        return values

    def std(self, name: str, box: Box) -> float:
        """Return the standard deviation of the values in ``box``, from a sample if it is large."""
        return float(self._once(("std", name, box), lambda: np.array(self._std(name, box))))

    def _std(self, name: str, box: Box) -> float:
        count, total, square = 0, 0.0, 0.0
        for part in self._sampled(box):
            for block in split(part, BLOCK):
                values = self._reader.read(name, block).astype(np.float64).reshape(-1)
                count += values.size
                total += float(np.add.reduce(values))
                square += float(np.add.reduce(values * values))
        variance = max(0.0, square / count - (total / count) ** 2)
        return float(np.float32(np.sqrt(variance)))

    def mean(self, name: str, box: Box, *axes: int) -> FloatArray:
        """Return the mean over ``axes`` of the values in ``box``, whose shape has 1 for these axes.

        ``box`` must lie in one layer. At the other indices of the layer it is computed as well.
        """
        whole = self._whole_box(name, box, axes)
        means = self._once(("mean", name, axes, whole), lambda: self._means(name, whole, axes))
        wanted, known = (_with_ranges(each, axes, (0, 1)) for each in (box, whole))
        cut: FloatArray = means[wanted.relative_to(known)]
        return cut

    def _whole_box(self, name: str, box: Box, axes: tuple[int, ...]) -> Box:
        """What ``box`` has on ``axes``, in the whole of the tensor, or of the layer it lies in."""
        layer = (0,) if self._reader.tensors[name].layered else ()
        stored = enumerate(self._reader.shape(name))
        kept = {*axes, *layer}
        return Box(tuple(box.ranges[i] if i in kept else (0, size) for i, size in stored))

    def _means(self, name: str, whole: Box, axes: tuple[int, ...]) -> FloatArray:
        """The mean over ``axes`` at every other index of ``whole``: first over the last of them."""
        *rest, last = axes
        means = self._sums(name, whole, last) / whole.shape[last]
        for axis in reversed(rest):
            means = _sum(means, axis) / whole.shape[axis]
        return means

    def _sums(self, name: str, whole: Box, axis: int) -> FloatArray:
        """The sum over ``axis`` at every other index of ``whole``, reading in storage order."""
        start, stop = whole.ranges[axis]
        step = stop - start if axis == len(whole.ranges) - 1 else min(SPAN, stop - start)
        others = _with_ranges(whole, (axis,), (0, 1))
        parts = []
        for block in split(others, max(1, BLOCK // step)):
            total = np.zeros(block.shape)
            for low in range(start, stop, step):
                rows = _with_ranges(block, (axis,), (low, min(low + step, stop)))
                total += _sum(self._reader.read(name, rows), axis)
            parts.append(total.reshape(-1))
        return np.concatenate(parts).reshape(others.shape)
