"""Masks: which units of a dimension are fresh, their multiplier, and the ramp it rises on.

A mask multiplies what a fresh unit hands on, from 0 at growth to 1 at the end of its ramp. One rule
for all four dimensions: an FFN unit's activation (after gating), a head's context (before the
output projection), a branch's output (before the residual sum), a hidden channel at every norm's
output, with the norm's statistics weighted by the mask. At 0 the grown model is the old one
whatever the fresh values are; at 1 it is an ordinary model. (Masked Structural Growth, Yao et al.
2024, masks queries, keys, values and FFN pre-activations instead; the rule here is linear in the
mask, so all but the hidden mask can be baked into weights at any value.) A mask is never a tensor
in a checkpoint: it is which indices are fresh, a value, and a ramp, in ``flmgrow.json``.

Growth makes masks, the manifest keeps them, the reference forward and the trainer apply them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.model.arrays import FloatArray, IntArray
from flmgrow.model.axes import Axis, Sizes
from flmgrow.text import Found, Text

Fresh = Mapping[Axis, IntArray]
"""The rising indices, on each axis that grew, which a growth made."""

MAX_INDEX = 1 << 26
DEFAULT_RAMP_STEPS = 5000
"""Optimizer steps from 0 to 1 (the published implementation's default)."""


class Dimension(StrEnum):
    """What a model can grow along."""

    WIDTH = "width"
    HEADS = "heads"
    FFN = "ffn"
    DEPTH = "depth"


AXES: Mapping[Dimension, tuple[Axis, ...]] = {
    Dimension.WIDTH: (Axis.HIDDEN,),
    Dimension.HEADS: (Axis.KV_GROUP, Axis.QUERY_PER_GROUP),
    Dimension.FFN: (Axis.FFN,),
    Dimension.DEPTH: (Axis.LAYER,),
}


@dataclass(frozen=True, eq=False)
class Mask:
    """The mask of one dimension: fresh indices on each of its axes, its value, and its ramp.

    A head is fresh if its group or its place in the group is.
    """

    dimension: Dimension
    fresh: Mapping[Axis, IntArray]
    value: float = 0.0
    ramp_steps: int = DEFAULT_RAMP_STEPS

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise BadCheckpointError(
                Text(f"{self.dimension} mask: value ", Found(self.value)), wanted="0 to 1"
            )
        if self.ramp_steps < 1:
            raise BadCheckpointError(f"{self.dimension} mask: a ramp of {self.ramp_steps} steps")
        if set(self.fresh) != set(AXES[self.dimension]):
            raise BadCheckpointError(f"{self.dimension} mask: axes {', '.join(self.fresh)}")

    def values(self, sizes: Sizes) -> FloatArray:
        """Return the multiplier of every unit: (h,), (g, q), (f,) or (layers,), by the dimension.

        Raises:
            BadCheckpointError: It names a unit that a model of these sizes does not have.
        """
        result = np.ones([sizes[axis] for axis in self.fresh])
        for place, indices in enumerate(self.fresh.values()):
            if len(indices) and indices.max() >= result.shape[place]:
                raise BadCheckpointError(
                    f"{self.dimension} mask: index {indices.max()} is too large"
                )
            np.moveaxis(result, place, 0)[indices] = self.value
        return result

    def at(self, value: float) -> "Mask":
        """Return this mask at another value."""
        return replace(self, value=value)

    def to_json(self) -> dict[str, object]:
        """Return the mask as plain data; indices as half-open ranges."""
        return {
            "value": self.value,
            "ramp_steps": self.ramp_steps,
            "fresh": fresh_to_json(self.fresh),
        }


def fresh_to_json(fresh: Fresh) -> dict[str, list[list[int]]]:
    """Return which indices are fresh as plain data: half-open ranges by axis."""
    return {str(axis): ranges(indices) for axis, indices in fresh.items()}


def fresh_from_json(data: Mapping[str, list[tuple[int, int]]]) -> dict[Axis, IntArray]:
    """Return the indices (fresh,), by axis, that :func:`fresh_to_json` described.

    Raises:
        ValueError: For anything else.
    """
    return {Axis(axis): indices_of(spans) for axis, spans in data.items()}


def ranges(indices: IntArray) -> list[list[int]]:
    """Return sorted ``indices`` (n,) as half-open ranges."""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(indices, breaks)]


def indices_of(spans: list[tuple[int, int]]) -> IntArray:
    """Return the indices (n,) in rising half-open ranges.

    Raises:
        ValueError: For anything else.
    """
    edges = [edge for start, stop in spans for edge in (start, stop)]
    if not all(type(edge) is int for edge in edges) or edges != sorted({*edges}):
        raise ValueError("ranges that do not rise")
    if edges and not 0 <= edges[0] < edges[-1] <= MAX_INDEX:
        raise ValueError("an index that no unit has")
    parts = [np.arange(start, stop, dtype=np.int64) for start, stop in spans]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def mask_from_json(dimension: str, data: Mapping[str, object]) -> Mask:
    """Return the mask that ``Mask.to_json`` described.

    Raises:
        BadCheckpointError: If it is malformed.
    """
    try:
        fresh = data["fresh"]
        value, steps = data["value"], data["ramp_steps"]
        if not isinstance(fresh, Mapping) or type(steps) is not int or steps < 1:
            raise TypeError
        if not isinstance(value, int | float):
            raise TypeError
        return Mask(Dimension(dimension), fresh_from_json(fresh), float(value), steps)
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"{dimension} mask: not in the form flmgrow writes") from error


def ramped(
    masks: Mapping[Dimension, Mask], steps: int, *, in_turn: bool = False
) -> dict[Dimension, Mask]:
    """Return ``masks`` as they are ``steps`` optimizer steps later.

    All rise together, or each after the one before it, in the order of the mapping. Where a mask
    stands follows from its value alone, so a run that is resumed goes on along the same line.
    """
    later = {}
    for dimension, mask in masks.items():
        # Rounded, because the quotient that was stored may be one bit off a whole step.
        reached = round(mask.value * mask.ramp_steps, 6)
        taken = min(steps, ceil(mask.ramp_steps - reached))
        after = min(1.0, (reached + taken) / mask.ramp_steps)
        later[dimension] = mask.at(after) if taken else mask
        if in_turn:
            steps -= taken
    return later
