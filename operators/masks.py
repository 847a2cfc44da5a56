"""The axis maps that put a constant mask into the weights.

A mask that stands still can be put into the weights: readers of a masked unit take its value. What
masks are is told in ``model/masks.py``. An ordinary trainer knows nothing of them, and can go on
from a checkpoint in which they are baked.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.axes import Axis, AxisMap, Role, identity
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.text import Setting, Text


def baking_maps(masks: Mapping[Dimension, Mask], config: ModelConfig) -> dict[Axis, AxisMap]:
    """Return the axis maps that put every mask of a model into its weights.

    The maps leave all sizes as they are.

    Raises:
        UsageError: For a hidden mask below 1, whose weighted statistics no ordinary norm can
            compute, for a head mask below 1 where one norm measures all heads, and for one that
            grew groups and queries together, as one factor per axis would be applied twice.
    """
    maps, sizes = {}, config.sizes
    for dimension, mask in masks.items():
        if mask.value == 1.0:
            continue
        if dimension is Dimension.WIDTH:
            raise _weighed(f"a hidden mask at {mask.value}", "channels", "width=zero or copy")
        if dimension is Dimension.HEADS and config.qk_norm_of_all:
            raise _weighed(f"a head mask at {mask.value}", "heads", "heads=copy")
        role = Role.BRANCH if dimension is Dimension.DEPTH else Role.READS
        if sum(bool(len(indices)) for indices in mask.fresh.values()) > 1 and mask.value != 0.0:
            raise UsageError(
                f"a head mask at {mask.value} over groups and queries cannot be baked per axis",
                "finish the ramp: train on until it is 1",
            )
        for axis, indices in mask.fresh.items():
            if len(indices):
                factors = np.ones(sizes[axis])
                factors[indices] = mask.value
                maps[axis] = replace(identity(sizes[axis]), gate={role: factors})
    return maps


def _weighed(mask: str, what: str, methods: str) -> UsageError:
    """Return the refusal of a mask that norms weigh ``what`` they measure by."""
    dimension = methods.partition("=")[0]
    return UsageError(
        f"{mask} cannot be baked: its norms weigh {what}",
        Text(
            f"finish the ramp: train on until it is 1; or grow the {dimension} with ",
            Setting("method"),
            f" {methods}",
        ),
    )
