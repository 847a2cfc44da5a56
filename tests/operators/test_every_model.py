"""Any growth of any model keeps its function, or is refused with the reason.

Models have norms before branches, after them or both, one norm over the queries of all heads, caps,
windows and rotary bases of single layers, embeddings multiplied by the width: whether or not
megatron-core has a block for them. They grow in memory, no file in between.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from growing import tokens_for
from growing_arrays import Arrays, grown
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import DictWeights, stored_weights
from pico_model import BEYOND
from strategies import decoders, examples
from torch import Tensor
from torch.nn import functional

from flmgrow.errors import UsageError
from flmgrow.model.branches import UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.baking import baked
from flmgrow.operators.choices import Method
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow, parse_methods

EXACT = 1e-11
"""The largest difference of logits, relative to the largest of them, that counts as none."""

EXACTLY = (Method.ZERO, Method.COPY, Method.MASK)
REASONS = ("centring the shared table", "LayerNorm behind branches", "one norm", "one LayerNorm")


def stored(config: ModelConfig) -> Arrays:
    return {name: value.numpy() for name, value in stored_weights(config).items()}


def multiplied(config: ModelConfig, arrays: Arrays) -> Arrays:
    """Gains as what they multiply by."""
    shift = 1.0 if config.zero_centred_gain else 0.0
    return {n: a + (shift if n.endswith(".gain") else 0.0) for n, a in arrays.items()}


def units(masks: Mapping[Dimension, Mask], config: ModelConfig) -> UnitMasks:
    def of(dimension: Dimension) -> Tensor | None:
        mask = masks.get(dimension)
        return None if mask is None else torch.as_tensor(mask.values(config.sizes))

    return UnitMasks(*(of(dimension) for dimension in Dimension))


def computed(config: ModelConfig, arrays: Arrays, masks: UnitMasks, vocab: int) -> Tensor:
    weights = DictWeights(multiplied(config, arrays))
    return logits(config, weights, tokens_for(vocab, 7), masks)[..., :vocab]


def error(growth: Growth) -> float:
    """How far the grown model is from the old one, relative to its largest logit."""
    vocab, arrays = growth.old.vocab, stored(growth.old)
    old = computed(growth.old, arrays, UnitMasks(), vocab)
    masks = units(growth.masks, growth.new)
    new = computed(growth.new, grown(growth, arrays, shifted=True), masks, vocab)
    return float((new - old).abs().max() / old.abs().max())


def grown_or_refused(config: ModelConfig, target: Target) -> Growth | None:
    try:
        return grow(config, target, config.vocab, target.vocab or config.vocab)
    except UsageError as refusal:
        told = refusal.message
    assert any(reason in told for reason in REASONS), told
    return None


@examples(80)
@given(decoders(), st.data())
def test_any_growth_is_exact_or_refused(config: ModelConfig, data: DataObject) -> None:
    groups = config.kv_groups + data.draw(st.sampled_from([0, 1, config.kv_groups]))
    queries = config.queries_per_group + data.draw(st.sampled_from([0, 0, 1]))
    target = Target(
        layers=config.layers + data.draw(st.integers(0, 2)),
        hidden=config.hidden + data.draw(st.sampled_from([0, 3, config.hidden])),
        ffn=config.ffn + data.draw(st.sampled_from([0, 2])),
        kv_groups=groups,
        heads=groups * queries,
        vocab=config.vocab + data.draw(st.sampled_from([0, 5])),
        depth_placement=data.draw(st.sampled_from(["end", "interleave"])),
        methods={d: data.draw(st.sampled_from(EXACTLY)) for d in Dimension},
        copy_noise=data.draw(st.sampled_from([0.0, 0.1])),
    )
    growth = grown_or_refused(config, target)
    assert growth is None or error(growth) <= EXACT


@examples(40)
@given(decoders(), st.sampled_from([0.0, 0.4, 1.0]), st.data())
def test_baked_masks_compute_what_masks_do(
    config: ModelConfig, value: float, data: DataObject
) -> None:
    dimension = data.draw(st.sampled_from(list(Dimension)))
    sizes: dict[Dimension, dict[str, int]] = {
        Dimension.WIDTH: {"hidden": config.hidden + 3},
        Dimension.FFN: {"ffn": config.ffn + 2},
        Dimension.DEPTH: {"layers": config.layers + 1},
        Dimension.HEADS: {"kv_groups": config.kv_groups + 1},
    }
    growth = grow(config, Target(**sizes[dimension]), config.vocab, config.vocab)  # type: ignore[arg-type]
    growth = replace(growth, masks={dimension: growth.masks[dimension].at(value)})
    weighed = dimension is Dimension.WIDTH or (
        dimension is Dimension.HEADS and config.qk_norm_of_all
    )
    if weighed and value < 1:
        with pytest.raises(UsageError, match="cannot be baked: its norms weigh"):
            baked(growth, {})
        return
    arrays = stored(config)
    masked = computed(
        growth.new, grown(growth, arrays, True), units(growth.masks, growth.new), config.vocab
    )
    plain = baked(growth, {})
    found = computed(plain.new, grown(plain, arrays, True), UnitMasks(), config.vocab)
    assert float((found - masked).abs().max() / masked.abs().max()) <= EXACT


# --- What makes a fresh part add nothing, and wakes it


def growth_of(name: str, methods: str, **sizes: int) -> Growth:
    config = BEYOND[name]
    target = Target(**sizes, methods=parse_methods(methods))  # type: ignore[arg-type]
    return grow(config, target, config.vocab, config.vocab)


def steepest(config: ModelConfig, arrays: Arrays) -> Arrays:
    """The gradients of a loss by all stored values."""
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
    shift = 1.0 if config.zero_centred_gain else 0.0
    weights = DictWeights(
        {n: a + (shift if n.endswith(".gain") else 0.0) for n, a in leaves.items()}
    )
    tokens = tokens_for(config.vocab, 9)
    scores = logits(config, weights, tokens)
    loss = functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {name: each.numpy() for name, each in zip(leaves, found, strict=True)}


@pytest.mark.parametrize("name", ["olmo2", "gemma2", "gemma3"])
def test_the_norm_behind_a_branch_is_what_depth_makes_zero(name: str) -> None:
    growth = growth_of(name, "zero", layers=6)
    arrays = grown(growth, stored(growth.old), shifted=True)
    gains = multiplied(growth.new, arrays)
    for branch, projection in (("attention", "attention_out"), ("ffn", "down")):
        assert not gains[f"{branch}_post_norm.gain"][4:].any()
        assert np.array_equal(arrays[projection][4], arrays[projection][3])


@pytest.mark.parametrize(
    ("name", "methods", "sizes"),
    [
        ("olmo2", "zero", {"layers": 6}),
        ("olmo2", "zero", {"hidden": 17}),
        ("olmo2", "copy", {"kv_groups": 6, "heads": 12}),
        ("gemma2", "zero", {"layers": 6, "hidden": 17, "ffn": 23, "kv_groups": 5, "heads": 10}),
        ("gemma3", "zero", {"layers": 6, "hidden": 17, "ffn": 23, "kv_groups": 5, "heads": 10}),
    ],
)
def test_every_value_learns_after_a_step(name: str, methods: str, sizes: dict[str, int]) -> None:
    """Nothing waits for something that waits for it; but ids that no token has."""
    growth = growth_of(name, methods, **sizes)
    arrays = grown(growth, stored(growth.old), shifted=True)
    seen = np.zeros_like(arrays["embedding"], bool)
    seen[np.unique(tokens_for(growth.new.vocab, 9)[:, :-1])] = True
    alive = {name: np.zeros_like(array, bool) for name, array in arrays.items()}
    for _ in range(3):
        slopes = steepest(growth.new, arrays)
        for tensor, slope in slopes.items():
            alive[tensor] |= slope != 0
            arrays[tensor] = arrays[tensor] - 0.01 * slope
    alive["embedding"] |= ~seen
    dead = {tensor: int((~each).sum()) for tensor, each in alive.items() if not each.all()}
    assert dead == {}


def test_one_norm_over_all_heads_takes_no_zero_heads() -> None:
    with pytest.raises(UsageError, match="would have to be zero, and would never learn") as refusal:
        growth_of("olmo2", "zero", kv_groups=6, heads=12)
    assert "heads=copy or" in str(refusal.value.hint)


def test_copies_that_are_not_scaled_would_be_seen() -> None:
    growth = growth_of("olmo2", "copy", kv_groups=6, heads=12)
    assert error(growth) <= EXACT
    maps = {
        axis: replace(each, scale={role: f for role, f in each.scale.items() if role == "reads"})
        for axis, each in growth.maps.items()
    }
    assert error(replace(growth, maps=maps)) > 1e-3


@pytest.mark.parametrize("name", ["gemma", "untied gemma"])
def test_embeddings_that_are_not_scaled_would_be_seen(name: str) -> None:
    growth = growth_of(name, "zero", hidden=17)
    assert error(growth) <= EXACT
    maps = {
        axis: replace(each, scale={role: f for role, f in each.scale.items() if role != "embeds"})
        for axis, each in growth.maps.items()
    }
    assert error(replace(growth, maps=maps)) > 1e-3
