"""muP carries settings over from narrow models to wide ones, if each kind of tensor has its own.

With m, the width over the base width, a narrow model's AdamW is continued by (``f`` multiplies the
learning rate and divides the weight decay, ``g`` multiplies epsilon):

====================================================  ==========  ==========
tensors                                               f           g
====================================================  ==========  ==========
hidden matrices                                       1 / m       1 / m
embedding (its own head's too), positions, biases,    1           1 / m
norms over hidden channels
norms over a head's entries, which all heads share    1           1
a head of its own, with logits times output / m       a           1 / (a m)
====================================================  ==========  ==========

Here a is the output multiplier that the base model would have, over the one there is. It is 1 but
for models that flmgrow grew: growth keeps the product, and so raises the multiplier.
``docs/concepts/optimizer-state.md`` derives the rules. megatron-core 0.16 has none of this, but it
takes overrides for param groups, and its schedule follows their learning rates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flmgrow.model.config import ModelConfig
from flmgrow.trainer import cpu

cpu.install()

from megatron.core.optimizer import get_standard_config_overrides  # noqa: E402
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate  # noqa: E402


@dataclass(frozen=True)
class Scale:
    """What multiplies the settings of a kind of tensors."""

    learning_rate: float = 1.0
    epsilon: float = 1.0

    @property
    def weight_decay(self) -> float:
        """Chosen so that its product with the learning rate stays."""
        return 1.0 / self.learning_rate


def kind_of(name: str, parameter: torch.Tensor, config: ModelConfig) -> str:
    """Return the kind of a parameter of megatron-core's GPT: hidden, vector, shared or head."""
    if "output_layer." in name:
        return "vector" if config.tied else "head"
    if "q_layernorm." in name or "k_layernorm." in name:
        return "shared"
    return "vector" if "embedding" in name or parameter.ndim == 1 else "hidden"


def mup_scales(config: ModelConfig, base_output: float | None = None) -> dict[str, Scale]:
    """Return the table by kind. ``base_output`` is the base model's output multiplier, if other."""
    m, output = config.width_multiplier, config.multipliers.output
    raised = (output if base_output is None else base_output) / output
    return {
        "hidden": Scale(1 / m, 1 / m),
        "vector": Scale(epsilon=1 / m),
        "shared": Scale(),
        "head": Scale(raised, 1 / (raised * m)),
    }


def mup_overrides(
    config: ModelConfig, settings: Any, base_output: float | None = None
) -> dict[ParamKey, dict[str, float]]:
    """Return ``config_overrides`` for ``get_megatron_optimizer`` (``settings``: OptimizerConfig).

    They come on top of megatron-core's own, which spare norms and biases weight decay.
    """
    overrides: dict[ParamKey, dict[str, float]] = get_standard_config_overrides(settings)
    for kind, scale in mup_scales(config, base_output).items():
        changed = {}
        if scale.learning_rate != 1.0:
            changed["max_lr"] = settings.lr * scale.learning_rate
            changed["min_lr"] = (settings.min_lr or 0.0) * scale.learning_rate
            changed["wd_mult"] = scale.weight_decay
        if scale.epsilon != 1.0:
            changed["eps"] = settings.adam_eps * scale.epsilon
        if changed:
            of_kind = ParamWithNamePredicate(name=f"muP {kind}", fn=_is(kind, config))
            overrides[ParamKey(with_name_predicate=of_kind)] = changed
    return overrides


def _is(kind: str, config: ModelConfig) -> Callable[[torch.Tensor, str], bool]:
    return lambda parameter, name: kind_of(name, parameter, config) == kind
