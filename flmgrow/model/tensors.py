"""The logical tensors of a decoder: their axes, the role they play on each, how fresh entries
start.

Everything growth does follows from these few lines, and no growth rule names a tensor. Roles that
depend on the model are decided here, once: with tied embeddings the final norm *carries* what the
head would take; where queries are normalised after their projection it is the query norm, not
the projection, that the attention scores are proportional to: what is projected is *normed*; and
where what a branch adds is normalised, it is that norm that can make it zero.
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


def _pre_norm(config: ModelConfig, branch: str) -> list[LogicalTensor]:
    """Declare the norm that a branch reads through, if there is one."""
    if not config.norms_before:
        return []
    return _norm(f"{branch}_norm", config, layer="plain", hidden="gains")


def _post_norm(config: ModelConfig, branch: str) -> list[LogicalTensor]:
    """Declare the norm of what a branch adds, if there is one: it is the branch's last word."""
    if not config.norms_after:
        return []
    return _norm(f"{branch}_post_norm", config, layer="branch", hidden="gains")


def _last_word(config: ModelConfig) -> str:
    """Return the role on the layer axis of the projection that a branch ends with."""
    return "plain" if config.norms_after else "branch"


def _qk_norms(config: ModelConfig) -> list[LogicalTensor]:
    if not config.qk_norm:
        return []
    heads = {"kv_group": "gains", "query_per_group": "gains"}
    keys = {"kv_group": "gains"}
    if not config.qk_norm_of_all:
        heads = keys = {}
    return [
        *_norm("query_norm", config, layer="scores", **heads, head_dim="plain"),
        *_norm("key_norm", config, layer="plain", **keys, head_dim="plain"),
    ]


def _attention(config: ModelConfig) -> list[LogicalTensor]:
    score, entry = ("plain", "normed") if config.qk_norm else ("scores", "plain")
    head = "writes+normed" if config.qk_norm_of_all else "writes"
    heads = {"kv_group": head, "query_per_group": head, "head_dim": entry}
    keys = {"kv_group": head, "head_dim": entry}
    values = {"kv_group": "writes", "head_dim": "plain"}
    last = _last_word(config)
    tensors = [
        *_pre_norm(config, "attention"),
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
    tensors += _qk_norms(config)
    tensors.append(
        _tensor(
            "attention_out",
            layer=last,
            hidden="writes",
            kv_group="reads",
            query_per_group="reads",
            head_dim="plain",
        )
    )
    if config.attention_out_bias:
        tensors.append(_tensor("attention_out.bias", Init.ZEROS, layer=last, hidden="writes"))
    return tensors + _post_norm(config, "attention")


def _ffn(config: ModelConfig) -> list[LogicalTensor]:
    inward, last = ["gate", "up"] if config.gated else ["up"], _last_word(config)
    tensors = [
        *([] if config.residual == "parallel_one_norm" else _pre_norm(config, "ffn")),
        *(_tensor(name, layer="plain", ffn="writes", hidden="reads") for name in inward),
        _tensor("down", layer=last, hidden="writes", ffn="reads"),
    ]
    if config.linear_bias:
        tensors += [
            *(_tensor(f"{name}.bias", Init.ZEROS, layer="plain", ffn="writes") for name in inward),
            _tensor("down.bias", Init.ZEROS, layer=last, hidden="writes"),
        ]
    return tensors + _post_norm(config, "ffn")


def logical_tensors(config: ModelConfig) -> dict[str, LogicalTensor]:
    """Return every logical tensor of the model by name, in the order of the forward pass."""
    tensors = [_tensor("embedding", vocab="plain", hidden="writes+embeds")]
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
