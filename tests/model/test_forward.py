"""The reference forward against another one, written with loops and complex numbers."""

from dataclasses import replace
from math import erf

import numpy as np
import pytest
import torch
from growing import tokens_for
from hypothesis import given
from pico import CONFIGS, DictWeights, logical_weights
from strategies import any_config, decoders, examples

from flmgrow.model.arrays import Array
from flmgrow.model.config import ModelConfig, Norm, Positions, RotarySettings
from flmgrow.model.forward import UnitMasks, logits, normalise
from flmgrow.model.turning import rotate, turning


def naive_norm(
    x: Array, weights: dict[str, Array], name: str, at: int | None, c: ModelConfig
) -> Array:
    gain = weights[f"{name}.gain"] if at is None else weights[f"{name}.gain"][at]
    if c.norm == "rmsnorm":
        return np.asarray(x / np.sqrt((x**2).mean() + c.norm_eps) * gain)
    bias = weights[f"{name}.bias"] if at is None else weights[f"{name}.bias"][at]
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + c.norm_eps) * gain + bias)


def naive_turn(vector: Array, position: int, sign: int, c: ModelConfig) -> Array:
    """Pairs are complex numbers; a position turns and (for xPos) stretches them."""
    if c.positions not in ("rope", "xpos"):
        return vector
    size = int(len(vector) * c.rotary.percent)
    half = (size + 1) // 2
    result = vector.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if c.rotary.interleaved else (i, i + half)
        angle = position / (c.rotary.interpolation or 1) * c.rotary.base ** (-2 * i / size)
        value = complex(vector[a], vector[b]) * np.exp(1j * angle)
        if c.positions == "xpos":
            zeta = (2 * i / size + 0.4) / 1.4
            value *= zeta ** (sign * (position - c.rotary.xpos_centre) / c.rotary.xpos_scale_base)
        result[a], result[b] = value.real, value.imag
    return result


def naive_attention(
    ys: list[Array], layer: int, w: dict[str, Array], c: ModelConfig
) -> list[Array]:
    def project(name: str, y: Array, *head: int) -> Array:
        out = w[name][(layer, *head)] @ y
        return np.asarray(out + w[f"{name}.bias"][(layer, *head)] if c.qkv_bias else out)

    def turned(vector: Array, position: int, sign: int) -> Array:
        return naive_turn(vector, position, sign, c) if kind.rotates else vector

    kind = c.kind(layer)
    outs = [np.zeros(c.hidden) for _ in ys]
    factor = c.multipliers.attention or 1 / np.sqrt(c.head_dim)
    if c.multipliers.attention_by_inverse_layer:
        factor /= layer + 1
    for group in range(c.kv_groups):
        keys, values = [], []
        for position, y in enumerate(ys):
            key = project("key", y, group)
            if c.qk_norm:
                key = naive_norm(key, w, "key_norm", layer, c)
            keys.append(turned(key, position, -1))
            values.append(project("value", y, group))
        for head in range(c.queries_per_group):
            for position, y in enumerate(ys):
                query = project("query", y, group, head)
                if c.qk_norm:
                    query = naive_norm(query, w, "query_norm", layer, c)
                query = turned(query, position, +1)
                first = max(0, position + 1 - (kind.window or len(ys)))
                seen = range(first, position + 1)
                scores = np.array([query @ keys[at] * factor for at in seen])
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                context = sum(s * values[at] for s, at in zip(shares, seen, strict=True))
                outs[position] += w["attention_out"][layer, :, group, head] @ context
    return [out + w["attention_out.bias"][layer] if c.attention_out_bias else out for out in outs]


def naive_ffn(y: Array, layer: int, w: dict[str, Array], c: ModelConfig) -> Array:
    def project(name: str, x: Array) -> Array:
        out: Array = w[name][layer] @ x
        return out + w[f"{name}.bias"][layer] if c.linear_bias else out

    up = project("up", y)
    if c.activation == "swiglu":
        gate = project("gate", y)
        unit = gate / (1 + np.exp(-gate)) * up
    elif c.activation == "squared_relu":
        unit = np.maximum(up, 0) ** 2
    elif c.activation == "gelu":
        unit = np.array([u * (1 + erf(u / 2**0.5)) / 2 for u in up])
    else:
        unit = up / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (up + 0.044715 * up**3)))
    return project("down", unit)


