"""megatron-core's own faster ways of computing the same, and whether they are here.

They are asked for by name and never needed: some want a package or a GPU that is not everywhere, or
a model of a certain kind. What is asked for and cannot be had is told, and the stage trains without
it.
Each changes the rounding of a step, and no function; so what is taken is told where a stage begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from flmgrow.model.config import ModelConfig
from flmgrow.trainer.megatron.core import rope_utils


@dataclass(frozen=True)
class Switch:
    """A way of computing: what it sets in megatron-core's TransformerConfig.

    ``lacks`` says why it cannot be had for a model here, or None.
    """

    settings: Mapping[str, Any]
    lacks: Callable[[ModelConfig], str | None]


@dataclass(frozen=True)
class Switches:
    """The switches of a run: those ``taken``, and why each of the others is ``left_out``."""

    taken: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What they set in megatron-core's TransformerConfig."""
        return {key: value for name in self.taken for key, value in SWITCHES[name].settings.items()}


def switches_of(names: Sequence[str], config: ModelConfig) -> Switches:
    """Return what becomes of the switches ``names`` for a model."""
    reasons = {name: SWITCHES[name].lacks(config) for name in dict.fromkeys(names)}
    taken = tuple(name for name, reason in reasons.items() if reason is None)
    return Switches(taken, {name: reason for name, reason in reasons.items() if reason is not None})


def _nothing(_: ModelConfig) -> None:
    """Lack nothing: it is torch's own."""


def _only_swiglu(config: ModelConfig) -> str | None:
    # Of GELU megatron-core fuses the approximation by tanh only: another function.
    if config.activation == "swiglu":
        return None
    return f"it is there for swiglu, the model has {config.activation}"


def _transformer_engine(config: ModelConfig) -> str | None:
    if config.positions != "rope":
        return f"it is there for rope, the model has {config.positions}"
    if config.rotary.interleaved:
        return "it is there for halves that are rotated, the model's pairs are interleaved"
    if reason := _missing("transformer_engine", "Transformer Engine"):
        return reason
    if rope_utils.fused_apply_rotary_pos_emb is None:
        return "megatron-core finds no such kernel in the Transformer Engine that is installed here"
    return None


def _apex(_: ModelConfig) -> str | None:
    return _missing("fused_weight_gradient_mlp_cuda", "Apex's CUDA extensions")


def _not_ours(_: ModelConfig) -> str:
    return "it needs Transformer Engine's layers, the trainer's are torch's own"


def _missing(module: str, what: str) -> str | None:
    """Return what is missing of ``what``, a ``module`` that runs on a GPU only."""
    if find_spec(module) is None:
        return f"it needs {what}, not installed here"
    if not torch.cuda.is_available():
        return f"it needs a GPU for {what}, none is here"
    try:
        import_module(module)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a library is lacking, or built for another
        first = str(error).partition("\n")[0]
        return f"it needs {what}, which cannot be imported here: {first}"
    return None


SWITCHES: Mapping[str, Switch] = {
    "cross_entropy_fusion": Switch({"cross_entropy_loss_fusion": True}, _nothing),
    "activation_fusion": Switch({"bias_activation_fusion": True}, _only_swiglu),
    "rope_fusion": Switch({"apply_rope_fusion": True}, _transformer_engine),
    "gradient_accumulation_fusion": Switch({"gradient_accumulation_fusion": True}, _apex),
    "fp8": Switch({}, _not_ours),
}
