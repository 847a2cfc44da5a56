"""Rotary positions: the frequencies of a model's settings, and queries and keys turned by them.

Shapes are written in einops' notation: b batch, s positions, d head_dim. Half of the entries that
rotate are the first of a pair, (pairs,).
"""

from dataclasses import dataclass
from math import ceil, floor, log, pi

import torch
from einops import rearrange
from torch import Tensor

from flmgrow.model.config import ModelConfig
from flmgrow.model.rotary import RotarySettings, Yarn


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums of squares and for angles: 16 bits are too few for them."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Turn:
    """What rotates queries, or keys: ``cos`` and ``sin`` (s, pairs) or (b, s, pairs)."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


def turning(
    config: ModelConfig,
    positions: Tensor,
    sign: int,
    dtype: torch.dtype,
    rotary: RotarySettings | None = None,
) -> Turn | None:
    """Return the rotation that stands for ``positions`` (s,) or (b, s), None if none does.

    By the model's settings, unless a layer has a ``rotary`` of its own. With xPos, ``sign`` is +1
    for queries and -1 for keys.
    """
    rotary = rotary or config.rotary
    size = rotary.size(config.head_dim)
    if config.positions not in ("rope", "xpos") or not size:
        return None
    at = positions.to(wide(dtype))
    frequencies, attention = _frequencies(rotary, size, at)
    angle = (at / (rotary.interpolation or 1.0))[..., None] * frequencies
    cos, sin = angle.cos() * attention, angle.sin() * attention
    if config.positions == "xpos":
        zeta = (_exponents(size, at) + 0.4) / 1.4
        power = sign * (at - rotary.xpos_centre) / rotary.xpos_scale_base
        scale = zeta ** power[..., None]
        cos, sin = cos * scale, sin * scale
    return Turn(cos.to(dtype), sin.to(dtype), rotary.interleaved)


def _frequencies(rotary: RotarySettings, size: int, at: Tensor) -> tuple[Tensor, float]:
    """Return the angular frequencies (pairs,), in the dtype and on the device of positions ``at``,
    and what queries and keys are multiplied by.
    """
    frequency = rotary.base ** -_exponents(size, at)
    if rotary.scaling_factor is not None:
        turns = frequency * (rotary.scaling_context / (2 * pi))
        span = rotary.scaling_fast - rotary.scaling_slow
        quick = ((turns - rotary.scaling_slow) / span).clamp(0, 1)
        frequency = frequency * (quick + (1 - quick) / rotary.scaling_factor)
    if rotary.yarn is not None:
        quick = 1 - _ramp(rotary.yarn, rotary.base, size, at)
        return frequency * (quick + (1 - quick) / rotary.yarn.factor), rotary.yarn.attention
    if rotary.longrope is not None:
        is_long = bool(at.numel()) and int(at.max()) >= rotary.longrope.context
        factors = rotary.longrope.long if is_long else rotary.longrope.short
        return frequency / at.new_tensor(factors), rotary.longrope.attention
    return frequency, 1.0


def _ramp(yarn: Yarn, base: float, size: int, like: Tensor) -> Tensor:
    """Return how slow each pair is, (pairs,), between 0 and 1."""

    def pair_that_turns(times: float) -> float:
        return size * log(yarn.context / (times * 2 * pi)) / (2 * log(base))

    low, high = pair_that_turns(yarn.fast), pair_that_turns(yarn.slow)
    if yarn.truncated:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    pairs = torch.arange(-(-size // 2), dtype=like.dtype, device=like.device)
    return ((pairs - low) / (high - low or 0.001)).clamp(0, 1)


def _exponents(size: int, like: Tensor) -> Tensor:
    """Return the even numbers below ``size`` as fractions of it: one more for an odd size."""
    return torch.arange(0, size, 2, dtype=like.dtype, device=like.device) / size


def rotate(x: Tensor, turn: Turn | None) -> Tensor:
    """Return ``x``, (..., s, d) or (b, ..., s, d) for positions of each text, turned."""
    if turn is None:
        return x
    cos, sin = turn.cos, turn.sin
    if cos.dim() == 3:  # between texts and positions stand heads
        between = [1] * (x.dim() - 3)
        cos, sin = (each.reshape(len(each), *between, *each.shape[1:]) for each in (cos, sin))
    rotated = 2 * cos.shape[-1]
    turned, rest = x[..., :rotated], x[..., rotated:]
    pairs = "(pair two)" if turn.interleaved else "(two pair)"
    first, second = rearrange(turned, f"... {pairs} -> two ... pair", two=2)
    parts = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(parts, -1).flatten(-2) if turn.interleaved else torch.cat(parts, -1)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
