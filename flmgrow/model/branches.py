"""The branches of a layer, attention and FFN: what each computes from what it reads.

In plain torch, with shapes in einops' notation: b batch, s and t positions, g groups, q query heads
per group, d head_dim, h hidden, f FFN units.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from flmgrow.model.config import Activation, ModelConfig, RotarySettings
from flmgrow.model.places import Cache, Places
from flmgrow.model.turning import Turn, rotate, wide


class Weights(Protocol):
    """Where the forward gets its weights from, in the dtype it shall compute in."""

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer, without the layer axis), a gain or a bias, in its
        own shape.
        """

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table, with the shape of ``ids`` and the table's columns behind."""

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        """Yield a logical tensor (of one layer) as a matrix, in consecutive parts (rows, columns).

        The last ``inputs`` axes are its columns, the others its rows; all of them, or the first
        ``stop`` along the first axis.
        """


@dataclass(frozen=True)
class UnitMasks:
    """Multipliers of units, where the model has masks: (h,), (g, q), (f,) and (layers,)."""

    hidden: Tensor | None = None
    heads: Tensor | None = None
    ffn: Tensor | None = None
    layers: Tensor | None = None


NO_MASKS = UnitMasks()


def _squared_relu(x: Tensor) -> Tensor:
    return functional.relu(x).square()


_gelu_tanh = partial(functional.gelu, approximate="tanh")
_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "geglu_tanh": _gelu_tanh,
    "squared_relu": _squared_relu,
}
"""What the up projection goes through; with a gate, what the gate does."""


def normalise(
    x: Tensor, gain: Tensor, bias: Tensor | None, config: ModelConfig, mask: Tensor | None = None
) -> Tensor:
    """Return the norm of ``x`` (..., n) over its last axis, its statistics weighted by ``mask``.

    That, ``gain`` and ``bias`` are (n,).
    """
    z = x.to(wide(x.dtype))
    if config.norm == "layernorm":
        z = z - _mean(z, mask)
    y = (z * torch.rsqrt(_mean(z * z, mask) + config.norm_eps)).to(x.dtype) * gain
    y = y if bias is None else y + bias
    return y if mask is None else y * mask


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x.sum(-1, keepdim=True) / x.shape[-1]
    return (x * weight).sum(-1, keepdim=True) / weight.sum()


def norm(
    x: Tensor,
    name: str,
    layer: int | None,
    config: ModelConfig,
    weights: Weights,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the norm of ``x`` (..., n) over its last axis, which may be several of the gain's in a
    row.
    """
    bias = weights.tensor(f"{name}.bias", layer).flatten() if config.norm == "layernorm" else None
    return normalise(x, weights.tensor(f"{name}.gain", layer).flatten(), bias, config, mask)


def _project(
    x: Tensor, name: str, layer: int, weights: Weights, bias: bool, inputs: int = 1
) -> Tensor:
    """Return ``x`` (b, s, inputs) times a matrix, part by part of its outputs."""
    y = joined([functional.linear(x, part) for part in weights.parts(name, layer, inputs)])
    return y + weights.tensor(f"{name}.bias", layer).flatten() if bias else y


def joined(parts: list[Tensor]) -> Tensor:
    """Return parts (..., n) of one tensor in a row along their last axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Return ``x``, of any shape, so that it does not exceed ``cap``."""
    return x if cap is None else (x / cap).tanh() * cap


class Attend(Protocol):
    """How values are mixed by what queries and keys have in common."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        factor: float,
        sees: Tensor | None,
        cap: float | None = None,
    ) -> Tensor:
        """Return the context (b, g, q, s, d) of queries (b, g, q, s, d), of keys and values
        (b, g, t, d); scores are multiplied by ``factor`` and capped, and ``sees`` is that of
        ``Places``.
        """


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: float,
    sees: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Attend, step by step; the shapes are those of :class:`Attend`."""
    scores = einsum(query, key, "b g q s d, b g t d -> b g q s t") * factor
    scores = capped(scores, cap)
    if sees is None:
        known = scores.shape[-1] - scores.shape[-2]
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        hidden = hidden.triu(known + 1)
    else:
        hidden = ~sees if sees.dim() == 2 else ~sees[:, None, None]
    shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return einsum(shares, value, "b g q s t, b g t d -> b g q s d")


@dataclass(frozen=True)
class ForwardPass:
    """What all layers of a pass have in common: where tokens stand, and how they attend.

    ``sees`` is that of ``places``, for each window that layers have; ``turns`` are those of queries
    and of keys, for each of the settings that layers have of their own (None: the model's).
    """

    places: Places
    sees: Mapping[int | None, Tensor | None]
    turns: Mapping[RotarySettings | None, tuple[Turn | None, Turn | None]]
    cache: Cache | None
    attend: Attend


def attention(
    x: Tensor,
    layer: int,
    config: ModelConfig,
    weights: Weights,
    head_mask: Tensor | None,
    run: ForwardPass,
) -> Tensor:
    """Return what attention's output projection gives; ``x`` is what it reads, (b, s, h)."""

    def project(name: str, pattern: str) -> Tensor:
        y = _project(x, name, layer, weights, config.qkv_bias)
        if config.qk_norm_of_all and name != "value":
            mask = _entries(head_mask, pattern, config)
            y = norm(y, f"{name}_norm", layer, config, weights, mask)
        sizes = {"g": config.kv_groups, "d": config.head_dim}
        return rearrange(y, f"b s ({pattern} d) -> b {pattern} s d", **sizes)

    query, key, value = project("query", "g q"), project("key", "g"), project("value", "g")
    if config.qk_norm and not config.qk_norm_of_all:
        query = norm(query, "query_norm", layer, config, weights)
        key = norm(key, "key_norm", layer, config, weights)
    kind = config.kind(layer)
    if kind.rotates:
        query_turn, key_turn = run.turns[kind.rotary]
        query, key = rotate(query, query_turn), rotate(key, key_turn)
    if run.cache is not None:
        key, value = run.cache.extend(layer, key, value, run.places)
    factor, sees = config.attention_factor(layer), run.sees[kind.window]
    context = run.attend(query, key, value, factor, sees, config.score_cap)
    if head_mask is not None:
        context = context * head_mask[:, :, None, None]
    heads = rearrange(context, "b g q s d -> b s (g q d)")
    return _project(heads, "attention_out", layer, weights, config.attention_out_bias, inputs=3)


def _entries(head_mask: Tensor | None, pattern: str, config: ModelConfig) -> Tensor | None:
    """Return the mask of the heads (g, q) for each of the entries that queries, or keys, consist
    of: a key is fresh if its group is.
    """
    if head_mask is None:
        return None
    heads = head_mask.flatten() if pattern == "g q" else head_mask.amax(-1)
    return heads.repeat_interleave(config.head_dim)


def ffn(
    x: Tensor, layer: int, config: ModelConfig, weights: Weights, mask: Tensor | None
) -> Tensor:
    """Return what the FFN's down projection gives; ``x`` is what it reads, (b, s, h)."""
    up = _project(x, "up", layer, weights, config.linear_bias)
    activate = _ACTIVATIONS[config.activation]
    if config.gated:
        unit = activate(_project(x, "gate", layer, weights, config.linear_bias)) * up
    else:
        unit = activate(up)
    if mask is not None:
        unit = unit * mask
    return _project(unit, "down", layer, weights, config.linear_bias)
