"""The reference forward: what a logical model computes, in plain torch, on one page.

Verification compares two checkpoints through this function, so it must not depend on Megatron, and
it must run models larger than memory: matrices are asked for in parts, whole outputs at a time, and
nothing holds on to them. It applies masks as ``model/masks.py`` defines them. Shapes are written in
einops' notation: b batch, s and t positions, g groups, q query heads per group, d head_dim, h
hidden, f FFN units, v vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from typing import Protocol

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from flmgrow.model.config import ModelConfig


class Weights(Protocol):
    """Where the forward gets its weights from, in the dtype it shall compute in."""

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer, without the layer axis): a gain, or a bias."""

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table, with the shape of ``ids`` and the table's columns behind."""

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        """Yield a logical tensor (of one layer) as a matrix, in consecutive parts of its rows.

        The last ``inputs`` axes are its columns, the others its rows; all of them, or the first
        ``stop`` along the first axis.
        """


class Cache:
    """Keys and values of the positions that a model was given so far, layer by layer.

    Of a model with ``layers`` layers; one cache belongs to one batch of texts.
    """

    def __init__(self, layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def length(self) -> int:
        """The number of positions that all layers have."""
        last = self._layers[-1]
        return 0 if last is None else last[0].shape[-2]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values (b, g, s, d) behind those of a layer, and return all it has."""
        known = self._layers[layer]
        if known is not None:
            key, value = torch.cat((known[0], key), -2), torch.cat((known[1], value), -2)
        self._layers[layer] = key, value
        return key, value


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
    """Return the norm of ``x`` over its last axis, its statistics weighted by ``mask``."""
    weight = torch.ones_like(gain) if mask is None else mask
    if config.norm == "layernorm":
        x = x - (x * weight).sum(-1, keepdim=True) / weight.sum()
    square = (x * x * weight).sum(-1, keepdim=True) / weight.sum()
    y = x * torch.rsqrt(square + config.norm_eps) * gain
    y = y if bias is None else y + bias
    return y if mask is None else y * mask


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


def _frequencies(config: ModelConfig, size: int, like: Tensor) -> Tensor:
    """Angular frequencies of the rotated pairs, with Llama-3 scaling (context 8192, bands 1 and
    4), in the dtype and on the device of ``like``.
    """
    rotary = config.rotary
    exponent = _steps(like, 0, size, 2) / size  # one pair more for an odd size
    frequency = rotary.base**-exponent
    if rotary.scaling_factor is None:
        return frequency
    wavelength = 2 * pi / frequency
    smooth = ((8192 / wavelength - 1) / 3).clamp(0, 1)
    return frequency * (smooth + (1 - smooth) / rotary.scaling_factor)


def _steps(like: Tensor, start: int, stop: int, step: int = 1) -> Tensor:
    return torch.arange(start, stop, step, dtype=like.dtype, device=like.device)


def rotate(x: Tensor, config: ModelConfig, sign: int, first: int = 0) -> Tensor:
    """Apply rotary positions (and xPos: ``sign`` +1 for queries, -1 for keys) to ``x`` (..., s,
    d), whose positions begin at ``first``.
    """
    rotary = config.rotary
    size, rotated = rotary.size(x.shape[-1]), 2 * rotary.pairs(x.shape[-1])
    if config.positions not in ("rope", "xpos") or not rotated:
        return x
    positions = _steps(x, first, first + x.shape[-2])
    angle = torch.outer(positions / (rotary.interpolation or 1.0), _frequencies(config, size, x))
    cos, sin = angle.cos(), angle.sin()
    if config.positions == "xpos":
        zeta = (_steps(x, 0, size, 2) / size + 0.4) / 1.4
        power = sign * (positions - rotary.xpos_centre) / rotary.xpos_scale_base
        scale = zeta ** power[:, None]
        cos, sin = cos * scale, sin * scale
    turned, rest = x[..., :rotated], x[..., rotated:]
    pairs = "(pair two)" if rotary.interleaved else "(two pair)"
    first, second = rearrange(turned, f"... {pairs} -> two ... pair", two=2)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin))
    turned = rearrange(turned, f"two ... pair -> ... {pairs}")
    return torch.cat((turned, rest), -1)


def _project(
    x: Tensor, name: str, layer: int, weights: Weights, bias: bool, inputs: int = 1
) -> Tensor:
    """Return ``x`` (b, s, inputs) times a matrix, part by part of its outputs."""
    parts = weights.parts(name, layer, inputs)
    y = torch.cat([functional.linear(x, part) for part in parts], -1)
    return y + weights.tensor(f"{name}.bias", layer).flatten() if bias else y


def attention(
    x: Tensor,
    layer: int,
    config: ModelConfig,
    weights: Weights,
    head_mask: Tensor | None,
    cache: Cache | None = None,
) -> Tensor:
    """Return what causal attention adds to the residual stream; ``x`` is normalised, (b, s, h).

    With a ``cache``, the positions of ``x`` follow those in it, and are put there.
    """

    def project(name: str, pattern: str) -> Tensor:
        y = _project(x, name, layer, weights, config.qkv_bias)
        sizes = {"g": config.kv_groups, "d": config.head_dim}
        return rearrange(y, f"b s ({pattern} d) -> b {pattern} s d", **sizes)

    query, key, value = project("query", "g q"), project("key", "g"), project("value", "g")
    if config.qk_norm:
        query = _norm(query, "query_norm", layer, config, weights)
        key = _norm(key, "key_norm", layer, config, weights)
    first = 0 if cache is None else cache.length
    query, key = rotate(query, config, +1, first), rotate(key, config, -1, first)
    if cache is not None:
        key, value = cache.extend(layer, key, value)
    scores = einsum(query, key, "b g q s d, b g t d -> b g q s t")
    scores = scores * config.attention_factor(layer)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(first + 1)
    shares = scores.masked_fill(future, -torch.inf).softmax(-1)
    context = einsum(shares, value, "b g q s t, b g t d -> b g q s d")
    if head_mask is not None:
        context = context * head_mask[:, :, None, None]
    heads = rearrange(context, "b g q s d -> b s (g q d)")
    return _project(heads, "attention_out", layer, weights, config.linear_bias, inputs=3)


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
) -> Iterator[Tensor]:
    """Yield the residual stream (b, s, h) after the embedding and after each layer.

    Tokens are (b, s); with a ``cache`` they follow those that it was given before.
    """
    first = 0 if cache is None else cache.length
    x = weights.rows("embedding", tokens) * config.multipliers.embedding
    if config.positions == "learned":
        x = x + weights.rows(
            "position_embedding",
            torch.arange(first, first + tokens.shape[-1], device=tokens.device),
        )
    yield x
    for layer in range(config.layers):
        branch = 1.0 if masks.layers is None else masks.layers[layer]
        y = _norm(x, "attention_norm", layer, config, weights, masks.hidden)
        x = x + branch * attention(y, layer, config, weights, masks.heads, cache)
        y = _norm(x, "ffn_norm", layer, config, weights, masks.hidden)
        x = x + branch * ffn(y, layer, config, weights, masks.ffn)
        yield x


def head_name(config: ModelConfig) -> str:
    """Return which tensor holds the rows of the head."""
    return "embedding" if config.tied else "head"


def head_input(
    config: ModelConfig, weights: Weights, x: Tensor, masks: UnitMasks = NO_MASKS
) -> Tensor:
    """Return what rows of the head are multiplied with to give logits, from the last residual ``x``
    (b, s, h).
    """
    return _norm(x, "final_norm", None, config, weights, masks.hidden) * config.logit_factor


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
    config: ModelConfig,
    weights: Weights,
    tokens: Tensor,
    masks: UnitMasks = NO_MASKS,
    cache: Cache | None = None,
) -> Tensor:
    """Return the logits (b, s, v) of every true id for ``tokens`` (b, s)."""
    *_, last = residuals(config, weights, tokens, masks, cache)
    return torch.cat(list(logit_blocks(config, weights, last, config.vocab, masks)), -1)
