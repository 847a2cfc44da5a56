"""Behind closed masks a grown model trains as the small one did: its gradients, steps and losses.

What is compared is exact in exact arithmetic. In float64 it is not bit-equal, though nothing that
differs is ever added but zeros: sums over a longer axis are added up in another order. So equal
means to 1e-12 of the largest number of a tensor, and losses to 1e-10 after twenty steps.

Each small model has trained for a while, so that its moments are gradients' and its step count is
not zero. Gradients are clipped, and the clip bites: a global norm that is off shows in every step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from growing_arrays import Arrays, grown
from pico import CONFIGS, DictWeights, logical_weights
from sampling import first
from torch import Tensor
from torch.nn import functional

from flmgrow.model.arrays import IntArray
from flmgrow.model.axes import Axis
from flmgrow.model.branches import NO_MASKS, UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.masks import Dimension
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.operators.moments import moment_growth
from flmgrow.operators.target import Target, grow, parse_methods

EQUAL = 1e-12
TRACKED = 1e-10
SEEN = 1e-4
"""The least that a wrong continuation must show, in losses."""

BEFORE, AFTER = 20, 20
CLIP = 0.5
MODELS = ("llama", "gpt")
"""RMSNorm, SwiGLU, grouped queries, tied embeddings; LayerNorm, GELU, biases, a separate head."""

_EACH: Mapping[str, Mapping[str, Any]] = {
    "width": {"hidden": 17},
    "ffn": {"ffn": 28},
    "heads": {"kv_groups": 6, "heads": 18},
    "depth": {"layers": 6, "depth_placement": "interleave"},
}
GROWN = {**_EACH, "all": {key: size for sizes in _EACH.values() for key, size in sizes.items()}}
CASES = list(product(MODELS, GROWN))


@dataclass
class Run:
    """A model in training, by torch's own AdamW and clipping."""

    config: ModelConfig
    masks: UnitMasks
    weights: dict[str, Tensor]
    adam: torch.optim.AdamW
    step: int = 0

    def backward(self) -> float:
        """Return the loss of the next batch, and leave its gradients in the weights."""
        self.adam.zero_grad()
        generator = torch.Generator().manual_seed(self.step)
        tokens = torch.randint(self.config.vocab, (4, 12), generator=generator)
        tokens[:, 1::2] = (tokens[:, ::2] * 3 + 1) % self.config.vocab
        scores = logits(self.config, DictWeights(self.weights), tokens, self.masks)
        loss = functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward([loss])
        return loss.item()

    def update(self) -> float:
        """Clip, take a step of AdamW, and return the global norm there was."""
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), CLIP)
        self.adam.step()
        self.step += 1
        return norm.item()

    def train(self, steps: int, frozen: Mapping[str, Tensor] | None = None) -> list[float]:
        """Take steps, in which ``frozen`` entries stay, and return the losses."""
        losses = []
        for _ in range(steps):
            losses.append(self.backward())
            before = {name: weight.detach().clone() for name, weight in self.weights.items()}
            assert self.update() > CLIP
            for name, still in (frozen or {}).items():
                self.weights[name].data[still] = before[name][still]
        return losses

    def arrays(self, kind: str) -> Arrays:
        """Return every tensor's weight, gradient or moment."""
        found = {}
        for name, weight in self.weights.items():
            value = {"weight": weight, "gradient": weight.grad}.get(kind)
            found[name] = (self.adam.state[weight][kind] if value is None else value).detach()
        return {name: value.numpy().copy() for name, value in found.items()}


def start(config: ModelConfig, arrays: Arrays, masks: UnitMasks = NO_MASKS) -> Run:
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    adam = torch.optim.AdamW(weights.values(), 3e-3, (0.9, 0.95), 1e-8, 0.1)
    return Run(config, masks, weights, adam)


@cache
def trained(name: str) -> Mapping[str, Arrays]:
    """Weights and moments of a small model that has trained for a while."""
    run = start(CONFIGS[name], logical_weights(CONFIGS[name]))
    run.train(BEFORE)
    return {kind: run.arrays(kind) for kind in ("weight", "exp_avg", "exp_avg_sq")}


def resumed(config: ModelConfig, states: Mapping[str, Arrays], masks: UnitMasks = NO_MASKS) -> Run:
    """A run that goes on from weights and moments."""
    run = start(config, states["weight"], masks)
    run.step = BEFORE
    for name, weight in run.weights.items():
        moments = {kind: torch.tensor(states[kind][name]) for kind in ("exp_avg", "exp_avg_sq")}
        run.adam.state[weight] = {"step": torch.tensor(float(BEFORE)), **moments}
    return run


def small_run(name: str) -> Run:
    return resumed(CONFIGS[name], trained(name))


def growth_of(name: str, what: str, method: str = "mask") -> Growth:
    config = CONFIGS[name]
    target = Target(methods=parse_methods(method), **GROWN[what])
    return grow(config, target, config.vocab, config.vocab)


def masks_at(growth: Growth, value: float) -> UnitMasks:
    def values(dimension: Dimension) -> Tensor | None:
        mask = growth.masks.get(dimension)
        return None if mask is None else torch.from_numpy(mask.at(value).values(growth.new.sizes))

    width, heads = values(Dimension.WIDTH), values(Dimension.HEADS)
    return UnitMasks(width, heads, values(Dimension.FFN), values(Dimension.DEPTH))


