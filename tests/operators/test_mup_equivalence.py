"""A grown model that is trained on must take the steps the small one would have taken.

Growth keeps the function, and moments that follow it keep what AdamW remembers. For the steps to
come, AdamW's settings must follow, too. If a growth multiplies a weight by f and its gradient by g,
then the update keeps the relation between the two models if and only if

    learning rate x f,    epsilon x g,    weight decay / f    (and exp_avg x g, exp_avg_sq x g^2)

since the step lr * m / (sqrt(v) + eps) then takes f, and so does the decay lr * wd * w. With equal
copies f and g are one number for each tensor, and for muP they are its table: hidden matrices
lr / r, eps / r, wd * r. That is checked on 40 steps in float64, and that each wrong rule shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from growing_arrays import Arrays, grown
from pico import CONFIGS, logical_weights
from pico_model import DictWeights
from sampling import sample
from torch import Tensor
from torch.nn import functional

from flmgrow.model.axes import Axis, Role
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.model.forward import logits
from flmgrow.model.mup import KIND, grown_group, kind_of
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.operators.moments import moment_growth
from flmgrow.operators.target import Target, grow, parse_methods

BEFORE, AFTER = 20, 40
EQUAL = 1e-12
LR, EPS, DECAY, BETAS = 3e-3, 1e-8, 0.1, (0.9, 0.95)
UNITS = (Axis.FFN, Axis.KV_GROUP)

Setting = tuple[float | Tensor, float | Tensor, float | Tensor]
"""Learning rate, epsilon and weight decay of a tensor, or of each of its entries."""


@dataclass
class Run:
    """A model in training: logical tensors, AdamW's moments, and its settings by tensor."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Setting]
    moments: tuple[dict[str, Tensor], dict[str, Tensor]]
    step: int = 0

    def loss(self, tokens: Tensor) -> Tensor:
        scores = logits(self.config, DictWeights(self.weights), tokens)
        return functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def train(self, steps: int) -> list[float]:
        """Take steps of AdamW, as torch computes them, and return the losses."""
        losses = []
        for _ in range(steps):
            for weight in self.weights.values():
                weight.requires_grad_()
            loss = self.loss(batch(self.config.vocab, self.step))
            names = list(self.weights)
            found = torch.autograd.grad(loss, [self.weights[name] for name in names])
            self.step += 1
            self.weights = {
                name: self.updated(name, gradient)
                for name, gradient in zip(names, found, strict=True)
            }
            losses.append(loss.item())
        return losses

    def updated(self, name: str, gradient: Tensor) -> Tensor:
        (first, second), (beta1, beta2) = self.moments, BETAS
        first[name] = beta1 * first[name] + (1 - beta1) * gradient
        second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
        mean = first[name] / (1 - beta1**self.step)
        spread = (second[name] / (1 - beta2**self.step)).sqrt()
        lr, eps, decay = self.settings[name]
        weight = self.weights[name].detach()
        return weight - lr * decay * weight - lr * mean / (spread + eps)


def batch(vocab: int, step: int) -> Tensor:
    """Tokens of which every second follows from the one before: something to learn."""
    tokens = torch.randint(vocab, (4, 12), generator=torch.Generator().manual_seed(step))
    tokens[:, 1::2] = (tokens[:, ::2] * 3 + 1) % vocab
    return tokens


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def arrays(values: Mapping[str, Tensor]) -> Arrays:
    return {name: value.detach().numpy() for name, value in values.items()}


def start(config: ModelConfig, settings: Mapping[str, Setting]) -> Run:
    weights = tensors(logical_weights(config))
    zeros: tuple[dict[str, Tensor], ...] = tuple(
        {name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2)
    )
    return Run(config, weights, settings, (zeros[0], zeros[1]))


