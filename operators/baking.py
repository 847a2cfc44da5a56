"""Putting masks into weights, so that a stock trainer computes the masked model."""

from collections.abc import Mapping
from dataclasses import replace

from flmgrow.model.arrays import FloatArray
from flmgrow.model.axes import Axis, AxisMap, Role
from flmgrow.model.masks import Dimension
from flmgrow.operators.growth import MASKED, Growth
from flmgrow.operators.masks import baking_maps


def _gated(axis_map: AxisMap, baking: AxisMap) -> AxisMap:
    """Return ``axis_map`` with the gates of ``baking`` multiplied onto its own."""
    gate: dict[Role, FloatArray] = dict(axis_map.gate)
    for role, factors in baking.gate.items():
        gate[role] = gate.get(role, 1.0) * factors
    return replace(axis_map, gate=gate)


def baked(growth: Growth, values: Mapping[Dimension, float]) -> Growth:
    """Return ``growth`` with its masks baked in, at ``values`` instead of their own where given.

    At other values it leads to another function than that of its own masks, and says so.

    Raises:
        UsageError: For a mask that weights cannot express (``operators/masks.py``).
    """
    moved = {
        dimension: f"{dimension} at {values[dimension]:g} instead of {mask.value:g}"
        for dimension, mask in growth.masks.items()
        if values.get(dimension, mask.value) != mask.value
    }
    masks = {
        dimension: mask.at(values.get(dimension, mask.value))
        for dimension, mask in growth.masks.items()
    }
    maps: dict[Axis, AxisMap] = dict(growth.maps)
    for axis, baking in baking_maps(masks, growth.new).items():
        maps[axis] = _gated(maps[axis], baking) if axis in maps else baking
    return replace(
        growth,
        maps=maps,
        masks={},
        notes=(
            *(note for note in growth.notes if note != MASKED),
            *(f"baked {place}: another function" for place in moved.values()),
        ),
        preserves=growth.preserves and not moved,
        request={
            **growth.request,
            "bake": {str(dimension): mask.value for dimension, mask in masks.items()},
        },
    )
