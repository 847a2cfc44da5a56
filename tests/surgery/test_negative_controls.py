"""Growths that look right and are not must show: a test that cannot fail proves nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import carry_out, checkpoint_logits, tokens_for
from pico import CONFIGS, DictWeights, logical_weights, make_checkpoint

from flmgrow.model.axes import Axis, AxisMap, Fill, Role, appended
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow, parse_methods

WRONG = 1e-3
"""Ten million times what an exact growth may differ by."""


def growth_of(config: ModelConfig, methods: str, **sizes: int) -> Growth:
    return grow(config, Target(methods=parse_methods(methods), **sizes), 56, 56)  # type: ignore[arg-type]


def with_hidden(growth: Growth, **changes: object) -> Growth:
    hidden = replace(growth.maps[Axis.HIDDEN], **changes)  # type: ignore[arg-type]
    return replace(growth, maps={**growth.maps, Axis.HIDDEN: hidden})


def distance(config: ModelConfig, growth: Growth, folder: Path) -> float:
    source = make_checkpoint(folder / "a", config)
    tokens = tokens_for(config.vocab)
    new = checkpoint_logits(carry_out(source, folder / "b", growth), tokens)
    old = logits(config, DictWeights(logical_weights(config)), tokens)
    return float((old - new).abs().max())


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_naive_zero_padding(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    growth = growth_of(config, "width=mask", hidden=20)
    padded = AxisMap(12, appended(12, 20), fill=dict.fromkeys(Role, Fill.ZERO))
    naive = replace(growth, maps={**growth.maps, Axis.HIDDEN: padded}, masks={})
    assert distance(config, naive, tmp_path) > WRONG


@pytest.mark.parametrize("method", ["zero", "copy"])
@pytest.mark.parametrize("name", ["tele", "gpt"])
def test_epsilon_left_alone(name: str, method: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    growth = growth_of(config, f"width={method}", hidden=20)
    stale = replace(growth, new=replace(growth.new, norm_eps=config.norm_eps))
    assert distance(config, stale, tmp_path) > WRONG


def test_layernorm_without_centring(tmp_path: Path) -> None:
    config = CONFIGS["gpt"]
    growth = growth_of(config, "width=zero", hidden=20)
    assert distance(config, with_hidden(growth, centre=False), tmp_path) > WRONG


def test_layernorm_with_channels_of_zero_instead_of_the_mean(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    growth = growth_of(config, "width=copy", hidden=20)
    assert distance(config, with_hidden(growth, fill={Role.WRITES: Fill.ZERO}), tmp_path) > WRONG


def test_copied_channels_read_in_full(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    growth = growth_of(config, "width=copy", hidden=24)
    in_full = with_hidden(growth, scale={Role.READS: np.ones(24)})
    assert distance(config, in_full, tmp_path) > WRONG


def test_tied_head_that_nothing_carries(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    growth = growth_of(config, "width=copy", hidden=24)
    scale = {**growth.maps[Axis.HIDDEN].scale}
    del scale[Role.CARRIES]
    assert distance(config, with_hidden(growth, scale=scale), tmp_path) > WRONG


@pytest.mark.parametrize("method", ["stack", "interleave"])
def test_repeated_layers(method: str, tmp_path: Path) -> None:
    growth = growth_of(CONFIGS["llama"], f"depth={method}", layers=8)
    assert not growth.preserves
    assert distance(CONFIGS["llama"], growth, tmp_path) > WRONG


def test_output_multiplier_recomputed(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    growth = growth_of(config, "width=mask", hidden=20)
    fresh = replace(growth.new, multipliers=config.multipliers)
    assert distance(config, replace(growth, new=fresh), tmp_path) > WRONG


def test_moved_layers_with_scores_of_their_new_place(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    target = Target(layers=8, methods=parse_methods("zero"), depth_placement="interleave")
    growth = grow(config, target, 56, 56)
    layers = growth.maps[Axis.LAYER]
    scale = dict(layers.scale)
    del scale[Role.SCORES]
    maps = {**growth.maps, Axis.LAYER: replace(layers, scale=scale)}
    assert distance(config, replace(growth, maps=maps), tmp_path) > WRONG


@pytest.mark.parametrize("size", ["hidden", "heads", "ffn", "layers"])
def test_masks_forgotten(size: str, tmp_path: Path) -> None:
    """A mask lives in the manifest, which this growth is carried out without."""
    config = CONFIGS["llama"]
    growth = growth_of(config, "mask", **{size: 24})
    assert growth.masks
    assert distance(config, replace(growth, masks={}), tmp_path) > WRONG


def test_query_heads_appended_at_fixed_groups() -> None:
    """Four groups of two heads become groups of three: old heads would read other keys."""
    config = CONFIGS["llama"]
    weights = logical_weights(config)
    layers, hidden, dim = config.layers, config.hidden, config.head_dim
    query = weights["query"].reshape(layers, 8, dim, hidden)
    out = weights["attention_out"].reshape(layers, hidden, 8, dim)
    fresh = np.random.default_rng(0).standard_normal((layers, 4, dim, hidden))
    zeros = np.zeros((layers, hidden, 4, dim))
    appended_heads = {
        **weights,
        "query": np.concatenate((query, fresh), 1).reshape(layers, 4, 3, dim, hidden),
        "attention_out": np.concatenate((out, zeros), 2).reshape(layers, hidden, 4, 3, dim),
    }
    tokens = tokens_for(config.vocab)
    old = logits(config, DictWeights(weights), tokens)
    new = logits(replace(config, queries_per_group=3), DictWeights(appended_heads), tokens)
    assert (old - new).abs().max() > WRONG


@pytest.mark.parametrize(
    ("name", "change"),
    [("gate and up swapped", ("gate", "up")), ("two layers swapped", None)],
)
def test_weights_in_the_wrong_place(name: str, change: tuple[str, str] | None) -> None:
    config = CONFIGS["llama"]
    weights = logical_weights(config)
    if change is not None:
        wrong = {**weights, change[0]: weights[change[1]], change[1]: weights[change[0]]}
    else:
        wrong = {
            n: w[[1, 0, 2, 3]] if n not in ("embedding", "final_norm.gain") else w
            for n, w in weights.items()
        }
    tokens = tokens_for(config.vocab)
    old, new = (logits(config, DictWeights(w), tokens) for w in (weights, wrong))
    assert (old - new).abs().max() > WRONG


def test_one_flipped_mantissa_bit_shows_in_the_logits() -> None:
    config = CONFIGS["gpt"]
    weights = logical_weights(config)
    flipped = {name: array.copy() for name, array in weights.items()}
    flipped["down"].view(np.uint64)[1, 2, 3] ^= np.uint64(1 << 48)
    tokens = tokens_for(config.vocab)
    old, new = (logits(config, DictWeights(w), tokens) for w in (weights, flipped))
    assert 1e-10 < (old - new).abs().max() < torch.inf
