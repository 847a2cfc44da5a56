"""A grown model must be able to use what it grew: no fresh parameter stays without gradient."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import grow_checkpoint, stored_arrays
from numpy.typing import NDArray
from pico import CONFIGS, DictWeights, logical_weights, make_checkpoint
from sampling import sample
from torch import Tensor
from torch.nn import functional

from flmgrow.model.axes import Axis, full_box
from flmgrow.model.branches import UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.masks import Dimension
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.operators.choices import NewLayers
from flmgrow.operators.growth import Growth, moves
from flmgrow.operators.target import Target, parse_methods

ALIVE = 1e-12
STEPS = 3
RATE = 0.5


def _backward(loss: Tensor) -> None:
    torch.autograd.backward([loss])


@dataclass
class Training:
    """A few steps of gradient descent on tokens, remembering every gradient's size."""

    config: ModelConfig
    masks: UnitMasks
    weights: dict[str, Tensor]

    def run(self) -> dict[str, NDArray[np.float64]]:
        """Return the largest gradient each entry saw, on data with every id and position."""
        config = self.config
        generator = torch.Generator().manual_seed(1)
        # In several orders: a unit of a squared ReLU is closed on what one order happens to show.
        orders = [torch.randperm(config.vocab, generator=generator) for _ in range(6)]
        ids = torch.cat(orders)
        rows = len(ids) // config.max_positions
        tokens = ids[: rows * config.max_positions].reshape(rows, config.max_positions)
        wanted = tokens.flip(0)
        largest = {name: np.zeros(w.shape) for name, w in self.weights.items()}
        for _ in range(STEPS):
            for weight in self.weights.values():
                weight.requires_grad_()
                weight.grad = None
            out = logits(config, DictWeights(self.weights), tokens, self.masks)
            _backward(functional.cross_entropy(out.flatten(0, 1), wanted.flatten()))
            for name, weight in self.weights.items():
                assert weight.grad is not None
                largest[name] = np.maximum(largest[name], weight.grad.abs().numpy())
                self.weights[name] = (weight - RATE * weight.grad).detach()
        return largest


def fresh_entries(growth: Growth, tensor: LogicalTensor) -> NDArray[np.bool_]:
    """Entries that no old entry stands behind, and all of fresh layers."""
    shape = tensor.shape(growth.new.sizes)
    fresh = np.zeros(shape, bool)
    for move in moves(growth, tensor, full_box(shape)):
        if move.fill is not None:
            fresh[move.box.relative_to(full_box(shape))] = True
    if tensor.layered and Axis.LAYER in growth.maps:
        donors = growth.maps[Axis.LAYER].donors.tolist()
        for layer, donor in enumerate(donors):
            fresh[layer] |= donor in donors[:layer]
    return fresh


def no_gradient_by_nature(config: ModelConfig, name: str) -> bool:
    """A key bias adds the same to all scores of a query, where positions do not turn it."""
    return name == "key.bias" and config.positions in ("learned", "none") and not config.qk_norm


def opened(growth: Growth, value: float) -> UnitMasks:
    def mask(dimension: Dimension) -> Tensor | None:
        found = growth.masks.get(dimension)
        return None if found is None else torch.from_numpy(found.at(value).values(growth.new.sizes))

    width, heads = mask(Dimension.WIDTH), mask(Dimension.HEADS)
    return UnitMasks(width, heads, mask(Dimension.FFN), mask(Dimension.DEPTH))


def grown(config: ModelConfig, target: Target, folder: Path) -> tuple[Growth, dict[str, Tensor]]:
    source = make_checkpoint(folder / "a", config)
    growth = grow_checkpoint(source, folder / "b", target).growth
    tensors = logical_tensors(growth.new)
    weights = {}
    for name, stored in stored_arrays(folder / "b").items():
        true = tensors[name].shape(growth.new.sizes)
        weights[name] = torch.from_numpy(stored[: true[0]].copy() + tensors[name].shift)
    return growth, weights


