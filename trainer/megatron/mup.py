"""muP's settings by kind of tensor, for megatron-core's optimizer.

muP carries settings over from narrow models to wide ones, if each kind of tensor has its own. With
m, the width over the base width, a narrow model's AdamW is continued by what growth from the base
width would do to its settings (:mod:`flmgrow.model.mup`). Only the head differs: growth keeps the
effective multiplier of the logits, while a model that starts wide has them divided by m. If a is
the output multiplier that the base model would have, over the one there is (1 but for models that
flmgrow grew), then the head takes a for the learning rate and 1 / (a m) for epsilon.

megatron-core 0.16 has none of this, but it takes overrides for param groups, and its schedule
follows their learning rates. Each group names its kind, so that a growth can tell them apart.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.config import ModelConfig
from flmgrow.model.mup import EXPONENTS, KIND, Kind, kind_of
from flmgrow.model.tensors import logical_tensors
from flmgrow.trainer.megatron.core import (
    ParamKey,
    ParamWithNamePredicate,
    get_standard_config_overrides,
)

Matches = Callable[[torch.Tensor, str], bool]

_NAME = re.compile(r"(?:^|\.)((?:embedding|decoder|output_layer)\..+)")
_LAYER = re.compile(r"layers\.\d+\.")


@dataclass(frozen=True)
class Scale:
    """What multiplies the settings of a kind of tensors."""

    learning_rate: float = 1.0
    epsilon: float = 1.0

    @property
    def weight_decay(self) -> float:
        """Chosen so that its product with the learning rate stays."""
        return 1.0 / self.learning_rate


def kinds_by_key(config: ModelConfig) -> dict[str, Kind]:
    """Return the kind of every parameter of megatron-core's GPT, by its keys for any layer: its own
    and that in Transformer Engine's layers.
    """
    tensors = logical_tensors(config)
    found: dict[str, Kind] = {}
    for row in ROWS:
        for part in row.parts:
            if part in tensors:
                for fused in (False, True):
                    found.setdefault(row.name(fused), kind_of(tensors[part]))
    return found


def mup_scales(config: ModelConfig, base_output: float | None = None) -> dict[Kind, Scale]:
    """Return the table by kind. ``base_output`` is the base model's output multiplier, if other."""
    m, output = config.width_multiplier, config.multipliers.output
    raised = (output if base_output is None else base_output) / output
    scales = {kind: Scale(m**x.rate, m**x.epsilon) for kind, x in EXPONENTS.items()}
    return {**scales, Kind.HEAD: Scale(raised, 1 / (raised * m))}


def mup_overrides(
    config: ModelConfig, settings: Any, base_output: float | None = None
) -> dict[ParamKey, dict[str, float | str]]:
    """Return ``config_overrides`` for ``get_megatron_optimizer`` (``settings``: OptimizerConfig).

    They come on top of megatron-core's own, which spare norms and biases weight decay.
    """
    overrides: dict[ParamKey, dict[str, float | str]] = get_standard_config_overrides(settings)

    def override(kind: Kind, matches: Matches, what: str, **changed: float | str) -> None:
        of_kind = ParamWithNamePredicate(name=f"muP {what} of {kind}", fn=matches)
        overrides[ParamKey(with_name_predicate=of_kind)] = changed

    for kind, scale in mup_scales(config, base_output).items():
        of_kind = _is(kind, config)
        override(kind, of_kind, "kind", **{KIND: str(kind)})
        if scale.learning_rate != 1.0:
            floor = (settings.min_lr or 0.0) * scale.learning_rate
            override(kind, of_kind, "rate", max_lr=settings.lr * scale.learning_rate, min_lr=floor)
            override(kind, _decaying(of_kind), "decay", wd_mult=scale.weight_decay)
        if scale.epsilon != 1.0:
            override(kind, of_kind, "epsilon", eps=settings.adam_eps * scale.epsilon)
    return overrides


def _decaying(matches: Matches) -> Matches:
    # A tied model's final norm is of the head's kind, and norms are spared weight decay.
    def both(parameter: torch.Tensor, name: str) -> bool:
        return parameter.ndim > 1 and not name.endswith(".bias") and matches(parameter, name)

    return both


def _is(kind: Kind, config: ModelConfig) -> Matches:
    kinds = kinds_by_key(config)

    def matches(_: torch.Tensor, name: str) -> bool:
        key = _NAME.search(name)
        return key is not None and kinds[_LAYER.sub("layers.{layer}.", key[1])] is kind

    return matches