def grown_run(name: str, growth: Growth, opening: float = 0.0, moments: bool = True) -> Run:
    """The large run that goes on where the small one is."""
    old = trained(name)
    by_kind = {"weight": growth, "exp_avg": moment_growth(growth, 1)}
    by_kind["exp_avg_sq"] = moment_growth(growth, 2)
    states = {kind: grown(moved, old[kind], False) for kind, moved in by_kind.items()}
    if not moments:
        for kind in ("exp_avg", "exp_avg_sq"):
            states[kind] = {tensor: np.zeros_like(m) for tensor, m in states[kind].items()}
    return resumed(growth.new, states, masks_at(growth, opening))


def old_places(growth: Growth, tensor: LogicalTensor) -> tuple[IntArray, ...]:
    """Where the old entries are in a grown tensor: the first that come from each old index."""

    def places(axis: Axis) -> IntArray:
        index = np.arange(growth.old.sizes[axis])
        if axis not in growth.maps:
            return index
        first = [np.flatnonzero(growth.maps[axis].source == old)[0] for old in index]
        return np.array(first, np.int64)

    return np.ix_(*(places(axis) for axis in tensor.axes))


def fresh_entries(growth: Growth) -> dict[str, Tensor]:
    found = {}
    for name, tensor in logical_tensors(growth.new).items():
        fresh = np.ones(tensor.shape(growth.new.sizes), bool)
        fresh[old_places(growth, tensor)] = False
        found[name] = torch.from_numpy(fresh)
    return found


def old_gaps(growth: Growth, small: Arrays, large: Arrays) -> Iterator[float]:
    """How far each tensor's old entries are from what they were, relative to the largest."""
    for name, tensor in logical_tensors(growth.new).items():
        if name == "key.bias":
            continue  # shifts all scores of a query alike: its gradient is rounding, and no more
        gap = np.abs(large[name][old_places(growth, tensor)] - small[name]).max()
        yield float(gap / np.abs(small[name]).max())


def norm(run: Run) -> float:
    return float(np.sqrt(sum((g**2).sum() for g in run.arrays("gradient").values())))


# --- one step


@pytest.mark.parametrize(("name", "what"), CASES)
def test_old_gradients_and_the_global_norm_stay(name: str, what: str) -> None:
    growth = growth_of(name, what)
    small, large = small_run(name), grown_run(name, growth)
    assert large.backward() == pytest.approx(small.backward(), rel=EQUAL)
    found = large.arrays("gradient")
    assert max(old_gaps(growth, small.arrays("gradient"), found)) <= EQUAL
    for tensor, fresh in fresh_entries(growth).items():
        assert not found[tensor][fresh.numpy()].any(), tensor
    assert norm(large) == pytest.approx(norm(small), rel=EQUAL)


@pytest.mark.parametrize(("name", "what"), CASES)
def test_the_first_step_of_old_entries_stays(name: str, what: str) -> None:
    """The step, and not only where it leads: steps are small beside weights."""
    growth = growth_of(name, what)
    small, large = small_run(name), grown_run(name, growth)
    steps = []
    for run in (small, large):
        before = run.arrays("weight")
        run.train(1)
        steps.append({n: after - before[n] for n, after in run.arrays("weight").items()})
    assert max(old_gaps(growth, *steps)) <= EQUAL
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        assert max(old_gaps(growth, small.arrays(kind), large.arrays(kind))) <= EQUAL, kind


@pytest.mark.parametrize("name", MODELS)
def test_other_methods_change_the_global_norm(name: str) -> None:
    """What masks have and fresh readers at zero have not: the control of the two tests above."""
    growth = growth_of(name, "ffn", "zero")
    small, large = small_run(name), grown_run(name, growth)
    small.backward()
    large.backward()
    assert max(old_gaps(growth, small.arrays("gradient"), large.arrays("gradient"))) <= EQUAL
    assert norm(large) > norm(small) * 1.001


@pytest.mark.parametrize("name", MODELS)
def test_open_masks_change_old_gradients(name: str) -> None:
    growth = growth_of(name, "all")
    small, large = small_run(name), grown_run(name, growth, opening=0.1)
    small.backward()
    large.backward()
    assert max(old_gaps(growth, small.arrays("gradient"), large.arrays("gradient"))) > SEEN


# --- twenty steps


def gap(name: str, growth: Growth, large: Run, frozen: bool) -> float:
    """The largest difference of losses from the small run's."""
    still = fresh_entries(growth) if frozen else None
    pairs = zip(small_run(name).train(AFTER), large.train(AFTER, still), strict=True)
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize(("name", "what"), first(4, CASES))
def test_losses_track_the_small_models(name: str, what: str) -> None:
    growth = growth_of(name, what)
    off = gap(name, growth, grown_run(name, growth), frozen=True)
    print(f"{off:.1e}")
    assert off <= TRACKED


@pytest.mark.parametrize("name", MODELS)
def test_closed_masks_freeze_by_themselves(name: str) -> None:
    """Fresh entries that are not frozen are only moved by weight decay, which nobody sees."""
    growth = growth_of(name, "all")
    assert gap(name, growth, grown_run(name, growth), frozen=False) <= TRACKED


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrong", ["moments dropped", "masks open"])
def test_what_is_wrong_is_seen(name: str, wrong: str) -> None:
    growth = growth_of(name, "all")
    if wrong == "moments dropped":
        off = gap(name, growth, grown_run(name, growth, moments=False), frozen=True)
    else:
        off = gap(name, growth, grown_run(name, growth, opening=0.1), frozen=False)
    print(f"{off:.1e}")
    assert off > SEEN
