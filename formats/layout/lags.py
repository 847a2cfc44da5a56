"""By how much the optimizer has counted less for some parameters than for the others.

A parameter that is frozen has no state. Once it trains, its state begins with zeros and counts
steps of its own. So Adam's count is one number for most of the model, and behind it by a lag for
what began later; a parameter without any state has no lag, but None.

Freezing is of whole stored parameters. What counts is said by slices of the logical model, as these
are the same in every layout.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TypeVar

import numpy as np

from flmgrow.formats.layout.placements import Placed, Placement, Slice
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import indices_of, ranges
from flmgrow.model.tensors import logical_tensors
from flmgrow.storage.strict_json import Json

Lags = Mapping[Slice, int | None]
"""The lag of each slice that has one; None of what has no state."""

NO_LAGS: Lags = {}
"""All parameters have states of the same count."""


def lag_of(placement: Placement, lags: Lags) -> int | None:
    """Return the lag of a stored parameter: 0 for most, None if it has no state."""
    return lags.get(placement.slices[0], 0)


def has_state(placement: Placement, lags: Lags) -> bool:
    """Whether the optimizer keeps anything of a stored parameter."""
    return lag_of(placement, lags) is not None


Item = TypeVar("Item", bound=Placed)


def with_state(items: Iterable[Item], lags: Lags) -> list[Item]:
    """Return those of stored parameters that the optimizer keeps anything of."""
    return [item for item in items if has_state(item.placement, lags)]


def parameters_in(slices: Iterable[Slice], config: ModelConfig) -> int:
    """Return how many parameters of a model lie in slices; vocabulary padding is not counted."""
    tensors = logical_tensors(config)
    sizes = {name: prod(tensor.shape(config.sizes)) for name, tensor in tensors.items()}
    return sum(
        sizes.get(name, 0) // (1 if layer is None else config.layers) for name, layer in slices
    )


def lags_to_json(lags: Lags) -> list[Json]:
    """Return lags as plain data: a tensor, its layers as half-open ranges (null for one without),
    and how many steps less were counted (null for one that has no state).
    """
    layers: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for (tensor, layer), lag in lags.items():
        layers[tensor, lag] += [] if layer is None else [layer]
    return [
        {
            "tensor": tensor,
            "layers": ranges(np.array(sorted(found), np.int64)) if found else None,
            "steps": lag,
        }
        for (tensor, lag), found in layers.items()
    ]


def lags_from_json(data: Sequence[Json]) -> dict[Slice, int | None]:
    """Return the lags that :func:`lags_to_json` described.

    Raises:
        ValueError: For layers that are none.
    """
    found: dict[Slice, int | None] = {}
    for entry in data:
        spans = entry["layers"]
        layers = [None] if spans is None else indices_of(spans).tolist()
        found |= dict.fromkeys(((entry["tensor"], layer) for layer in layers), entry["steps"])
    return found
