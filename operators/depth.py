"""Growing depth: whole layers, each a pair of branches added to the residual stream.

A fresh layer changes nothing if both of its branches add zero: the branch writers (attention output
and FFN down projection, with their biases; or, where what a branch adds is normed, the gains and
biases of that norm) are zero (**zero**; **copy** is the same here), or the branch is masked
(**mask**). Everything else in the layer starts as a copy of the old layer before
it, or is drawn. The writer wakes first, as the branch's inside is alive; then the rest.

**stack** (G_stack, Du et al. 2024) and **interleave** repeat old layers whole. They change the
function.

Where attention scores depend on a layer's number, an old layer that moves keeps its scores:
whatever they are proportional to takes (new number) / (old number).
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray, IntArray
from flmgrow.model.axes import FRESH, Axis, AxisMap, Role
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.choices import Method, NewLayers, chosen, chosen_method
from flmgrow.operators.dimension import DimensionGrowth


def _parse_pattern(pattern: str, old: int, new: int) -> list[int]:
    try:
        sources = [int(item) for item in pattern.split(",")]
    except ValueError:
        raise UsageError(
            f"depth placement {pattern!r} is neither end, interleave nor a list of layer numbers"
        ) from None
    firsts = sorted(set(sources), key=sources.index)
    if len(sources) != new or firsts != list(range(old)):
        raise UsageError(
            f"depth placement {pattern}: wanted {new} old layer numbers in which 0 to {old - 1} "
            "each appear, the first time in order",
            "example for 2 -> 4 layers: 0,0,1,1",
        )
    return sources


def _evenly(old: int, new: int) -> list[int]:
    """Spread the fresh layers evenly: fresh layer k of n stands behind old layer (2k + 1) old /
    2n.
    """
    fresh = new - old
    behind = [(2 * k + 1) * old // (2 * fresh) for k in range(fresh)]
    return sorted([*range(old), *behind])


class LayerPlacement(StrEnum):
    """Where fresh layers go, if it is not said for each of them."""

    END = "end"
    INTERLEAVE = "interleave"


def _sources(old: int, new: int, method: Method, placement: str) -> list[int]:
    if method is Method.STACK:
        return [layer % old for layer in range(new)]
    if method is Method.INTERLEAVE:
        return [layer * old // new for layer in range(new)]
    if placement == LayerPlacement.END:
        return [*range(old), *([old - 1] * (new - old))]
    if placement == LayerPlacement.INTERLEAVE:
        return _evenly(old, new)
    return _parse_pattern(placement, old, new)


def _first_uses(sources: Sequence[int]) -> IntArray:
    """Return the new indices that repeat an earlier source: the fresh layers."""
    return np.array([i for i, s in enumerate(sources) if s in sources[:i]], np.int64)


def _score_factors(config: ModelConfig, donor: IntArray) -> FloatArray:
    wanted = [config.attention_factor(int(old)) for old in donor]
    built_in = [config.attention_factor(new) for new in range(len(donor))]
    factors: FloatArray = np.array(wanted) / np.array(built_in)
    return factors


def grow_depth(
    config: ModelConfig,
    new: int,
    method: Method,
    placement: str = LayerPlacement.END,
    new_layers: NewLayers = NewLayers.COPY,
) -> DimensionGrowth:
    """Return how depth grows to ``new`` layers by ``method`` (mask, zero, copy, stack or
    interleave).

    ``placement`` is end, interleave, or a list of old layer numbers, one per new layer, in which
    the first use of a number is the old layer itself. ``new_layers`` is copy or random.
    """
    method = chosen_method(Dimension.DEPTH, method)
    new_layers = chosen("new layers", new_layers, NewLayers)
    sources = _sources(config.layers, new, method, placement)
    donor = np.array(sources, np.int64)
    fresh = _first_uses(sources)
    exact = method not in (Method.STACK, Method.INTERLEAVE)
    scale: dict[Role, FloatArray] = {}
    gate: dict[Role, FloatArray] = {}
    if method in (Method.ZERO, Method.COPY):
        gate[Role.BRANCH] = np.ones(new)
        gate[Role.BRANCH][fresh] = 0.0
    if config.multipliers.attention_by_inverse_layer:
        scale[Role.SCORES] = _score_factors(config, donor)
    source = donor.copy()
    if new_layers is NewLayers.RANDOM and exact:
        source[fresh] = FRESH
    axis_map = AxisMap(config.layers, source, scale, donor=donor, gate=gate)
    mask = Mask(Dimension.DEPTH, {Axis.LAYER: fresh}) if method is Method.MASK else None
    return DimensionGrowth({Axis.LAYER: axis_map}, mask, preserves=exact)
