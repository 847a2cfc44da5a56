"""The axes of logical tensors, the roles tensors play on them, boxes, and axis maps.

Axes have names, and a tensor plays a role on each of its axes. A checkpoint is a set of logical
tensors with named axes. Growth never speaks of tensors: it says what happens to an axis, separately
for the tensors that *read* it (sum over it), *write* it (produce it), and so on. Storage order is
another fact and belongs to the formats. This module holds that vocabulary: axis names, roles, boxes
(a range on each axis) and axis maps (where each new index of a grown axis comes from).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain, pairwise
from math import inf, prod

import numpy as np

from flmgrow.model.arrays import FloatArray, IntArray
from flmgrow.text import Found, Text, Wanted


class Axis(StrEnum):
    """A named dimension.

    MHA, GQA and MQA are sizes of kv_group and query_per_group, never other axes.
    """

    VOCAB = "vocab"
    POSITION = "position"
    LAYER = "layer"
    HIDDEN = "hidden"
    KV_GROUP = "kv_group"
    QUERY_PER_GROUP = "query_per_group"
    HEAD_DIM = "head_dim"
    FFN = "ffn"


class Role(StrEnum):
    """What a tensor does along one of its axes.

    ``READS`` sums over the axis; ``WRITES`` produces it; ``GAINS`` multiplies it element by element
    (a norm's gain); ``NORM_BIAS`` is added after that; ``CARRIES`` stands in for a reader that
    cannot be scaled (the final norm, when the head is the shared embedding table). On the layer
    axis, ``BRANCH`` writes what a layer adds to the residual stream and ``SCORES`` is proportional
    to its attention scores. On an axis that a norm of queries or keys measures, ``NORMED`` makes
    what that norm divides by its own size. ``EMBEDS`` writes it from the embedding table.
    ``PLAIN`` is none of these.
    """

    READS = "reads"
    WRITES = "writes"
    GAINS = "gains"
    NORM_BIAS = "norm_bias"
    CARRIES = "carries"
    BRANCH = "branch"
    SCORES = "scores"
    NORMED = "normed"
    EMBEDS = "embeds"
    PLAIN = "plain"


Sizes = Mapping[Axis, int]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open range ``(start, stop)`` on each axis of a tensor, in the tensor's axis order."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent along each axis."""
        return tuple([stop - start for start, stop in self.ranges])

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def relative_to(self, outer: "Box") -> tuple[slice, ...]:
        """Return the slices that cut this box out of an array holding ``outer``."""
        return tuple(
            slice(start - base, stop - base)
            for (start, stop), (base, _) in zip(self.ranges, outer.ranges, strict=True)
        )


def full_box(shape: tuple[int, ...]) -> Box:
    """Return the box that covers an array of ``shape``."""
    return Box(tuple((0, extent) for extent in shape))


def intersect(a: Box, b: Box) -> Box | None:
    """Return the common part of two boxes of one tensor, or None if they share no element."""
    ranges = tuple(
        (max(a_start, b_start), min(a_stop, b_stop))
        for (a_start, a_stop), (b_start, b_stop) in zip(a.ranges, b.ranges, strict=True)
    )
    return None if any(start >= stop for start, stop in ranges) else Box(ranges)


def split(box: Box, limit: int) -> Iterator[Box]:
    """Cut ``box`` into boxes of at most ``limit`` elements, contiguous and in storage order."""
    if box.count <= limit or all(extent == 1 for extent in box.shape):
        yield box
        return
    place = next(i for i, extent in enumerate(box.shape) if extent > 1)
    start, stop = box.ranges[place]
    step = max(1, limit // (box.count // (stop - start)))
    for low in range(start, stop, step):
        span = (low, min(low + step, stop))
        yield from split(Box((*box.ranges[:place], span, *box.ranges[place + 1 :])), limit)


FRESH = -1
"""Source of a new index that no old index stands behind: filled by the axis map's rule for the
role.
"""

PADDING = -2
"""Source of a new index that only fills up the vocabulary to a multiple: always zero."""


class Fill(StrEnum):
    """How fresh entries are made. Where several axes are fresh, the first of this list wins."""

    ZERO = "zero"
    DRAWN = "drawn"
    """The tensor's own initialisation: a normal draw, one for gains, zero for biases."""
    NEAR = "near"
    """The mean of the old entries along the axis, with a little noise to tell them apart."""
    MEAN = "mean"
    """The mean of the old entries along the axis (LayerNorm does not see a channel equal to the
    mean).
    """


@dataclass(frozen=True, slots=True)
class Run:
    """A range of new indices with one kind of source.

    ``old`` is the first of as many consecutive old indices, or FRESH, or PADDING.
    """

    start: int
    stop: int
    old: int


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where each new index of one axis comes from, and what that does to a tensor by its role.

    ``source[i]`` is the old index of new index ``i``, or FRESH, or PADDING. ``scale[role][i]``
    multiplies old entries; a role without a scale is left alone. ``fill[role]`` makes fresh entries
    (DRAWN if absent). ``gate[role][i]`` multiplies every entry, fresh ones included: a branch that
    starts at zero, a baked mask. ``centre``: old writers lose their mean over this axis. ``noise``:
    standard deviation, relative to the tensor's own, of noise added to readers with signs that
    cancel over the copies of one source index. ``donor[i]`` is the old index whose statistics a
    fresh index ``i`` borrows.
    """

    old_size: int
    source: IntArray
    scale: Mapping[Role, FloatArray] = field(default_factory=dict)
    fill: Mapping[Role, Fill] = field(default_factory=dict)
    centre: bool = False
    noise: float = 0.0
    donor: IntArray | None = None
    gate: Mapping[Role, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source.ndim != 1 or not len(self.source):
            raise ValueError("an axis map needs one source per new index")
        if self.source.max() >= self.old_size or self.source.min() < PADDING:
            raise ValueError(f"source index outside the old axis of size {self.old_size}")
        for role, factors in chain.from_iterable(table.items() for table in self.factors):
            if factors.shape != self.source.shape or not np.isfinite(factors).all():
                raise ValueError(f"{role} does not have one finite factor per new index")
        if not 0 <= self.noise < inf:
            noise = Found(f"noise of {self.noise} on copies")
            raise ValueError(Text(noise, Wanted("0 or more")))
        donor = self.donors
        if donor.shape != self.source.shape or donor.max() >= self.old_size:
            raise ValueError(f"donors are not one index of {self.old_size} per new index")

    @property
    def factors(self) -> tuple[Mapping[Role, FloatArray], Mapping[Role, FloatArray]]:
        """The factors (new,) of old entries by role: scale, then gate."""
        return self.scale, self.gate

    @property
    def new_size(self) -> int:
        """The size of the grown axis."""
        return len(self.source)

    @property
    def donors(self) -> IntArray:
        """The old index (new,) that each new index comes from or borrows from."""
        return self.source if self.donor is None else self.donor

    @property
    def fresh(self) -> IntArray:
        """The rising new indices (fresh,) that growth made: without a source, or copies beyond the
        first; padding is none.
        """
        copies = (self.source >= 0) & (self.copy_number > 0)
        return np.flatnonzero((self.source == FRESH) | copies).astype(np.int64)

    @property
    def is_identity(self) -> bool:
        """Whether the axis, and every tensor on it, stays bit for bit what it was."""
        return (
            self.new_size == self.old_size
            and not self.centre
            and not self.scale
            and not self.gate
            and bool((self.source == np.arange(self.old_size)).all())
        )

    def runs(self, start: int = 0, stop: int | None = None) -> list[Run]:
        """Cut the new indices from ``start`` to ``stop`` into the longest possible runs."""
        source = self.source[start:stop]
        step = np.where(source[:-1] < 0, source[1:] == source[:-1], source[1:] == source[:-1] + 1)
        cuts = [0, *(np.flatnonzero(~step) + 1).tolist(), len(source)]
        return [Run(start + a, start + b, int(source[a])) for a, b in pairwise(cuts)]

    @cached_property
    def copy_number(self) -> IntArray:
        """How many earlier new indices have the same source, for each new index (new,)."""
        seen: dict[int, int] = {}
        number = np.zeros_like(self.source)
        for index, source in enumerate(self.source.tolist()):
            number[index] = seen.get(source, 0)
            seen[source] = seen.get(source, 0) + 1
        return number

    @cached_property
    def copies(self) -> IntArray:
        """How many new indices share its source, for each new index (new,)."""
        _, inverse, counts = np.unique(self.source, return_inverse=True, return_counts=True)
        return counts[inverse].astype(np.int64)


def identity(size: int) -> AxisMap:
    """Return the map that leaves an axis of ``size`` as it is."""
    return AxisMap(size, np.arange(size, dtype=np.int64))


def appended(old_size: int, new_size: int, tail: int = FRESH) -> IntArray:
    """Return sources (new,) that keep the old indices in front and put ``tail`` behind them."""
    kept = min(old_size, new_size)
    return np.concatenate([np.arange(kept), np.full(new_size - kept, tail)]).astype(np.int64)
