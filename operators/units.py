"""Growing FFN units and attention heads: independent units whose outputs are summed.

A unit computes something from the residual stream (its writers) and hands it to a projection that
sums over units (its readers). So the function stays if fresh units are masked, or if their readers
are zero, or if units are copied and readers split: sum_j a_j = 1 over the copies of a unit. The
shares a_j are unequal, so that the copies' gradients differ and they part. A zero reader wakes
first, as its unit's writers are drawn: on each new path exactly one side is zero.

Heads are two axes. Under multi-head attention groups are heads; under grouped-query attention,
query heads are inserted at the end of each group (appending them to the whole list would hand old
heads to other groups), and groups are appended with their own keys and values.

**One norm over all heads** (OLMo 2) measures fresh queries and keys with the old ones. Under the
mask, its statistics are weighted as those of a masked width are. Copies with the shares a_j, of N
heads for n, keep them: a copy's projection takes s_j = sqrt(a_j N/n) and its gain 1/s_j, so that
the squares of the copies of a head sum to N/n of what they were, as their number does. (So
gradients keep to the dual rule, too.) Zero readers are no help: fresh queries and keys would have
to be zero beside them, and as each of the two gets its gradient from the other, they would stay so.
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


def _unit_map(
    axis: Axis, old: int, new: int, method: Method, seed: int, measured: bool = False
) -> AxisMap:
    """Return the map of units; ``measured``: one norm goes over all of them."""
    if method is Method.COPY:
        source = np.arange(new, dtype=np.int64) % old
        shares = split_weights(seed, axis, source)
        scale = {Role.READS: shares}
        if measured:
            sizes = np.sqrt(shares * new / old)
            scale |= {Role.NORMED: sizes, Role.GAINS: 1 / sizes}
        return AxisMap(old, source, scale)
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

    Raises:
        UsageError: Where the method cannot keep the function.
    """
    measured = config.qk_norm_of_all
    if measured:
        _refuse_for_one_norm(config, method)
    sizes = {
        Axis.KV_GROUP: (config.kv_groups, kv_groups),
        Axis.QUERY_PER_GROUP: (config.queries_per_group, queries_per_group),
    }
    maps = {
        axis: _unit_map(axis, old, new, method, seed, measured)
        for axis, (old, new) in sizes.items()
        if new != old
    }
    fresh = {axis: np.arange(old, new, dtype=np.int64) for axis, (old, new) in sizes.items()}
    return DimensionGrowth(maps, Mask(Dimension.HEADS, fresh) if method is Method.MASK else None)


def _refuse_for_one_norm(config: ModelConfig, method: Method) -> None:
    """Refuse what cannot keep, or never wakes, heads whose queries and keys are normed as one."""
    if method is Method.ZERO:
        raise UsageError(
            "heads=zero with one norm over the queries, and keys, of all heads: fresh ones would "
            "have to be zero, and would never learn",
            Text("use ", Setting("method"), " heads=copy or heads=mask"),
        )
    if method is Method.COPY and config.norm == "layernorm":
        raise UsageError(
            "heads=copy with one LayerNorm over the queries, and keys, of all heads: unequal "
            "copies move its mean",
            Text("use ", Setting("method"), " heads=mask"),
        )


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
