"""The reference forward: what a logical model computes, in plain torch, on one page.

Verification compares two checkpoints through this function, so it must not depend on Megatron, and
it must run models larger than memory: matrices are asked for in parts, whole outputs at a time, and
nothing holds on to them. It applies masks as ``model/masks.py`` defines them. Shapes are written in
einops' notation: b batch, s and t positions, g groups, q query heads per group, d head_dim, h
hidden, f FFN units, v vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from flmgrow.model.config import ModelConfig
from flmgrow.model.places import Cache, Places, following, within
from flmgrow.model.turning import Turn, rotate, turning, wide


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


def _norm(
    x: Tensor,
    name: str,
    layer: int | None,
    config: ModelConfig,
    weights: Weights,
    mask: Tensor | None = None,
) -> Tensor:
    bias = weights.tensor(f"{name}.bias", layer) if config.norm == "layernorm" else None
    return normalise(x, weights.tensor(f"{name}.gain", layer), bias, config, mask)


def _project(
    x: Tensor, name: str, layer: int, weights: Weights, bias: bool, inputs: int = 1
) -> Tensor:
    """Return ``x`` (b, s, inputs) times a matrix, part by part of its outputs."""
    y = _joined([functional.linear(x, part) for part in weights.parts(name, layer, inputs)])
    return y + weights.tensor(f"{name}.bias", layer).flatten() if bias else y


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Attend(Protocol):
    """How values are mixed by what queries and keys have in common."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, factor: float, sees: Tensor | None
    ) -> Tensor:
        """Return the context (b, g, q, s, d) of queries (b, g, q, s, d), of keys and values
        (b, g, t, d); scores are multiplied by ``factor``, and ``sees`` is that of ``Places``.
        """


