"""The reference forward: what a logical model computes, in plain torch, on one page.

Verification compares two checkpoints through this function, so it must not depend on Megatron, and
it must run models larger than memory: matrices are asked for in parts, whole outputs at a time, and
nothing holds on to them. It applies masks as ``model/masks.py`` defines them. Shapes are written in
einops' notation: b batch, s positions, h hidden, v vocabulary.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from flmgrow.model.branches import (
    NO_MASKS,
    Attend,
    ForwardPass,
    UnitMasks,
    Weights,
    attend,
    attention,
    capped,
    ffn,
    joined,
    norm,
)
from flmgrow.model.config import ModelConfig, RotarySettings
from flmgrow.model.places import Cache, Places, following, within
from flmgrow.model.turning import Turn, turning


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
    x = _embedded(weights.rows("embedding", tokens), config)
    if config.positions == "learned":
        x = x + weights.rows("position_embedding", places.positions)
    yield x
    turns = _turns(config, places, x.dtype)
    run = ForwardPass(places, _sees(config, places, cache), turns, cache, attending)
    for layer in range(config.layers):
        y = _read(x, "attention", layer, config, weights, masks)
        z = attention(y, layer, config, weights, masks.heads, run)
        after = x + _added(z, "attention", layer, config, weights, masks)
        if config.residual != "parallel_one_norm":
            stream = after if config.residual == "sequential" else x
            y = _read(stream, "ffn", layer, config, weights, masks)
        z = ffn(y, layer, config, weights, masks.ffn)
        x = after + _added(z, "ffn", layer, config, weights, masks)
        yield x


def _embedded(rows: Tensor, config: ModelConfig) -> Tensor:
    """Return rows of the embedding times its multiplier; sqrt(hidden) is rounded to their dtype, as
    in transformers' Gemma.
    """
    if config.multipliers.embedding_by_width:
        return rows * rows.new_tensor(config.embedding_factor)
    return _scaled(rows, config.embedding_factor)


def _read(
    x: Tensor, branch: str, layer: int, config: ModelConfig, weights: Weights, masks: UnitMasks
) -> Tensor:
    """Return what a branch reads of the residual stream ``x`` (b, s, h)."""
    if config.norms_before:
        return norm(x, f"{branch}_norm", layer, config, weights, masks.hidden)
    return x if masks.hidden is None else x * masks.hidden


def _added(
    y: Tensor, branch: str, layer: int, config: ModelConfig, weights: Weights, masks: UnitMasks
) -> Tensor:
    """Return what a branch adds to the residual stream, ``y`` (b, s, h) being its output."""
    if config.norms_after:
        y = norm(y, f"{branch}_post_norm", layer, config, weights, masks.hidden)
    factor: float | Tensor = config.multipliers.residual
    if masks.layers is not None:
        factor = factor * masks.layers[layer]
    return _scaled(y, factor)


def _turns(
    config: ModelConfig, places: Places, dtype: torch.dtype
) -> Mapping[RotarySettings | None, tuple[Turn | None, Turn | None]]:
    """Return how queries and keys turn, for each of the settings that layers have."""
    settings = {config.kind(layer).rotary for layer in range(config.layers)}
    return {
        own: (
            turning(config, places.positions, +1, dtype, own),
            turning(config, places.positions, -1, dtype, own),
        )
        for own in settings
    }


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
    """Return what rows of the head are multiplied with to give logits (before they are capped),
    from the last residual ``x`` (b, s, h).
    """
    y = norm(x, "final_norm", None, config, weights, masks.hidden)
    return _scaled(y, config.logit_factor)


def logit_blocks(
    config: ModelConfig, weights: Weights, x: Tensor, stop: int, masks: UnitMasks = NO_MASKS
) -> Iterator[Tensor]:
    """Yield the logits (b, s, v) of ids 0 to ``stop`` in blocks of the vocabulary, from the last
    residual.
    """
    y = head_input(config, weights, x, masks)
    for part in weights.parts(head_name(config), stop=stop):
        yield capped(functional.linear(y, part), config.logit_cap)


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
    return joined(list(logit_blocks(config, weights, x, config.vocab, masks)))