ALL = {"hidden": 20, "ffn": 28, "kv_groups": 6, "layers": 6, "vocab": 57}
GROWN = {
    "width": {"hidden": 20},
    "ffn": {"ffn": 28},
    "heads": {"kv_groups": 6},
    "depth": {"layers": 6},
    "all": ALL,
}


@pytest.mark.parametrize("method", sample(["mask", "zero", "copy", "zero random"], "mask", "copy"))
@pytest.mark.parametrize(
    ("name", "what"),
    [*(("llama", what) for what in GROWN), ("gpt", "width"), ("gpt", "all"), ("nemotron", "all")],
)
def test_every_fresh_entry_wakes(name: str, what: str, method: str, tmp_path: Path) -> None:
    methods, _, fresh = method.partition(" ")
    target = Target(
        methods=parse_methods(methods),
        new_layers=NewLayers.RANDOM if fresh else NewLayers.COPY,
        depth_placement="interleave",
        **GROWN[what],  # type: ignore[arg-type]
    )
    growth, weights = grown(CONFIGS[name], target, tmp_path)
    largest = Training(growth.new, opened(growth, 0.01), weights).run()
    seen = 0
    for tensor in logical_tensors(growth.new).values():
        entries = fresh_entries(growth, tensor)
        seen += int(entries.sum())
        if not no_gradient_by_nature(growth.new, tensor.name):
            dead = entries & (largest[tensor.name] < ALIVE)
            assert not dead.any(), f"{tensor.name}: {int(dead.sum())} of {int(entries.sum())} dead"
    assert seen or (method == "copy" and what in ("ffn", "heads"))


@pytest.mark.parametrize("name", ["flm", "tele"])
def test_copies_part(name: str, tmp_path: Path) -> None:
    """Copies of a unit start equal on the writers' side and must not stay so."""
    config = CONFIGS[name]
    target = Target(hidden=24, ffn=40, kv_groups=8, methods=parse_methods("copy"))
    growth, weights = grown(config, target, tmp_path)
    Training(growth.new, UnitMasks(), weights).run()
    for tensor, axis in (("up", Axis.FFN), ("query", Axis.KV_GROUP), ("embedding", Axis.HIDDEN)):
        place = logical_tensors(growth.new)[tensor].axes.index(axis)
        first, second = weights[tensor].movedim(place, 0).chunk(2)
        assert ((first - second).flatten(1).abs().amax(1) > 1e-6).all()


def test_a_path_that_is_zero_on_both_sides_is_found_dead(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    target = Target(ffn=28, methods=parse_methods("zero"))
    growth, weights = grown(config, target, tmp_path)
    weights["up"][:, config.ffn :] = 0
    largest = Training(growth.new, UnitMasks(), weights).run()
    assert (largest["up"][:, config.ffn :] == 0).all()


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_closed_masks_leave_old_gradients_and_their_norm_alone(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    sizes = {**ALL, "vocab": config.vocab}
    target = Target(methods=parse_methods("mask"), **sizes)  # type: ignore[arg-type]
    growth, weights = grown(config, target, tmp_path)
    tokens = torch.randint(config.vocab, (4, 16), generator=torch.Generator().manual_seed(0))

    def gradients(model: ModelConfig, tensors: dict[str, Tensor], masks: UnitMasks) -> list[Tensor]:
        leaves = [tensor.requires_grad_() for tensor in tensors.values()]
        out = logits(model, DictWeights(tensors), tokens, masks)
        _backward(functional.cross_entropy(out.flatten(0, 1), tokens.flip(0).flatten()))
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    old = {name: torch.from_numpy(w) for name, w in logical_weights(config).items()}
    new = {name: weights[name] for name in old}
    before = gradients(config, old, UnitMasks())
    after = gradients(growth.new, new, opened(growth, 0.0))
    assert len(before) == len(after) == len(old)
    for one, two in zip(before, after, strict=True):
        inside = tuple(slice(extent) for extent in one.shape)
        assert (two[inside] - one).abs().max() < 1e-14
        assert two.square().sum() == pytest.approx(float(one.square().sum()), rel=1e-12)
