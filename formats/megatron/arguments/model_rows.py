"""The arguments that say what a model computes: sizes, kinds of layers, constants.

What Megatron-LM has no argument for (xPos, the paper's attention scale) stands under names of our
own, with the prefix ``flmgrow_``. muP's constants are in ``mup_rows.py``.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flmgrow.formats.fields import MAX_LAYERS
from flmgrow.formats.megatron.arguments.row import (
    Arguments,
    ModelArgument,
    ReadArgument,
    always,
    as_it_is,
    choice,
    flag,
    integer,
    number,
    optional_integer,
    optional_number,
)
from flmgrow.model.config import ModelConfig

T = TypeVar("T")
POSITION_KINDS = {"learned": "learned_absolute", "xpos": "rope"}
"""What Megatron-LM calls kinds of positions, where it does not call them alike."""

LLAMA_3_FACTOR = 8.0
"""Megatron-LM's factor of ``--use-rope-scaling`` where none is given."""


def _grouped(config: ModelConfig) -> bool:
    return config.queries_per_group > 1


LAYERS = ModelArgument(
    "num_layers", integer(most=MAX_LAYERS), value=lambda config: config.layers, when=always
)


def _encoder_is_stored(arguments: Arguments, _config: ModelConfig) -> bool:
    return ENCODER_LAYERS.get(arguments) is not None


ENCODER_LAYERS = ModelArgument(
    "encoder_num_layers",
    optional_integer,
    value=lambda config: config.layers,
    when=_encoder_is_stored,
)
"""Megatron-LM derives it from ``LAYERS``."""

HIDDEN = ModelArgument("hidden_size", integer(), value=lambda config: config.hidden, when=always)
FFN = ModelArgument("ffn_hidden_size", integer(), value=lambda config: config.ffn, when=always)


def _is_ffn(arguments: Arguments, _config: ModelConfig) -> bool:
    width = FFN.get(arguments)
    return width is not None and MOE_FFN.get(arguments) == width


MOE_FFN = ModelArgument(
    "moe_ffn_hidden_size",
    optional_integer,
    understood=False,
    value=lambda config: config.ffn,
    when=_is_ffn,
)
"""Megatron-LM fills it in from ``FFN``, without any experts, too."""

HEADS = ModelArgument(
    "num_attention_heads", integer(), value=lambda config: config.heads, when=always
)
HEAD_DIM = ModelArgument(
    "kv_channels", integer(), value=lambda config: config.head_dim, when=always
)
GROUPED = ModelArgument("group_query_attention", flag(), value=_grouped, when=always)


def _groups_matter(arguments: Arguments, config: ModelConfig) -> bool:
    """Whether anybody looks at the groups, or somebody gave them: 1 is what Megatron-LM fills in
    for a multi-head model.
    """
    given = GROUPS.get(arguments) not in (None, 1)
    return _grouped(config) or bool(GROUPED.get(arguments)) or given


GROUPS = ModelArgument(
    "num_query_groups",
    integer(),
    value=lambda config: config.kv_groups if _grouped(config) else 1,
    when=_groups_matter,
    grown=lambda _, config: config.kv_groups,
)
MAX_POSITIONS = ModelArgument(
    "max_position_embeddings", integer(), value=lambda config: config.max_positions
)
POSITIONS = ModelArgument(
    "position_embedding_type",
    choice(("learned_absolute", "rope", "none"), "learned_absolute"),
    value=lambda config: POSITION_KINDS.get(config.positions, config.positions),
)
USE_ROTARY = ModelArgument(
    "use_rotary_position_embeddings",
    flag(),
    value=lambda _: False,
)
"""An older way to say rotary ``POSITIONS``."""


def _plain_number(value: float) -> float:
    return int(value) if value.is_integer() else value


ROTARY_BASE = ModelArgument(
    "rotary_base", number(10000.0), value=lambda config: _plain_number(config.rotary.base)
)
ROTARY_PERCENT = ModelArgument(
    "rotary_percent", number(1.0), value=lambda config: config.rotary.percent
)
INTERLEAVED = ModelArgument(
    "rotary_interleaved", flag(), value=lambda config: config.rotary.interleaved
)
INTERPOLATION = ModelArgument(
    "rotary_seq_len_interpolation_factor",
    optional_number,
    value=lambda config: config.rotary.interpolation,
)
USE_SCALING = ModelArgument(
    "use_rope_scaling", flag(), value=lambda config: config.rotary.scaling_factor is not None
)


def _scaling_factor(config: ModelConfig) -> float:
    factor = config.rotary.scaling_factor
    return LLAMA_3_FACTOR if factor is None else factor


