"""How Adam's moments grow: by the dual factor of what the weights take.

The function stays, so the gradient of the grown model follows from that of the old one by the chain
rule. Let a growth multiply, for the index j of an axis, readers by a_j (and what carries for a
reader that cannot be scaled). Then what reaches the writers, gains and norm biases of index j
through those readers is a_j times what it was, while a reader sees the same activations and the
same gradient from above: its own gradient stays. What carries a_j sees the old gradient of its
product, so its gradient is 1/a_j; the same holds for a gain that was multiplied by g, and for
scores multiplied by s. In one table:

    ============================  =========================================================
    weights take                  gradients take
    ============================  =========================================================
    a_j on readers (and carriers) a_j on writers, gains, norm biases; 1/a_j on carriers
    g on gains                    1/g on gains
    s on scores                   1/s on scores
    s on what is normed           1/s on the same: the norm does not see s
    s on embeddings               1/s on the same: their multiplier took 1/s
    c baked onto a masked unit    1/c on the same
    (anything) on fresh entries   nothing
    ============================  =========================================================

``exp_avg`` takes the factor once, ``exp_avg_sq`` squared, fresh entries and copied layers start at
zero. With asymmetric moments, so do all copies but the first: copies that differ in their moments
part by themselves (SPARKLING).

An ``exp_avg_sq`` of zero beside the step count of a long run makes the first updates of fresh
entries too large. Asked for the mean, ``exp_avg_sq`` (and it alone) starts elsewhere:

- Where there is something old behind an entry, it has that one's: a copied layer, or a drawn one,
  that of the old layer it is put behind, copies without moments that of what they are copies of.
- Any other entry has the mean over the axes it is fresh on, at its other indices: a fresh column
  of a matrix the mean of each row, a fresh row of a table the mean of each column (over the true
  vocabulary), an entry that is fresh on several axes the mean over all of these together.
- Behind a closed gate nothing is known of the gradient, and the factor is 1 instead of 0.
- All other factors apply, so that it is the mean of the grown entries beside it.

The rule is exact but for three things. Noise on the readers of copied channels (``width=copy``)
adds its own share to each copy's gradient. Under LayerNorm a zero or averaged width lets the
readers of fresh channels shift the old channels' gradient, as the norm's backward subtracts a mean
over all of them. And a tied table's moments are sums over both its uses: untied, head and embedding
keep the sum. ``docs/concepts/optimizer-state.md`` has the errors, and what AdamW's settings would
have to follow for a grown run to keep to the small one's trajectory.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from flmgrow.model.arrays import FloatArray
from flmgrow.model.axes import FRESH, Axis, AxisMap, Fill, Role
from flmgrow.operators.choices import Moments
from flmgrow.operators.growth import Growth


def _gate_factors(gate: Mapping[Role, FloatArray], closed: float) -> dict[Role, FloatArray]:
    """Return the gradients' factors for a gate; where it is closed, ``closed``."""
    return {
        role: np.divide(1.0, g, out=np.full_like(g, closed), where=g != 0)
        for role, g in gate.items()
    }


def _gradient_factors(scale: Mapping[Role, FloatArray]) -> dict[Role, FloatArray]:
    """Return the gradients' factors for the weights' factors of one axis."""
    factors: dict[Role, FloatArray] = {}
    if Role.READS in scale:
        share = scale[Role.READS]
        factors = dict.fromkeys((Role.WRITES, Role.GAINS, Role.NORM_BIAS), share)
    if Role.CARRIES in scale:
        factors[Role.CARRIES] = 1.0 / scale[Role.CARRIES]
    if Role.GAINS in scale:
        factors[Role.GAINS] = factors.get(Role.GAINS, 1.0) / scale[Role.GAINS]
    for role in (Role.SCORES, Role.NORMED, Role.EMBEDS):
        if role in scale:
            factors[role] = 1.0 / scale[role]
    return factors


def _without_repeats(axis_map: AxisMap) -> AxisMap:
    """Make every repeated source fresh: only the first copy keeps moments."""
    return replace(axis_map, source=np.where(axis_map.copy_number > 0, FRESH, axis_map.source))


def _with_donors(axis_map: AxisMap) -> AxisMap:
    """Let fresh entries that borrow from an old one come from it."""
    fresh = axis_map.source == FRESH
    return replace(axis_map, source=np.where(fresh, axis_map.donors, axis_map.source))


def moment_growth(growth: Growth, power: int) -> Growth:
    """Return the growth of a moment made of gradients to the ``power`` (1 for exp_avg, 2 for
    exp_avg_sq).
    """
    fill = Fill(growth.fresh_second_moment) if power == 2 else Fill.ZERO
    known = fill is Fill.MEAN
    lone = growth.moments is Moments.ASYMMETRIC
    maps = {}
    for axis, axis_map in growth.maps.items():
        scale = {role: f**power for role, f in _gradient_factors(axis_map.scale).items()}
        gate = _gate_factors(axis_map.gate, closed=1.0 if known else 0.0)
        moved = _without_repeats(axis_map) if lone or axis is Axis.LAYER else axis_map
        maps[axis] = replace(
            _with_donors(axis_map) if known else moved,
            scale=scale,
            gate={role: f**power for role, f in gate.items()},
            fill=dict.fromkeys(Role, fill),
            centre=False,
            noise=0.0,
        )
    return replace(growth, maps=maps)
