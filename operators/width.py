"""Growing the hidden width: the axis that every norm measures.

Let the width go from d to D, ``x`` be the residual stream and ``y = norm(x) * gain + bias`` what
layers read.

**mask**: the norm's statistics are weighted by the mask and its output is multiplied by it. At
value 0 both are exactly those of the old channels, so fresh entries may hold anything.

**zero**: fresh channels of ``x`` are zero (fresh writers zero), so sums of squares stay and the
mean over D is the old one times d/D. Then ``x / sqrt(mean(x^2) d/D + eps d/D) * gain sqrt(d/D)`` is
the old output: gains take sqrt(d/D), eps takes d/D. LayerNorm also subtracts a mean, which must not
move: old writers are centred over the axis (invisible to a pre-norm model), so that the mean is
zero before and after. Readers of fresh channels are drawn: they see zeros now, and pass gradient to
the zero writers.

**copy**: D = q d + r. Every channel is there q times (statistics unchanged), readers take 1/q of
each copy plus noise that cancels over the copies; with tied embeddings the final norm carries the
1/q. The remaining r channels are made invisible: equal to the mean of the channels for LayerNorm
(normalised: exactly zero, and their norm bias is zero), zero for RMSNorm; then gains take
sqrt(qd/D) and eps takes qd/D (LEMON, Wang et al. 2023, average expansion). Copies are split
equally, as a norm's gradient mixes channels otherwise.

**Query and key norms** do not grow, but a model has one epsilon for all its norms. Where that takes
a factor f, what these norms are given (projections and their biases) takes sqrt(f), and
``q sqrt(f) / sqrt(mean(q^2) f + eps f)`` is the old ``q / sqrt(mean(q^2) + eps)``.

**Norms after branches** measure what a branch writes as those in front of it measure the residual
stream, and what they give is that stream's next part: all of the above holds for them, under
RMSNorm. A LayerNorm there adds a bias and so a mean, which no fresh channel can follow. Where
there is no norm in front of a branch, the mask is on what it reads.

**Embeddings multiplied by sqrt(width)** would grow with it: the table takes sqrt(d/D) instead.
Where it is the head, too, the final norm carries sqrt(D/d).
"""

from dataclasses import replace

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray
from flmgrow.model.axes import FRESH, Axis, AxisMap, Fill, Role, appended, identity
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.choices import Method, no_method
from flmgrow.operators.dimension import DimensionGrowth
from flmgrow.text import Setting, Text

NOISE = 0.1
"""Noise on the readers of copied channels, relative to a tensor's own standard deviation."""

_WRITERS = (Role.WRITES, Role.EMBEDS)


def grow_width(
    config: ModelConfig, new: int, method: Method, noise: float = NOISE
) -> DimensionGrowth:
    """Return how the hidden axis grows to ``new`` by ``method`` (mask, zero or copy).

    ``noise`` is what tells copies apart: noise on their readers, relative to a tensor's own spread;
    without it they stay equal for ever.

    Raises:
        UsageError: Where the method cannot keep the function.
    """
    old = config.hidden
    if method is Method.COPY:
        return _copy(config, old, new, noise)
    if method is Method.ZERO:
        return _zero(config, old, new)
    if method is Method.MASK:
        return _mask(config, old, new)
    raise no_method(Dimension.WIDTH, method)


def _embedding_scale(config: ModelConfig, new: int) -> dict[Role, FloatArray]:
    """Return what undoes that the multiplier of embeddings grows with the width."""
    if not config.multipliers.embedding_by_width:
        return {}
    ratio = np.sqrt(config.hidden / new)
    return {Role.EMBEDS: np.full(new, ratio), Role.CARRIES: np.full(new, 1 / ratio)}


def _refuse_a_mean_after_branches(config: ModelConfig, method: Method, ways: str) -> None:
    if config.norm == "layernorm" and config.norms_after:
        raise UsageError(
            f"width={method} with LayerNorm behind branches: its bias gives the residual stream a "
            "mean, which moves with the width",
            Text("use ", Setting("method"), f" {ways}"),
        )


def _mask(config: ModelConfig, old: int, new: int) -> DimensionGrowth:
    fresh = np.arange(old, new, dtype=np.int64)
    return DimensionGrowth(
        {Axis.HIDDEN: AxisMap(old, appended(old, new), _embedding_scale(config, new))},
        Mask(Dimension.WIDTH, {Axis.HIDDEN: fresh}),
    )


def _zero(config: ModelConfig, old: int, new: int) -> DimensionGrowth:
    if config.norm == "layernorm" and config.tied:
        raise UsageError(
            "width=zero with LayerNorm and tied embeddings: centring the shared table would change "
            "the logits",
            Text(
                "use ",
                Setting("method"),
                " width=mask or width=copy, or write a separate head with ",
                Setting("untie", True),
            ),
        )
    _refuse_a_mean_after_branches(config, Method.ZERO, "width=mask or width=copy")
    scale = {Role.GAINS: np.full(new, np.sqrt(old / new)), **_embedding_scale(config, new)}
    fill = dict.fromkeys(_WRITERS, Fill.ZERO)
    centre = config.norm == "layernorm"
    axis_map = AxisMap(old, appended(old, new), scale, fill, centre=centre)
    return _with_epsilon(config, axis_map, old / new)


def _copy(config: ModelConfig, old: int, new: int, noise: float) -> DimensionGrowth:
    times, rest = divmod(new, old)
    source = np.arange(new, dtype=np.int64) % old
    source[times * old :] = FRESH
    share = np.full(new, 1.0 / times)
    scale = {Role.CARRIES: share, **_embedding_scale(config, new), Role.READS: share}
    if config.multipliers.embedding_by_width:
        scale[Role.CARRIES] = scale[Role.CARRIES] * share
    noise = noise if times > 1 else 0.0
    if not rest:
        return DimensionGrowth({Axis.HIDDEN: AxisMap(old, source, scale, noise=noise)})
    _refuse_a_mean_after_branches(config, Method.COPY, f"width=mask, or a multiple of {old}")
    ratio = times * old / new
    scale[Role.GAINS] = np.full(new, np.sqrt(ratio))
    fill = dict.fromkeys(_WRITERS, Fill.MEAN if config.norm == "layernorm" else Fill.ZERO)
    axis_map = AxisMap(old, source, scale, fill, noise=noise)
    return _with_epsilon(config, axis_map, ratio)


def _with_epsilon(config: ModelConfig, hidden: AxisMap, factor: float) -> DimensionGrowth:
    """Norms that do not grow keep the epsilon they have, relative to what they are given."""
    maps = {Axis.HIDDEN: hidden}
    if config.qk_norm:
        scale = {Role.NORMED: np.full(config.head_dim, np.sqrt(factor))}
        maps[Axis.HEAD_DIM] = replace(identity(config.head_dim), scale=scale)
    return DimensionGrowth(maps, eps_factor=factor)