def naive_logits(c: ModelConfig, w: dict[str, Array], tokens: list[int]) -> Array:
    xs = [w["embedding"][token] * c.multipliers.embedding for token in tokens]
    if c.positions == "learned":
        xs = [x + w["position_embedding"][position] for position, x in enumerate(xs)]
    for layer in range(c.layers):
        ys = [naive_norm(x, w, "attention_norm", layer, c) for x in xs]
        outs = naive_attention(ys, layer, w, c)
        share = c.multipliers.residual
        before = xs
        xs = [x + share * out for x, out in zip(xs, outs, strict=True)]
        if c.residual == "sequential":
            ys = [naive_norm(x, w, "ffn_norm", layer, c) for x in xs]
        elif c.residual == "parallel":
            ys = [naive_norm(x, w, "ffn_norm", layer, c) for x in before]
        xs = [x + share * naive_ffn(y, layer, w, c) for x, y in zip(xs, ys, strict=True)]
    factor = c.multipliers.output / (c.hidden / (c.multipliers.mup_base_width or c.hidden))
    table = w["embedding" if c.tied else "head"]
    return np.array([table @ naive_norm(x, w, "final_norm", None, c) * factor for x in xs])


@examples(60)
@given(any_config() | decoders())
def test_agrees_with_loops(config: ModelConfig) -> None:
    if config.rotary.scaling_factor is not None:
        config = replace(config, rotary=replace(config.rotary, scaling_factor=None))
    weights = logical_weights(config)
    tokens = tokens_for(config.vocab, 7)
    for row, got in zip(tokens, logits(config, DictWeights(weights), tokens), strict=True):
        assert np.abs(naive_logits(config, weights, row.tolist()) - got.numpy()).max() < 1e-12


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", ["rope", "xpos"])
def test_scores_depend_on_the_distance_of_positions_alone(
    positions: Positions, interleaved: bool
) -> None:
    settings = RotarySettings(interleaved=interleaved, xpos_scale_base=8.0, xpos_centre=5)
    config = replace(CONFIGS["flm"], positions=positions, rotary=settings, head_dim=8)
    query, key = (torch.randn(8, dtype=torch.float64).expand(12, 8) for _ in range(2))
    turns = [turning(config, torch.arange(12), sign, torch.float64) for sign in (+1, -1)]
    scores = rotate(query, turns[0]) @ rotate(key, turns[1]).T
    for distance in range(12):
        diagonal = scores.diagonal(-distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-12
    assert (scores[:, 0] - scores[0, 0]).abs().max() > 1e-2


def test_llama_scaling_slows_long_waves_and_keeps_short_ones() -> None:
    config = replace(
        CONFIGS["llama"], rotary=RotarySettings(base=500000.0, scaling_factor=8.0), head_dim=64
    )
    plain = replace(config, rotary=RotarySettings(base=500000.0))
    x = torch.zeros(2, 64, dtype=torch.float64)
    x[:, :32] = 1.0
    turns = [turning(c, torch.arange(2), 1, torch.float64) for c in (config, plain)]
    scaled, unscaled = (rotate(x, turn)[1, 32:].asin() for turn in turns)
    ratio = unscaled / scaled
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(8)
    assert (ratio.diff() > -1e-9).all()


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_a_mask_weighs_the_statistics_of_a_norm(norm: Norm) -> None:
    config = replace(CONFIGS["gpt"], norm=norm)
    x, gain = torch.randn(2, 3, 9, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    mask = torch.tensor([1.0] * 6 + [0.0] * 3, dtype=torch.float64)
    part = normalise(x[..., :6], gain[:6], None, config)
    whole = normalise(x, gain, None, config, mask)
    assert (whole[..., :6] - part).abs().max() < 1e-14
    assert not whole[..., 6:].any()
    full = normalise(x, gain, None, config, torch.ones(9, dtype=torch.float64))
    assert torch.equal(full, normalise(x, gain, None, config))


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_of_one_change_nothing(name: str) -> None:
    config = CONFIGS[name]
    ones = {"dtype": torch.float64}
    masks = UnitMasks(
        torch.ones(config.hidden, **ones),  # type: ignore[call-overload]
        torch.ones(config.kv_groups, config.queries_per_group, **ones),  # type: ignore[call-overload]
        torch.ones(config.ffn, **ones),  # type: ignore[call-overload]
        torch.ones(config.layers, **ones),  # type: ignore[call-overload]
    )
    weights, tokens = DictWeights(logical_weights(config)), tokens_for(config.vocab)
    assert torch.equal(logits(config, weights, tokens, masks), logits(config, weights, tokens))


@pytest.mark.parametrize("name", ["llama", "flm"])
def test_a_later_token_does_not_change_an_earlier_logit(name: str) -> None:
    config = CONFIGS[name]
    weights, tokens = DictWeights(logical_weights(config)), tokens_for(config.vocab)
    other = tokens.clone()
    other[:, -1] += 1 - 2 * (other[:, -1] > 0).long()
    a, b = logits(config, weights, tokens), logits(config, weights, other)
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert not torch.equal(a[:, -1], b[:, -1])
