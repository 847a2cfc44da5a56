"""The logical tensors of a decoder: their axes, the role they play on each, how fresh entries
start.

Everything growth does follows from these few lines, and no growth rule names a tensor. Roles that
depend on the model are decided here, once: with tied embeddings the final norm *carries* what the
head would take, and where queries are normalised after their projection it is the query norm, not
the projection, that the attention scores are proportional to: what is projected is *normed*.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from flmgrow.model.axes import Axis, Box, Role, Sizes
from flmgrow.model.config import ModelConfig


class Init(StrEnum):
    """A tensor's own initialisation, used for entries that are drawn."""

    NORMAL = "normal"
    ZEROS = "zeros"
    ONES = "ones"


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor with named axes, each with its roles.

    Layered tensors have ``layer`` as their first axis.

    ``shift`` is what must be added to stored values to get logical ones (1 for a gain stored as
    gain - 1).
    """

    name: str
    axes: tuple[Axis, ...]
    roles: tuple[frozenset[Role], ...]
    init: Init = Init.NORMAL
    shift: float = 0.0

    @property
    def layered(self) -> bool:
        """Whether there is one of these in every layer."""
        return Axis.LAYER in self.axes

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the full shape for a model of ``sizes``."""
        return tuple(sizes[axis] for axis in self.axes)

    def box(self, ranges: Mapping[Axis, tuple[int, int]]) -> Box:
        """Return the box with the given range on each of this tensor's axes."""
        return Box(tuple([ranges[axis] for axis in self.axes]))


def _tensor(
    name: str, init: Init = Init.NORMAL, shift: float = 0.0, /, **axes: str
) -> LogicalTensor:
    """Declare a tensor as ``axis="role"`` or ``axis="role+role"``, axes in storage order."""
    return LogicalTensor(
        name,
        tuple(Axis(axis) for axis in axes),
        tuple(frozenset(Role(role) for role in roles.split("+")) for roles in axes.values()),
        init,
        shift,
    )


def _norm(name: str, config: ModelConfig, roles: str = "", **axes: str) -> list[LogicalTensor]:
    """Declare a norm's gain and, for LayerNorm, its bias.

    ``roles`` are added to both on the last axis.
    """
    *outer, last = axes
    gain = {
        **{axis: axes[axis] for axis in outer},
        last: "+".join(filter(None, [axes[last], roles])),
    }
    shift = 1.0 if config.zero_centred_gain else 0.0
    tensors = [_tensor(f"{name}.gain", Init.ONES, shift, **gain)]
    if config.norm == "layernorm":
        bias = {axis: role.replace("gains", "norm_bias") for axis, role in gain.items()}
        tensors.append(_tensor(f"{name}.bias", Init.ZEROS, **bias))
    return tensors


def _attention(config: ModelConfig) -> list[LogicalTensor]:
    score, entry = ("plain", "normed") if config.qk_norm else ("scores", "plain")
    heads = {"kv_group": "writes", "query_per_group": "writes", "head_dim": entry}
    keys = {"kv_group": "writes", "head_dim": entry}
    values = {"kv_group": "writes", "head_dim": "plain"}
    tensors = [
        *_norm("attention_norm", config, layer="plain", hidden="gains"),
        _tensor("query", layer=score, **heads, hidden="reads"),
        _tensor("key", layer="plain", **keys, hidden="reads"),
        _tensor("value", layer="plain", **values, hidden="reads"),
    ]
    if config.qkv_bias:
        tensors += [
            _tensor("query.bias", Init.ZEROS, layer=score, **heads),
            _tensor("key.bias", Init.ZEROS, layer="plain", **keys),
            _tensor("value.bias", Init.ZEROS, layer="plain", **values),
        ]
    if config.qk_norm:
        tensors += _norm("query_norm", config, layer="scores", head_dim="plain")
        tensors += _norm("key_norm", config, layer="plain", head_dim="plain")
    tensors.append(
        _tensor(
            "attention_out",
            layer="branch",
            hidden="writes",
            kv_group="reads",
            query_per_group="reads",
            head_dim="plain",
        )
    )
    if config.attention_out_bias:
        tensors.append(_tensor("attention_out.bias", Init.ZEROS, layer="branch", hidden="writes"))
    return tensors


def _ffn_norm(config: ModelConfig) -> list[LogicalTensor]:
    return _norm("ffn_norm", config, layer="plain", hidden="gains")


def _ffn(config: ModelConfig) -> list[LogicalTensor]:
    inward = ["gate", "up"] if config.gated else ["up"]
    tensors = [
        *([] if config.residual == "parallel_one_norm" else _ffn_norm(config)),
        *(_tensor(name, layer="plain", ffn="writes", hidden="reads") for name in inward),
        _tensor("down", layer="branch", hidden="writes", ffn="reads"),
    ]
    if config.linear_bias:
        tensors += [
            *(_tensor(f"{name}.bias", Init.ZEROS, layer="plain", ffn="writes") for name in inward),
            _tensor("down.bias", Init.ZEROS, layer="branch", hidden="writes"),
        ]
    return tensors


def logical_tensors(config: ModelConfig) -> dict[str, LogicalTensor]:
    """Return every logical tensor of the model by name, in the order of the forward pass."""
    tensors = [_tensor("embedding", vocab="plain", hidden="writes")]
    if config.positions == "learned":
        tensors.append(_tensor("position_embedding", position="plain", hidden="writes"))
    tensors += _attention(config) + _ffn(config)
    tensors += _norm("final_norm", config, roles="carries" if config.tied else "", hidden="gains")
    if not config.tied:
        tensors.append(_tensor("head", vocab="plain", hidden="reads"))
    return {tensor.name: tensor for tensor in tensors}


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters of a model; vocabulary padding is not counted."""
    return sum(prod(tensor.shape(config.sizes)) for tensor in logical_tensors(config).values())