def attend(query: Tensor, key: Tensor, value: Tensor, factor: float, sees: Tensor | None) -> Tensor:
    """Attend, step by step; the shapes are those of :class:`Attend`."""
    scores = einsum(query, key, "b g q s d, b g t d -> b g q s t") * factor
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

    ``sees`` is that of ``places``, for each window that layers have.
    """

    places: Places
    sees: Mapping[int | None, Tensor | None]
    query_turn: Turn | None
    key_turn: Turn | None
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
    """Return what attention adds to the residual stream; ``x`` is normalised, (b, s, h)."""

    def project(name: str, pattern: str) -> Tensor:
        y = _project(x, name, layer, weights, config.qkv_bias)
        sizes = {"g": config.kv_groups, "d": config.head_dim}
        return rearrange(y, f"b s ({pattern} d) -> b {pattern} s d", **sizes)

    query, key, value = project("query", "g q"), project("key", "g"), project("value", "g")
    if config.qk_norm:
        query = _norm(query, "query_norm", layer, config, weights)
        key = _norm(key, "key_norm", layer, config, weights)
    kind = config.kind(layer)
    if kind.rotates:
        query, key = rotate(query, run.query_turn), rotate(key, run.key_turn)
    if run.cache is not None:
        key, value = run.cache.extend(layer, key, value, run.places)
    context = run.attend(query, key, value, config.attention_factor(layer), run.sees[kind.window])
    if head_mask is not None:
        context = context * head_mask[:, :, None, None]
    heads = rearrange(context, "b g q s d -> b s (g q d)")
    return _project(heads, "attention_out", layer, weights, config.attention_out_bias, inputs=3)


def ffn(
    x: Tensor, layer: int, config: ModelConfig, weights: Weights, mask: Tensor | None
) -> Tensor:
    """Return what the FFN adds to the residual stream; ``x`` is normalised, (b, s, h)."""

    up = _project(x, "up", layer, weights, config.linear_bias)
    if config.activation == "swiglu":
        gate = _project(x, "gate", layer, weights, config.linear_bias)
        unit = functional.silu(gate) * up
    elif config.activation == "squared_relu":
        unit = functional.relu(up).square()
    else:
        unit = functional.gelu(
            up, approximate="tanh" if config.activation == "gelu_tanh" else "none"
        )
    if mask is not None:
        unit = unit * mask
    return _project(unit, "down", layer, weights, config.linear_bias)


def residuals(
    config: ModelConfig,
    weights: Weights,
    tokens: Tensor,
    masks: UnitMasks = NO_MASKS,
    cache: Cache | None = None,
    places: Places | None = None,
    attending: Attend = attend,
) -> Iterator[Tensor]:
    """Yield the residual stream (b, s, h) after the embedding and after each layer.

    Tokens are (b, s); with a ``cache`` they follow those that it was given before, unless
    ``places`` says where they stand.
    """
    if places is None:
        places = following(tokens, 0 if cache is None else cache.length)
    x = _scaled(weights.rows("embedding", tokens), config.multipliers.embedding)
    if config.positions == "learned":
        x = x + weights.rows("position_embedding", places.positions)
    yield x
    query_turn, key_turn = (turning(config, places.positions, sign, x.dtype) for sign in (+1, -1))
    run = ForwardPass(places, _sees(config, places, cache), query_turn, key_turn, cache, attending)
    for layer in range(config.layers):
        branch: float | Tensor = config.multipliers.residual
        if masks.layers is not None:
            branch = branch * masks.layers[layer]
        y = _norm(x, "attention_norm", layer, config, weights, masks.hidden)
        after = x + _scaled(attention(y, layer, config, weights, masks.heads, run), branch)
        if config.residual != "parallel_one_norm":
            read = after if config.residual == "sequential" else x
            y = _norm(read, "ffn_norm", layer, config, weights, masks.hidden)
        x = after + _scaled(ffn(y, layer, config, weights, masks.ffn), branch)
        yield x


def _sees(
    config: ModelConfig, places: Places, cache: Cache | None
) -> Mapping[int | None, Tensor | None]:
    """Return what each token sees, for each window there is."""
    windows = {kind.window for kind in config.layer_kinds} - {None}
    if not windows:
        return {None: places.sees}
    keys = places.positions if cache is None else cache.place(places)
    return {None: places.sees, **{w: within(w, places, keys) for w in windows if w is not None}}


def _scaled(x: Tensor, factor: Tensor | float) -> Tensor:
    return x if isinstance(factor, float) and factor == 1.0 else x * factor


def head_name(config: ModelConfig) -> str:
    """Return which tensor holds the rows of the head."""
    return "embedding" if config.tied else "head"


def head_input(
    config: ModelConfig, weights: Weights, x: Tensor, masks: UnitMasks = NO_MASKS
) -> Tensor:
    """Return what rows of the head are multiplied with to give logits, from the last residual ``x``
    (b, s, h).
    """
    y = _norm(x, "final_norm", None, config, weights, masks.hidden)
    return _scaled(y, config.logit_factor)


def logit_blocks(
    config: ModelConfig, weights: Weights, x: Tensor, stop: int, masks: UnitMasks = NO_MASKS
) -> Iterator[Tensor]:
    """Yield the logits (b, s, v) of ids 0 to ``stop`` in blocks of the vocabulary, from the last
    residual.
    """
    y = head_input(config, weights, x, masks)
    for part in weights.parts(head_name(config), stop=stop):
        yield functional.linear(y, part)


def logits(
    config: ModelConfig, weights: Weights, tokens: Tensor, masks: UnitMasks = NO_MASKS
) -> Tensor:
    """Return the logits (b, s, v) of every true id for ``tokens`` (b, s)."""
    *_, last = residuals(config, weights, tokens, masks)
    return head_logits(config, weights, last, masks)


def head_logits(
    config: ModelConfig, weights: Weights, x: Tensor, masks: UnitMasks = NO_MASKS
) -> Tensor:
    """Return the logits (b, s, v) of every true id, from the last residual ``x`` (b, s, h)."""
    return _joined(list(logit_blocks(config, weights, x, config.vocab, masks)))