def continued(
    run: Run,
    growth: Growth,
    settings: Mapping[str, Setting],
    moments: Callable[[Growth, int], Growth | None] = moment_growth,
) -> Run:
    """The grown run: weights by the growth, moments by theirs (None: zero), settings as given."""
    weights = tensors(grown(growth, arrays(run.weights), shifted=False))
    both = []
    for power, old in zip((1, 2), run.moments, strict=True):
        moved = moments(growth, power)
        values = grown(moved or moment_growth(growth, power), arrays(old), shifted=False)
        both.append(tensors(values))
        if moved is None:
            both[-1] = {name: torch.zeros_like(value) for name, value in both[-1].items()}
    return Run(growth.new, weights, settings, (both[0], both[1]), run.step)


def gap(run: Run, other: Run) -> float:
    """The largest difference of the losses of the next steps."""
    pairs = zip(run.train(AFTER), other.train(AFTER), strict=True)
    return max(abs(a - b) for a, b in pairs)


# --- muP, by its own table


def is_hidden_matrix(name: str) -> bool:
    """What muP calls hidden: from width to width."""
    return name in ("query", "key", "value", "attention_out", "gate", "up", "down")


def mup_model(tied: bool = False) -> ModelConfig:
    config = replace(CONFIGS["gpt"], layers=2, norm_eps=1e-5, tied=tied)
    return replace(config, multipliers=Multipliers(output=2.0, mup_base_width=6))


def everything_copied(config: ModelConfig, ratio: int) -> Growth:
    """Every width times ``ratio``, in equal copies without noise."""
    target = Target(
        hidden=ratio * config.hidden, ffn=ratio * config.ffn, kv_groups=ratio * config.kv_groups,
        methods=parse_methods("copy"), copy_noise=0.0,
    )  # fmt: skip
    growth = grow(config, target, config.vocab, config.vocab)
    maps = dict(growth.maps)
    for axis in UNITS:
        share = np.full(maps[axis].new_size, 1 / ratio)
        maps[axis] = replace(maps[axis], scale={Role.READS: share})
    return replace(growth, maps=maps)


@dataclass(frozen=True)
class Rules:
    """By what the settings of each kind of tensor are multiplied when the width grows by r."""

    hidden_lr: float = -1
    hidden_eps: float = -1
    hidden_decay: float = 1
    vector_eps: float = -1
    head_lr: float = -1
    head_eps: float = 0
    head_decay: float = 1

    def settings(self, config: ModelConfig, ratio: int) -> dict[str, Setting]:
        """The settings at ``ratio`` times the width; the exponents are those of r."""
        m = config.hidden / ratio / 6
        result: dict[str, Setting] = {}
        for name in logical_tensors(config):
            plain = name.endswith((".bias", ".gain"))
            decay = 0.0 if plain else DECAY
            if is_hidden_matrix(name):
                lr, eps, wd = self.hidden_lr, self.hidden_eps, self.hidden_decay
                first = (LR / m, EPS / m, decay * m)
            elif name == "head":
                lr, eps, wd = self.head_lr, self.head_eps, self.head_decay
                first = (LR, EPS, decay)
            else:
                lr, eps, wd = 0.0, self.vector_eps, 0.0
                first = (LR, EPS, decay)
            result[name] = (first[0] * ratio**lr, first[1] * ratio**eps, first[2] * ratio**wd)
        return result


def mup_gap(
    ratio: int,
    rules: Rules | None = None,
    moments: Callable[[Growth, int], Growth | None] = moment_growth,
    eps: float = EPS,
) -> float:
    config = mup_model()
    growth = everything_copied(config, ratio)

    def with_eps(settings: Mapping[str, Setting]) -> dict[str, Setting]:
        return {name: (lr, e * eps / EPS, wd) for name, (lr, e, wd) in settings.items()}

    small = start(config, with_eps(Rules().settings(config, 1)))
    small.train(BEFORE)
    settings = with_eps((rules or Rules()).settings(growth.new, ratio))
    return gap(small, continued(small, growth, settings, moments))


@pytest.mark.parametrize("ratio", [2, 3])
def test_a_grown_model_follows_the_small_one(ratio: int) -> None:
    assert mup_gap(ratio) <= EQUAL


