"""Spreads and means of a checkpoint's tensors, which must not depend on how they are read.

Drawn entries take the spread of the old tensor, centring and averaging need the mean over a whole
axis. Both are computed over whole vectors, or over a fixed sample, in logical order: so they are
the same for any layout of the source and any cut of the output into blocks.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from flmgrow.formats.reading import Array, LogicalReader
from flmgrow.model.axes import Box, FloatArray, split

SAMPLE = 1 << 22
"""Elements looked at to measure a spread: all of a tensor, or evenly spaced rows."""

BLOCK = 1 << 20
"""Elements read at once."""


def _with_range(box: Box, axis: int, span: tuple[int, int]) -> Box:
    return Box((*box.ranges[:axis], span, *box.ranges[axis + 1 :]))


def _mean(values: Array, axis: int) -> FloatArray:
    """Average in float64 over ``axis``, each vector summed alone: its neighbours do not matter."""
    last = np.ascontiguousarray(np.moveaxis(values.astype(np.float64), axis, -1))
    mean = np.add.reduce(last, -1, keepdims=True) / values.shape[axis]
    return np.moveaxis(mean, -1, axis)


class Statistics:
    """Spreads and means of one checkpoint's tensors; safe to share between threads."""

    def __init__(self, reader: LogicalReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Any] = {}

    def _once(self, key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._known:
                self._known[key] = compute()
            return self._known[key]

    def std(self, name: str, box: Box) -> float:
        """Return the standard deviation of the values in ``box``, from a sample if it is large."""
        value: float = self._once(("std", name, box), lambda: self._std(name, box))
        return value

    def _sampled(self, box: Box) -> list[Box]:
        """Return ``box`` whole, or single rows evenly spaced along its first long axis."""
        if box.count <= SAMPLE:
            return [box]
        axis = next(i for i, extent in enumerate(box.shape) if extent > 1)
        start, stop = box.ranges[axis]
        step = min(-(-box.count // SAMPLE), stop - start)
        return [_with_range(box, axis, (row, row + 1)) for row in range(start, stop, step)]

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

    def mean(self, name: str, box: Box, axis: int) -> FloatArray:
        """Return the mean over the whole of ``axis`` at the other indices of ``box``.

        The axis is kept, with size 1. ``box`` must lie in one layer.
        """
        if box.shape[axis] == self._reader.shape(name)[axis]:
            return _mean(self._reader.read(name, box), axis)
        whole = self._whole_box(name, box)
        means = self._once(("mean", name, axis, whole), lambda: self._means(name, whole, axis))
        cut: FloatArray = means[_with_range(box, axis, whole.ranges[axis]).relative_to(whole)]
        return cut

    def _whole_box(self, name: str, box: Box) -> Box:
        """The box of the whole tensor, or of the one layer that ``box`` lies in."""
        ranges = [(0, size) for size in self._reader.shape(name)]
        if self._reader.tensors[name].layered:
            ranges[0] = box.ranges[0]
        return Box(tuple(ranges))

    def _means(self, name: str, whole: Box, axis: int) -> FloatArray:
        """The mean over ``axis`` at every other index of ``whole``, block by block."""
        size = whole.shape[axis]
        others = _with_range(whole, axis, (0, 1))
        parts = [
            _mean(self._reader.read(name, _with_range(block, axis, (0, size))), axis).reshape(-1)
            for block in split(others, max(1, BLOCK // size))
        ]
        return np.concatenate(parts).reshape(others.shape)
