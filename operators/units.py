"""Growing FFN units and attention heads: independent units whose outputs are summed.

A unit computes something from the residual stream (its writers) and hands it to a projection that
sums over units (its readers). So the function stays if fresh units are masked, or if their readers
are zero, or if units are copied and readers split: sum_j a_j = 1 over the copies of a unit. The
shares a_j are unequal, so that the copies' gradients differ and they part. A zero reader wakes
first, as its unit's writers are drawn: on each new path exactly one side is zero.

Heads are two axes. Under multi-head attention groups are heads; under grouped-query attention,
query heads are inserted at the end of each group (appending them to the whole list would hand old
heads to other groups), and groups are appended with their own keys and values.
"""

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.axes import Axis, AxisMap, Fill, Role, appended
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.choices import Method, no_method
from flmgrow.operators.dimension import DimensionGrowth
from flmgrow.operators.draws import split_weights
from flmgrow.text import Setting, Text


def _unit_map(axis: Axis, old: int, new: int, method: Method, seed: int) -> AxisMap:
    if method is Method.COPY:
        source = np.arange(new, dtype=np.int64) % old
        return AxisMap(old, source, {Role.READS: split_weights(seed, axis, source)})
    if method is Method.ZERO:
        return AxisMap(old, appended(old, new), fill={Role.READS: Fill.ZERO})
    if method is Method.MASK:
        return AxisMap(old, appended(old, new))
    raise no_method(Dimension.FFN if axis is Axis.FFN else Dimension.HEADS, method)


def grow_ffn(config: ModelConfig, new: int, method: Method, seed: int) -> DimensionGrowth:
    """Return how the FFN grows to ``new`` units by ``method`` (mask, zero or copy)."""
    maps = {Axis.FFN: _unit_map(Axis.FFN, config.ffn, new, method, seed)}
    fresh = {Axis.FFN: np.arange(config.ffn, new, dtype=np.int64)}
    return DimensionGrowth(maps, Mask(Dimension.FFN, fresh) if method is Method.MASK else None)


def grow_heads(
    config: ModelConfig, kv_groups: int, queries_per_group: int, method: Method, seed: int
) -> DimensionGrowth:
    """Return how attention grows to the given groups and query heads per group (mask, zero or
    copy).
    """
    sizes = {
        Axis.KV_GROUP: (config.kv_groups, kv_groups),
        Axis.QUERY_PER_GROUP: (config.queries_per_group, queries_per_group),
    }
    maps = {
        axis: _unit_map(axis, old, new, method, seed)
        for axis, (old, new) in sizes.items()
        if new != old
    }
    fresh = {axis: np.arange(old, new, dtype=np.int64) for axis, (old, new) in sizes.items()}
    return DimensionGrowth(maps, Mask(Dimension.HEADS, fresh) if method is Method.MASK else None)


def head_target(config: ModelConfig, heads: int | None, kv_groups: int | None) -> tuple[int, int]:
    """Return (groups, query heads per group) for the wanted numbers of heads and groups.

    With only ``heads`` given, groups follow for a multi-head source and stay for a grouped one;
    with only ``kv_groups`` given, each keeps its number of query heads.

    Raises:
        UsageError: If heads do not divide.
    """
    multi_head = config.queries_per_group == 1
    if heads is None:
        return kv_groups or config.kv_groups, config.queries_per_group
    groups = kv_groups or (heads if multi_head else config.kv_groups)
    if heads % groups:
        raise UsageError(
            f"{heads} heads cannot be shared by {groups} key-value groups",
            Text(
                "give ",
                Setting("num_query_groups"),
                " a divisor of ",
                Setting("num_attention_heads"),
            ),
        )
    return groups, heads // groups
