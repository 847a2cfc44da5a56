"""Moments take the dual factors of the weights: checked against autograd."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from growing_arrays import Arrays, grown
from pico import CONFIGS, logical_weights
from pico_model import BEYOND, DictWeights
from torch.nn import functional

from flmgrow.model.axes import full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth, moves
from flmgrow.operators.moments import moment_growth
from flmgrow.operators.target import Target, grow, parse_methods

EXACT = 1e-10
MODELS = {**CONFIGS, **BEYOND}


def gradients(config: ModelConfig, arrays: Arrays) -> Arrays:
    weights = DictWeights(arrays)
    for leaf in weights.tensors.values():
        leaf.requires_grad_()
    tokens = torch.randint(config.vocab, (2, 12), generator=torch.Generator().manual_seed(3))
    scores = logits(config, weights, tokens)
    loss = functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    names = list(weights.tensors)
    found = torch.autograd.grad(loss, [weights.tensors[name] for name in names])
    return {name: g.numpy() for name, g in zip(names, found, strict=True)}


def growth_of(name: str, methods: str, noise: float = 0.0, **sizes: int) -> Growth:
    config = MODELS[name]
    target = Target(**sizes, methods=parse_methods(methods), copy_noise=noise)  # type: ignore[arg-type]
    return grow(config, target, config.vocab, config.vocab)


def error(growth: Growth) -> float:
    """The largest error of an old entry's grown gradient, relative to the largest gradient."""
    shift = 1.0 if growth.old.zero_centred_gain else 0.0
    stored = {
        name: array - (shift if name.endswith(".gain") else 0.0)
        for name, array in logical_weights(growth.old).items()
    }
    weights = grown(growth, stored, shifted=True)
    if shift:
        weights = {n: a + (shift if n.endswith(".gain") else 0.0) for n, a in weights.items()}
    wanted = gradients(growth.new, weights)
    moved = moment_growth(growth, 1)
    found = grown(moved, gradients(growth.old, logical_weights(growth.old)), shifted=False)
    worst = 0.0
    for name, tensor in logical_tensors(growth.new).items():
        if name in ("key.bias", "key_norm.bias"):
            continue  # adding to every key's score of a query changes nothing under softmax
        for move in moves(moved, tensor, full_box(tensor.shape(growth.new.sizes))):
            if move.fill is None:
                cut = tuple(slice(*span) for span in move.box.ranges)
                gap = np.abs(wanted[name][cut] - found[name][cut]).max()
                worst = max(worst, float(gap / np.abs(wanted[name]).max()))
    return worst


def cases() -> Iterator[tuple[str, str, str]]:
    """Every architecture, method and axis, but for the exceptions and what is refused."""
    names = ("llama", "tele", "flm", "gpt", "qwen", "qk", *BEYOND)
    for name, method in product(names, ("copy", "zero")):
        shifting = MODELS[name].norm == "layernorm"
        measured = MODELS[name].qk_norm_of_all
        for axis in ("layers", "hidden", "ffn", "heads", "all"):
            lost = ("hidden", "all") if shifting else ("heads", "all") if measured else ()
            if not (method == "zero" and axis in lost):
                yield name, method, axis


@pytest.mark.parametrize(("name", "method", "axis"), list(cases()))
def test_gradients_of_old_entries_take_the_dual_factors(name: str, method: str, axis: str) -> None:
    config = MODELS[name]
    sizes = {
        "layers": {"layers": 6},
        "hidden": {"hidden": 24},
        "ffn": {"ffn": 33},
        "heads": {"kv_groups": 2 * config.kv_groups, "heads": 4 * config.heads},
    }
    every = {size: number for group in sizes.values() for size, number in group.items()}
    assert error(growth_of(name, method, **sizes.get(axis, every))) <= EXACT


@pytest.mark.parametrize("name", ["llama", "tele", "qk", "olmo2", "gemma2", "gemma3"])
def test_a_width_that_is_no_multiple_is_exact_under_rmsnorm(name: str) -> None:
    assert error(growth_of(name, "copy", hidden=31)) <= EXACT


@pytest.mark.parametrize("growth", ["noise", "layernorm"])
def test_the_two_exceptions_are_approximations(growth: str) -> None:
    if growth == "noise":
        off = error(growth_of("llama", "copy", noise=0.1, hidden=24))
    else:
        off = error(growth_of("gpt", "zero", hidden=17))
    assert 1e-6 < off < 1.0


def test_untied_tables_keep_the_sum_of_both_uses() -> None:
    """What the third exception says: neither the head's gradient nor the embedding's, but both."""
    config = CONFIGS["llama"]
    growth = grow(config, Target(untie=True), config.vocab, config.vocab)
    moved = grown(moment_growth(growth, 1), gradients(config, logical_weights(config)), False)
    true = gradients(growth.new, grown(growth, logical_weights(config), True))
    assert np.abs(moved["head"] - true["head"]).max() > 0.5 * np.abs(true["head"]).max()
    np.testing.assert_array_equal(moved["head"], moved["embedding"])
    np.testing.assert_allclose(moved["head"], true["head"] + true["embedding"], atol=1e-12)


def test_unscaled_moments_are_wrong() -> None:
    growth = growth_of("llama", "copy", hidden=24)
    unscaled = {axis: replace(m, scale={}) for axis, m in moment_growth(growth, 1).maps.items()}
    old = gradients(growth.old, logical_weights(growth.old))
    naive = grown(replace(moment_growth(growth, 1), maps=unscaled), old, shifted=False)
    right = grown(moment_growth(growth, 1), old, shifted=False)
    assert np.abs(naive["down"] - right["down"]).max() > 0.1 * np.abs(right["down"]).max()


def test_the_second_moment_takes_the_factor_squared() -> None:
    growth = growth_of("llama", "copy", hidden=36)
    once, twice = moment_growth(growth, 1), moment_growth(growth, 2)
    for axis, axis_map in once.maps.items():
        for role, factors in axis_map.scale.items():
            np.testing.assert_allclose(twice.maps[axis].scale[role], factors**2)


def test_fresh_entries_have_no_moments() -> None:
    growth = growth_of("llama", "mask", layers=6, hidden=20, ffn=33)
    moments = moment_growth(growth, 1)
    ones = {n: np.ones(t.shape(growth.old.sizes)) for n, t in logical_tensors(growth.old).items()}
    result = grown(moments, ones, shifted=False)
    assert (result["up"][:4, 20:] == 0).all()
    assert (result["up"][4:] == 0).all()
    assert (result["up"][:4, :20, :12] == 1).all()