def grouped(config: ModelConfig, ratio: int) -> dict[str, Setting]:
    """The settings that param groups have once their model grew."""
    result: dict[str, Setting] = {}
    for name, tensor in logical_tensors(config).items():
        lr, eps, decay = Rules().settings(config, 1)[name]
        group: dict[object, object] = {
            KIND: kind_of(tensor),
            "lr": lr,
            "eps": eps,
            "weight_decay": decay,
        }
        moved = grown_group(group, ratio)
        result[name] = tuple(moved[key] for key in ("lr", "eps", "weight_decay"))  # type: ignore[assignment]
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ratio", [2, 3])
def test_param_groups_follow(ratio: int, tied: bool) -> None:
    config = mup_model(tied)
    growth = everything_copied(config, ratio)
    small = start(config, grouped(config, 1))
    small.train(BEFORE)
    assert gap(small, continued(small, growth, grouped(config, ratio))) <= EQUAL


def unscaled(growth: Growth, power: int) -> Growth:
    moved = moment_growth(growth, power)
    return replace(moved, maps={axis: replace(m, scale={}) for axis, m in moved.maps.items()})


def zeroed(growth: Growth, power: int) -> None:
    return None


@pytest.mark.parametrize(
    ("rules", "moments", "at_least"),
    [
        (Rules(), unscaled, 1e-3),
        (Rules(), zeroed, 1e-3),
        (Rules(hidden_lr=0), moment_growth, 1e-3),
        (Rules(head_lr=0), moment_growth, 1e-3),
        (Rules(hidden_decay=0), moment_growth, 1e-5),
        (Rules(head_decay=0), moment_growth, 1e-5),
        (Rules(hidden_eps=0), moment_growth, 1e-9),
        (Rules(vector_eps=0), moment_growth, 1e-9),
        (Rules(head_eps=-1), moment_growth, 1e-9),
    ],
    ids=["moments unscaled", "moments zeroed", "lr", "head lr", "decay", "head decay", "eps",
         "vectors' eps", "head eps"],
)  # fmt: skip
def test_each_wrong_rule_shows(
    rules: Rules, moments: Callable[[Growth, int], Growth | None], at_least: float
) -> None:
    off = mup_gap(2, rules, moments)
    print(f"{off:.1e}")
    assert off > at_least


# --- the rule behind the table, for any tensor, axis and split


def factors_of(growth: Growth) -> dict[str, tuple[Tensor, Tensor]]:
    """What every entry's weight and gradient are multiplied by: the growth of ones."""
    ones = {n: np.ones(t.shape(growth.old.sizes)) for n, t in logical_tensors(growth.old).items()}
    weights = tensors(grown(growth, ones, shifted=False))
    gradients = tensors(grown(moment_growth(growth, 1), ones, shifted=False))
    return {name: (weights[name], gradients[name]) for name in weights}


CASES = {
    "hidden alone": {"hidden": 24},
    "hidden, no multiple": {"hidden": 31},
    "units in unequal shares": {"ffn": 33, "kv_groups": 6},
    "all": {"hidden": 36, "ffn": 50, "kv_groups": 8, "heads": 24},
}


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", sample(["llama", "qwen", "tele"], "llama"))
def test_settings_that_follow_both_factors_keep_every_trajectory(
    name: str, sizes: Mapping[str, int]
) -> None:
    """Tied or not, biases or none, unequal shares too, if each entry gets its own settings."""
    config = replace(CONFIGS[name], layers=2)
    target = Target(**sizes, methods=parse_methods("copy"), copy_noise=0.0)  # type: ignore[arg-type]
    growth = grow(config, target, config.vocab, config.vocab)
    small = start(config, dict.fromkeys(logical_tensors(config), (LR, EPS, DECAY)))
    small.train(BEFORE)
    settings: dict[str, Setting] = {
        tensor: (LR * f, EPS * g, DECAY / f) for tensor, (f, g) in factors_of(growth).items()
    }
    assert gap(small, continued(small, growth, settings)) <= EQUAL
