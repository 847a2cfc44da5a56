"""Norms over the entries of a head keep their function where one epsilon serves all norms."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from growing import EXACT, carry_out, checkpoint_logits, grow_checkpoint, tokens_for
from hypothesis import given
from pico import CONFIGS, DictWeights, logical_weights, make_checkpoint
from sampling import sample
from strategies import Case, cases, examples

from flmgrow.model.axes import Axis, AxisMap
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings
from flmgrow.model.forward import logits
from flmgrow.operators.target import Target, grow, parse_methods

WRONG = 1e-3

QUERY_NORMED: Mapping[str, ModelConfig] = {
    "rmsnorm": CONFIGS["qk"],
    "layernorm, biases": replace(CONFIGS["gpt"], qk_norm=True, positions="rope"),
    "grouped, tied, biases": replace(CONFIGS["qwen"], qk_norm=True),
    "xpos, by layer": replace(
        CONFIGS["flm"],
        qk_norm=True,
        tied=False,
        rotary=RotarySettings(xpos_scale_base=16.0, interleaved=True),
        multipliers=Multipliers(attention_by_inverse_layer=True, mup_base_width=4, output=2.0),
    ),
    "gain less one": replace(CONFIGS["nemotron"], qk_norm=True),
    "logits of a thousand": replace(CONFIGS["qk"], multipliers=Multipliers(output=2000.0)),
}


@pytest.mark.parametrize("hidden", sample([13, 31], 13))
@pytest.mark.parametrize("method", ["zero", "copy"])
@pytest.mark.parametrize("name", QUERY_NORMED)
def test_width_to_any_size(name: str, method: str, hidden: int, tmp_path: Path) -> None:
    config = QUERY_NORMED[name]
    source = make_checkpoint(tmp_path / "a", config)
    groups = config.kv_groups + 1
    target = Target(
        hidden=hidden,
        kv_groups=groups,
        heads=groups * (config.queries_per_group + 1),
        layers=config.layers + 1,
        methods=parse_methods(method),
    )
    grow_checkpoint(source, tmp_path / "b", target)
    tokens = tokens_for(config.vocab)
    old = logits(config, DictWeights(logical_weights(config)), tokens)
    scale = max(1.0, float(old.abs().max()))
    assert (scale > 100) == (name == "logits of a thousand")
    assert (checkpoint_logits(tmp_path / "b", tokens) - old).abs().max() <= EXACT * scale


@pytest.mark.parametrize("method", ["zero", "copy"])
@pytest.mark.parametrize("name", QUERY_NORMED)
def test_without_the_factor_it_shows(name: str, method: str, tmp_path: Path) -> None:
    """Queries and keys so small that their norms' epsilon counts, as in a model that is young."""
    config = QUERY_NORMED[name]
    weights = logical_weights(config)
    small = {n: w * 0.1 if n.startswith(("query", "key")) else w for n, w in weights.items()}
    gains = {n: weights[n] for n in weights if n.startswith(("query_norm", "key_norm"))}
    weights = {**small, **gains}
    shift = 1.0 if config.zero_centred_gain else 0.0
    stored = {
        n: torch.from_numpy(w - (shift if n.endswith("gain") else 0.0)) for n, w in weights.items()
    }
    source = make_checkpoint(tmp_path / "a", config, weights=stored)
    tokens = tokens_for(config.vocab)
    old = logits(config, DictWeights(weights), tokens)
    target = Target(hidden=20, methods=parse_methods(method))
    growth = grow(config, target, 56, 56)
    without: dict[Axis, AxisMap] = {a: m for a, m in growth.maps.items() if a != Axis.HEAD_DIM}
    for maps, wrong in ((growth.maps, False), (without, True)):
        out = carry_out(source, tmp_path / f"b{wrong}", replace(growth, maps=maps))
        gap = float((checkpoint_logits(out, tokens) - old).abs().max())
        gap /= max(1.0, float(old.abs().max()))
        assert gap > WRONG if wrong else gap <= EXACT, gap


@examples(40)
@given(cases())
def test_no_growth_is_refused_for_them(case: Case) -> None:
    config = replace(case.config, qk_norm=True)
    growth = grow(config, replace(case.target, untie=config.tied), config.vocab, 70)
    moved = growth.new.norm_eps != config.norm_eps
    assert (Axis.HEAD_DIM in growth.maps) == moved
