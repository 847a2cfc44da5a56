"""In which order the elements of logical tensors lie inside one stored array.

An array holds boxes of one or several tensors. Mostly they simply lie one behind the other, each in
the order of its own axes. But query, key and value can alternate, group after group; and a matrix
that is stored as (in, out) has its input axes in front. Both are one case: some axes lead, and for
each index of them there is a run of every tensor. A segment says where the runs of one tensor are;
a strip is a stretch of the array that can be computed and written at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from flmgrow.model.arrays import Array
from flmgrow.model.axes import Axis, Box, split
from flmgrow.model.tensors import LogicalTensor


@dataclass(frozen=True, slots=True)
class Segment:
    """The box of one logical tensor inside a stored array.

    ``order`` lists the tensor's axes (by their places) as they are stored, of which the first
    ``leading`` lead. The first run begins at element ``start`` of the array, the next ones each
    ``stride`` elements further.
    """

    tensor: str
    box: Box
    order: tuple[int, ...]
    leading: int
    start: int
    stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of its axes in the order in which they are stored."""
        return self.stored(self.box).shape

    @property
    def runs(self) -> int:
        """The number of its runs."""
        return prod(self.shape[: self.leading])

    @property
    def contiguous(self) -> bool:
        """Whether its runs touch, so that it is one."""
        return self.runs == 1 or self.stride * self.runs == self.box.count

    def stored(self, box: Box) -> Box:
        """Return ``box`` with its ranges in the order in which they are stored."""
        return Box(tuple(box.ranges[place] for place in self.order))

    def logical(self, box: Box) -> Box:
        """Return the inverse of :meth:`stored`."""
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        return Box(tuple(box.ranges[place] for place in places))


@dataclass(frozen=True, slots=True)
class Strip:
    """Consecutive elements of a stored array: one box of each of ``segments``, run by run."""

    segments: tuple[Segment, ...]
    boxes: tuple[Box, ...]

    def arrange(self, values: Sequence[Array]) -> Array:
        """Return the elements as they are stored, from the values of the boxes, each in its shape.

        Of one segment in its stored shape, of several as (runs, elements).
        """
        stored = [v.transpose(s.order) for s, v in zip(self.segments, values, strict=True)]
        if len(stored) == 1:
            return np.ascontiguousarray(stored[0])
        runs = prod(stored[0].shape[: self.segments[0].leading])
        return np.concatenate([v.reshape(runs, -1) for v in stored], axis=1)


def segments_of(
    parts: Sequence[LogicalTensor], boxes: Sequence[Box], leading: Sequence[Axis]
) -> list[Segment]:
    """Return the segments of an array that holds ``boxes`` of ``parts``, each run by run over the
    ``leading`` axes.
    """
    assert len(leading) <= 1 or len(parts) == 1, "tensors alternate along one axis"
    runs = []
    for part, box in zip(parts, boxes, strict=True):
        counts = [box.shape[part.axes.index(axis)] for axis in leading]
        runs.append(box.count // prod(counts))
    starts = [0, *accumulate(runs)]
    segments = []
    for part, box, start in zip(parts, boxes, starts, strict=False):
        front = [axis for axis in part.axes if axis is Axis.LAYER] if leading else []
        order = [part.axes.index(axis) for axis in (*front, *leading)]
        order += [place for place in range(len(part.axes)) if place not in order]
        leads = len(front) + len(leading)
        segments.append(Segment(part.name, box, tuple(order), leads, start, starts[-1]))
    return segments


def strips_of(segments: Sequence[Segment], limit: int) -> Iterator[Strip]:
    """Cut an array into strips of at most ``limit`` elements (but at least one), front to back."""
    first = segments[0]
    if len(segments) == 1 or first.runs == 1:
        for segment in segments:
            yield from _single(segment, segment.stored(segment.box), limit)
        return
    lead = _lead(first)
    start, stop = first.stored(first.box).ranges[lead]
    step = max(1, limit // first.stride)
    for low in range(start, stop, step):
        span = (low, min(low + step, stop))
        boxes = [_with_range(segment, lead, span) for segment in segments]
        if first.stride <= limit:
            logical = [s.logical(box) for s, box in zip(segments, boxes, strict=True)]
            yield Strip(tuple(segments), tuple(logical))
            continue
        for segment, box in zip(segments, boxes, strict=True):
            yield from _single(segment, box, limit)


def _single(segment: Segment, stored: Box, limit: int) -> Iterator[Strip]:
    """Cut a part of one segment, in stored order, that lies in one piece."""
    for box in split(stored, limit):
        yield Strip((segment,), (segment.logical(box),))


def _lead(segment: Segment) -> int:
    """Return the place in stored order of the one leading axis that is longer than one."""
    (long,) = [place for place in range(segment.leading) if segment.shape[place] > 1]
    return long


def _with_range(segment: Segment, place: int, span: tuple[int, int]) -> Box:
    ranges = segment.stored(segment.box).ranges
    return Box((*ranges[:place], span, *ranges[place + 1 :]))
