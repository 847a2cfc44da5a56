"""Growths: one axis map per axis, and what they do to any tensor.

A growth is one axis map per axis; what it does to a tensor follows from the tensor's roles.
``moves`` turns that into data: for a box of a grown tensor, which boxes of old tensors are copied
into it and which parts are filled, covering it exactly once. Each move is uniform, so a plan can be
counted without a tensor in sight, and executed piece by piece.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, product

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray, IntArray
from flmgrow.model.axes import FRESH, PADDING, Axis, AxisMap, Box, Fill, Role, Run
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import LogicalTensor
from flmgrow.operators.choices import FreshSecondMoment, Method, Moments, chosen, hold
from flmgrow.operators.draws import DRAW, DRAWS
from flmgrow.text import Found, Setting, Text

MASKED = Text(
    "masks: a stock trainer ignores them and would change the function; with one, use ",
    Setting("method"),
    " zero or copy",
)
"""The note on a growth with masks, which is none once they are baked."""


@dataclass(frozen=True, eq=False)
class Growth:
    """The way from one model to a larger one that computes the same function.

    ``maps`` has an entry for every axis that changes. ``renamed`` names the old tensor behind a new
    one where they differ (a head untied from the embedding). ``notes`` are sentences the user must
    read; ``preserves`` is False for methods that change the function (stack, interleave).
    ``request`` is plain data from which the same growth can be derived again
    (``operators/target.py``). ``draw`` is the version of how values come about
    (``operators/draws.py``).
    """

    old: ModelConfig
    new: ModelConfig
    maps: Mapping[Axis, AxisMap] = field(default_factory=dict)
    masks: Mapping[Dimension, Mask] = field(default_factory=dict)
    methods: Mapping[Dimension, Method] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    preserves: bool = True
    seed: int = 0
    request: Mapping[str, object] = field(default_factory=dict)
    moments: Moments = Moments.KEEP
    fresh_second_moment: FreshSecondMoment = FreshSecondMoment.ZERO
    draw: int = DRAW

    def __post_init__(self) -> None:
        hold(
            self,
            moments=chosen("moments", self.moments, Moments),
            fresh_second_moment=chosen(
                "fresh second moment", self.fresh_second_moment, FreshSecondMoment
            ),
        )
        if self.draw not in DRAWS:
            known = ", ".join(map(str, sorted(DRAWS)))
            raise UsageError(
                Text("values are drawn by version ", Found(self.draw)), wanted=f"one of {known}"
            )

    @property
    def fresh(self) -> dict[Axis, IntArray]:
        """The rising indices (fresh,) that it makes, on each axis that grows."""
        found = {axis: self.maps[axis].fresh for axis in sorted(self.maps)}
        return {axis: indices for axis, indices in found.items() if len(indices)}

    def source_name(self, tensor: LogicalTensor) -> str:
        """Return the name of the old tensor that ``tensor`` grows from."""
        return self.renamed.get(tensor.name, tensor.name)

    def changes(self, tensor: LogicalTensor) -> bool:
        """Whether any value of ``tensor`` is computed rather than copied."""
        return any(
            (axis_map.centre and Role.WRITES in roles)
            or (axis_map.noise and Role.READS in roles)
            or roles & (axis_map.scale.keys() | axis_map.gate.keys())
            for axis_map, roles in self.mapped(tensor)
        )

    def rounds(self, tensor: LogicalTensor) -> bool:
        """Whether a computed value of ``tensor`` may need rounding: factors of 0 and 1 never do."""
        return any(
            (axis_map.centre and Role.WRITES in roles)
            or (axis_map.noise and Role.READS in roles)
            or Fill.MEAN in {axis_map.fill.get(role) for role in roles}
            or any(
                not np.isin(table[role], (0, 1)).all()
                for table in axis_map.factors
                for role in roles & table.keys()
            )
            for axis_map, roles in self.mapped(tensor)
        )

    def mapped(self, tensor: LogicalTensor) -> Iterator[tuple[AxisMap, frozenset[Role]]]:
        """Yield the map and the tensor's roles for each of its axes that changes."""
        for axis, roles in zip(tensor.axes, tensor.roles, strict=True):
            if axis in self.maps:
                yield self.maps[axis], roles


