"""The reference forward against another one, written with loops and complex numbers."""

from collections.abc import Callable
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
from flmgrow.model.branches import UnitMasks, normalise
from flmgrow.model.config import ModelConfig, Norm, Positions, RotarySettings
from flmgrow.model.forward import logits
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
    rotary = c.rotary
    size = int(len(vector) * rotary.percent)
    half = (size + 1) // 2
    result = vector.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if rotary.interleaved else (i, i + half)
        angle = position / (rotary.interpolation or 1) * rotary.base ** (-2 * i / size)
        value = complex(vector[a], vector[b]) * np.exp(1j * angle)
        if c.positions == "xpos":
            zeta = (2 * i / size + 0.4) / 1.4
            value *= zeta ** (sign * (position - rotary.xpos_centre) / rotary.xpos_scale_base)
        result[a], result[b] = value.real, value.imag
    return result


def naive_attention(
    ys: list[Array], layer: int, w: dict[str, Array], c: ModelConfig
) -> list[Array]:
    def project(name: str, y: Array, *head: int) -> Array:
        out = w[name][(layer, *head)] @ y
        return np.asarray(out + w[f"{name}.bias"][(layer, *head)] if c.qkv_bias else out)

    def turned(vector: Array, position: int, sign: int) -> Array:
        own = replace(c, rotary=kind.rotary or c.rotary, layer_kinds=())
        return naive_turn(vector, position, sign, own) if kind.rotates else vector

    def normed(vectors: list[Array], name: str) -> list[Array]:
        """The vectors of all heads, at one position, in a row."""
        if not c.qk_norm:
            return vectors
        gain = w[f"{name}.gain"][layer].reshape(-1, c.head_dim)
        bias = w.get(f"{name}.bias", np.zeros_like(w[f"{name}.gain"]))[layer].reshape(gain.shape)
        if c.qk_norm_of_all:
            parts = {"x.gain": gain.ravel(), "x.bias": bias.ravel()}
            return list(
                naive_norm(np.concatenate(vectors), parts, "x", None, c).reshape(gain.shape)
            )
        parts = {"x.gain": gain[0], "x.bias": bias[0]}
        return [naive_norm(vector, parts, "x", None, c) for vector in vectors]

    heads = [(g, q) for g in range(c.kv_groups) for q in range(c.queries_per_group)]
    queries = [normed([project("query", y, *head) for head in heads], "query_norm") for y in ys]
    keys_of = [normed([project("key", y, g) for g in range(c.kv_groups)], "key_norm") for y in ys]
    kind = c.kind(layer)
    outs = [np.zeros(c.hidden) for _ in ys]
    factor = c.multipliers.attention or 1 / np.sqrt(c.head_dim)
    if c.multipliers.attention_by_inverse_layer:
        factor /= layer + 1
    for group in range(c.kv_groups):
        keys, values = [], []
        for position, y in enumerate(ys):
            keys.append(turned(keys_of[position][group], position, -1))
            values.append(project("value", y, group))
        for head in range(c.queries_per_group):
            for position in range(len(ys)):
                query = queries[position][group * c.queries_per_group + head]
                query = turned(query, position, +1)
                first = max(0, position + 1 - (kind.window or len(ys)))
                seen = range(first, position + 1)
                scores = np.array([query @ keys[at] * factor for at in seen])
                if c.score_cap:
                    scores = c.score_cap * np.tanh(scores / c.score_cap)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                context = sum(s * values[at] for s, at in zip(shares, seen, strict=True))
                outs[position] += w["attention_out"][layer, :, group, head] @ context
    return [out + w["attention_out.bias"][layer] if c.attention_out_bias else out for out in outs]


def naive_ffn(y: Array, layer: int, w: dict[str, Array], c: ModelConfig) -> Array:
    def project(name: str, x: Array) -> Array:
        out: Array = w[name][layer] @ x
        return out + w[f"{name}.bias"][layer] if c.linear_bias else out

    def gelu(x: Array) -> Array:
        return np.array([u * (1 + erf(u / 2**0.5)) / 2 for u in x])

    def gelu_tanh(x: Array) -> Array:
        return np.asarray(x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))

    up = project("up", y)
    gate = project("gate", y) if c.gated else up
    units: dict[str, Callable[[], Array]] = {
        "swiglu": lambda: gate / (1 + np.exp(-gate)) * up,
        "geglu": lambda: gelu(gate) * up,
        "geglu_tanh": lambda: gelu_tanh(gate) * up,
        "squared_relu": lambda: np.maximum(up, 0) ** 2,
        "gelu": lambda: gelu(up),
        "gelu_tanh": lambda: gelu_tanh(up),
    }
    return project("down", units[c.activation]())


def naive_logits(c: ModelConfig, w: dict[str, Array], tokens: list[int]) -> Array:
    def read(x: Array, name: str) -> Array:
        return x if c.norm_places == "after" else naive_norm(x, w, name, layer, c)

    def added(y: Array, name: str) -> Array:
        y = y if c.norm_places == "before" else naive_norm(y, w, name, layer, c)
        return y * c.multipliers.residual

    scale = np.sqrt(c.hidden) if c.multipliers.embedding_by_width else 1.0
    xs = [w["embedding"][token] * c.multipliers.embedding * scale for token in tokens]
    if c.positions == "learned":
        xs = [x + w["position_embedding"][position] for position, x in enumerate(xs)]
    for layer in range(c.layers):
        ys = [read(x, "attention_norm") for x in xs]
        outs = naive_attention(ys, layer, w, c)
        before = xs
        xs = [x + added(out, "attention_post_norm") for x, out in zip(xs, outs, strict=True)]
        if c.residual == "sequential":
            ys = [read(x, "ffn_norm") for x in xs]
        elif c.residual == "parallel":
            ys = [read(x, "ffn_norm") for x in before]
        outs = [naive_ffn(y, layer, w, c) for y in ys]
        xs = [x + added(out, "ffn_post_norm") for x, out in zip(xs, outs, strict=True)]
    factor = c.multipliers.output / (c.hidden / (c.multipliers.mup_base_width or c.hidden))
    table = w["embedding" if c.tied else "head"]
    ys = [table @ naive_norm(x, w, "final_norm", None, c) * factor for x in xs]
    cap = c.logit_cap
    return np.array([y if cap is None else cap * np.tanh(y / cap) for y in ys])


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
