"""megatron-core's own faster ways of computing the same, and whether they are here.

They are asked for by name and never needed: some want a package or a GPU that is not everywhere, or
a model of a certain kind. What is asked for and cannot be had is told, and the stage trains without
it.
Each changes the rounding of a step, and no function; so what is taken is told where a stage begins.

Numbers of 8 bits are scaled by the largest of the tensor at hand (megatron-core's ``tensorwise``),
not by those of steps before (``delayed``): so nothing has to be carried through a checkpoint, a
growth or another layout beside weights and moments, and a run goes on to the same bits as far as
Transformer Engine's kernels are deterministic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from flmgrow.model.config import ModelConfig
from flmgrow.trainer.megatron.core import HAVE_TE, get_te_version, rope_utils

ENGINE = "transformer_engine"
"""What megatron-core calls layers by Transformer Engine."""
EIGHT_BITS = "fp8"
"""The switch by which matrices are multiplied in 8 bits."""
SIDE = 16
"""What kernels of 8 bits have multiples of on each side of a matrix."""
LEAST_ENGINE = (1, 10)
"""The first Transformer Engine whose attention megatron-core tells the scale of scores: before, it
is 1 / sqrt(head_dim) whatever the model has. And before 1.9 q and k have norms of another module.

Source: ``TEDotProductAttention`` and ``TESpecProvider.layer_norm`` of megatron-core 0.16 to 0.19.
"""
SCALES_AT_HAND = (2, 2)
"""The first Transformer Engine that scales by the tensor at hand."""
CAPABLE = (8, 9)
"""The first compute capability that multiplies numbers of 8 bits."""


@dataclass(frozen=True)
class Computed:
    """What is computed: a model, of which some units were masked where the stage began if
    ``began_masked``, on ``tp`` tensor ranks, of which each has so many ``positions`` of a
    micro-batch between linear layers.
    """

    config: ModelConfig
    began_masked: bool = False
    tp: int = 1
    positions: int = 2048


@dataclass(frozen=True)
class Switch:
    """A way of computing: what it sets in megatron-core's TransformerConfig.

    ``lacks`` says why it cannot be had for what is computed here, or None.
    """

    settings: Mapping[str, Any]
    lacks: Callable[[Computed], str | None]


@dataclass(frozen=True)
class Switches:
    """The switches of a run: those ``taken``, and why each of the others is ``left_out``."""

    taken: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What they set in megatron-core's TransformerConfig."""
        return {key: value for name in self.taken for key, value in SWITCHES[name].settings.items()}


def switches_of(names: Sequence[str], computed: Computed) -> Switches:
    """Return what becomes of the switches ``names`` for what is computed."""
    reasons = {name: SWITCHES[name].lacks(computed) for name in dict.fromkeys(names)}
    taken = tuple(name for name, reason in reasons.items() if reason is None)
    return Switches(taken, {name: reason for name, reason in reasons.items() if reason is not None})


def _nothing(_: Computed) -> None:
    """Lack nothing: it is torch's own."""


def _only_swiglu(computed: Computed) -> str | None:
    # Of GELU megatron-core fuses the approximation by tanh only: another function.
    activation = computed.config.activation
    return None if activation == "swiglu" else f"it is there for swiglu, the model has {activation}"


def _rotation(computed: Computed) -> str | None:
    config = computed.config
    if config.positions != "rope":
        return f"it is there for rope, the model has {config.positions}"
    if config.rotary.interleaved:
        return "it is there for halves that are rotated, the model's pairs are interleaved"
    if reason := _missing("transformer_engine", "Transformer Engine"):
        return reason
    if rope_utils.fused_apply_rotary_pos_emb is None:
        return "megatron-core finds no such kernel in the Transformer Engine that is installed here"
    return None


def _apex(_: Computed) -> str | None:
    return _missing("fused_weight_gradient_mlp_cuda", "Apex's CUDA extensions")


def _engine(computed: Computed) -> str | None:
    if computed.began_masked:
        return "Transformer Engine's layers know no masks, and the stage began with masks"
    if reason := _missing("transformer_engine", "Transformer Engine"):
        return reason
    if not HAVE_TE:
        return "megatron-core cannot use the Transformer Engine installed here"
    return _older_than(LEAST_ENGINE)


def _eight_bits(computed: Computed) -> str | None:
    for what, length in _sides(computed):
        if length % SIDE:
            return f"it multiplies what has multiples of {SIDE}: {what} is {length}"
    if reason := _engine(computed) or _older_than(SCALES_AT_HAND):
        return reason
    if (found := torch.cuda.get_device_capability()) < CAPABLE:
        wanted, has = _dotted(CAPABLE), _dotted(found)
        return f"it needs a GPU of compute capability {wanted} or above, here is one of {has}"
    return None


def _older_than(least: Sequence[int]) -> str | None:
    """Return what is wrong with a Transformer Engine of before version ``least``."""
    if (version := get_te_version()).release >= least:
        return None
    return f"it needs Transformer Engine {_dotted(least)} or later, {version} is here"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _sides(computed: Computed) -> tuple[tuple[str, int], ...]:
    """Return the sides of the matrices that a rank multiplies, by what they are."""
    config, tp = computed.config, computed.tp
    rank = "" if tp == 1 else " of a rank"
    groups, by_group = config.kv_groups // tp, config.queries_per_group * config.head_dim
    return (
        ("the hidden width", config.hidden),
        (f"the width of the FFN{rank}", config.ffn // tp),
        (f"the heads' width{rank}", groups * by_group),
        (f"the width of query, key and value{rank}", groups * (by_group + 2 * config.head_dim)),
        (f"sequence_length x micro_batch{rank}", computed.positions),
    )


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


ENGINE_LAYERS = {"transformer_impl": ENGINE}

SWITCHES: Mapping[str, Switch] = {
    "cross_entropy_fusion": Switch({"cross_entropy_loss_fusion": True}, _nothing),
    "activation_fusion": Switch({"bias_activation_fusion": True}, _only_swiglu),
    "rope_fusion": Switch({"apply_rope_fusion": True}, _rotation),
    "gradient_accumulation_fusion": Switch({"gradient_accumulation_fusion": True}, _apex),
    "transformer_engine": Switch(ENGINE_LAYERS, _engine),
    EIGHT_BITS: Switch({**ENGINE_LAYERS, "fp8": "hybrid", "fp8_recipe": "tensorwise"}, _eight_bits),
}