SCALING_FACTOR = ModelArgument("rope_scaling_factor", number(LLAMA_3_FACTOR), value=_scaling_factor)
NORM = ModelArgument(
    "normalization",
    choice(("LayerNorm", "RMSNorm"), "LayerNorm"),
    value=lambda config: "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
)
NORM_EPS = ModelArgument(
    "norm_epsilon",
    number(1e-5),
    "layernorm_epsilon",
    value=lambda config: config.norm_eps,
    when=always,
)
ZERO_CENTRED = ModelArgument(
    "apply_layernorm_1p",
    flag(),
    "layernorm_zero_centered_gamma",
    value=lambda config: config.zero_centred_gain,
)
SWIGLU = ModelArgument("swiglu", flag(), value=lambda config: config.activation == "swiglu")
SQUARED_RELU = ModelArgument(
    "squared_relu", flag(), value=lambda config: config.activation == "squared_relu"
)
TANH_GELU = ModelArgument(
    "openai_gelu", flag(), value=lambda config: config.activation == "gelu_tanh"
)
FUSED_GELU = ModelArgument("bias_gelu_fusion", flag(), value=lambda _: False)
"""The fused kernel of a linear layer's bias and GELU, which is the tanh approximation."""

LINEAR_BIAS = ModelArgument("add_bias_linear", flag(True), value=lambda config: config.linear_bias)
QKV_BIAS = ModelArgument(
    "add_qkv_bias", flag(), value=lambda config: config.qkv_bias and not config.linear_bias
)
QK_NORM = ModelArgument("qk_layernorm", flag(), value=lambda config: config.qk_norm)
SOFTMAX_SCALE = ModelArgument(
    "softmax_scale", optional_number, value=lambda config: config.multipliers.attention
)
UNTIED = ModelArgument(
    "untie_embeddings_and_output_weights",
    flag(),
    value=lambda config: not config.tied,
    when=always,
)


def _one_kind(arguments: Arguments, _config: ModelConfig) -> bool:
    kinds = COMM_TYPE.get(arguments)
    return isinstance(kinds, list) and len(kinds) > 1 and len({str(kind) for kind in kinds}) == 1


def _first_kind(arguments: Arguments, _config: ModelConfig) -> object:
    kinds = COMM_TYPE.get(arguments)
    return kinds[:1] if isinstance(kinds, list) else kinds


COMM_TYPE = ModelArgument(
    "cp_comm_type",
    as_it_is,
    understood=False,
    value=lambda _: None,
    when=_one_kind,
    grown=_first_kind,
)
"""How context-parallel ranks exchange keys; one entry is for all layers, however many there are."""


def _own(
    name: str, reading: ReadArgument[T], value: Callable[[ModelConfig], object], usual: object
) -> ModelArgument[T]:
    """Return the row of an argument of our own, which is written where it is not as usual."""
    return ModelArgument(name, reading, value=value, when=lambda _, config: value(config) != usual)


def _of_xpos(
    name: str, reading: ReadArgument[T], value: Callable[[ModelConfig], object], usual: object
) -> ModelArgument[T]:
    """Return the row of an argument of our own that only a model with xPos has."""
    return ModelArgument(
        name,
        reading,
        value=value,
        when=lambda _, config: config.positions == "xpos" and value(config) != usual,
    )


BY_INVERSE_LAYER = _own(
    "flmgrow_attention_by_inverse_layer",
    flag(),
    lambda config: config.multipliers.attention_by_inverse_layer,
    False,
)
RESIDUAL_MULTIPLIER = _own(
    "flmgrow_residual_multiplier", number(1.0), lambda config: config.multipliers.residual, 1.0
)
XPOS_SCALE_BASE = _of_xpos(
    "flmgrow_xpos_scale_base", number(512.0), lambda config: config.rotary.xpos_scale_base, None
)
XPOS_CENTRE = _of_xpos(
    "flmgrow_xpos_centre", optional_integer, lambda config: config.rotary.xpos_centre, 0
)

OWN_ROWS: tuple[ModelArgument[Any], ...] = (
    BY_INVERSE_LAYER,
    RESIDUAL_MULTIPLIER,     XPOS_SCALE_BASE, XPOS_CENTRE,
)  # fmt: skip
MODEL_ROWS: tuple[ModelArgument[Any], ...] = (
    LAYERS, ENCODER_LAYERS, HIDDEN, FFN, MOE_FFN, HEADS, HEAD_DIM, GROUPED, GROUPS, MAX_POSITIONS,
    POSITIONS, USE_ROTARY, ROTARY_BASE, ROTARY_PERCENT, INTERLEAVED, INTERPOLATION, USE_SCALING,
    SCALING_FACTOR, NORM, NORM_EPS, ZERO_CENTRED, SWIGLU, SQUARED_RELU, TANH_GELU, FUSED_GELU,
    LINEAR_BIAS, QKV_BIAS, QK_NORM, SOFTMAX_SCALE, UNTIED, COMM_TYPE, *OWN_ROWS,
)  # fmt: skip