@dataclass(frozen=True, slots=True)
class Move:
    """One uniform part of a grown box.

    ``old`` is the box to copy (``fill`` None), or to average over its axes ``mean_axes`` (``fill``
    MEAN or NEAR); other fills need no old values. ``box`` is in new indices.
    """

    box: Box
    fill: Fill | None
    old: Box | None = None
    mean_axes: tuple[int, ...] = ()


def _fill(axis_map: AxisMap, roles: frozenset[Role]) -> Fill:
    """The fill of a fresh index for a tensor with these roles: the first of the list."""
    fills = {axis_map.fill.get(role, Fill.DRAWN) for role in roles}
    return next(fill for fill in Fill if fill in fills)


def moves(growth: Growth, tensor: LogicalTensor, box: Box) -> Iterator[Move]:
    """Yield the moves that make ``box`` of the grown ``tensor``; their boxes tile it exactly."""
    maps = [growth.maps.get(axis) for axis in tensor.axes]
    runs = [
        [Run(*span, span[0])] if axis_map is None else axis_map.runs(*span)
        for axis_map, span in zip(maps, box.ranges, strict=True)
    ]
    for combination in product(*runs):
        target = Box(tuple((run.start, run.stop) for run in combination))
        fills: dict[Fill, list[int]] = {}
        for place, (run, axis_map, roles) in enumerate(
            zip(combination, maps, tensor.roles, strict=True)
        ):
            if run.old == PADDING:
                fills.setdefault(Fill.ZERO, []).append(place)
            elif run.old == FRESH and axis_map is not None:
                fills.setdefault(_fill(axis_map, roles), []).append(place)
        fill = next((fill for fill in Fill if fill in fills), None)
        averaged = fill in (Fill.MEAN, Fill.NEAR)
        mean_axes = tuple(sorted(chain.from_iterable(fills.values()))) if averaged else ()
        old = None
        if fill is None or averaged:
            spans = [(run.old, run.old + run.stop - run.start) for run in combination]
            for place in mean_axes:  # of the true vocabulary: padding depends on the layout
                spans[place] = (0, growth.old.sizes[tensor.axes[place]])
            old = Box(tuple(spans))
        yield Move(target, fill, old, mean_axes)


def factors(
    growth: Growth, tensor: LogicalTensor, box: Box, fresh: bool = False
) -> list[FloatArray]:
    """Return the factors of old (or of fresh) entries in ``box``, in shapes that broadcast against
    its own.

    A gain that multiplies zeros is left open where its branch is closed: both would wait for each
    other for ever.
    """
    result = []
    open_branch = fresh and _multiplies_zeros(growth, tensor, box)
    for place, (axis, roles) in enumerate(zip(tensor.axes, tensor.roles, strict=True)):
        axis_map = growth.maps.get(axis)
        tables = () if axis_map is None else (axis_map.gate,) if fresh else axis_map.factors
        shape = [1] * len(tensor.axes)
        shape[place] = -1
        for role, table in product(Role, tables):
            if role in roles and role in table and not (role is Role.BRANCH and open_branch):
                result.append(table[role][slice(*box.ranges[place])].reshape(shape))
    return result


def _multiplies_zeros(growth: Growth, tensor: LogicalTensor, box: Box) -> bool:
    """Whether ``tensor`` has gains for fresh indices in ``box`` whose writers are zero."""
    return any(
        Role.GAINS in roles
        and axis in growth.maps
        and growth.maps[axis].fill.get(Role.WRITES) is Fill.ZERO
        and growth.maps[axis].source[span[0]] == FRESH
        for axis, roles, span in zip(tensor.axes, tensor.roles, box.ranges, strict=True)
    )


@dataclass(frozen=True)
class Counts:
    """How the elements of a grown box come about: copied, or filled in one of the ways."""

    copied: int = 0
    drawn: int = 0
    zero: int = 0
    near: int = 0
    mean: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.copied + other.copied,
            self.drawn + other.drawn,
            self.zero + other.zero,
            self.near + other.near,
            self.mean + other.mean,
        )

    @property
    def total(self) -> int:
        """The number of all elements."""
        return self.copied + self.drawn + self.zero + self.near + self.mean


def count(growth: Growth, tensor: LogicalTensor, box: Box) -> Counts:
    """Count the elements of ``box`` by how they come about, without reading anything."""
    sums = dict.fromkeys(("copied", *map(str, Fill)), 0)
    for move in moves(growth, tensor, box):
        sums["copied" if move.fill is None else str(move.fill)] += move.box.count
    return Counts(**sums)
