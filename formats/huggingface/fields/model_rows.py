"""The fields that say what a model computes, but for rotary positions: sizes, norms, activations.

Most families have Llama's names; those that are made of GPT-2 have names of their own for sizes,
and each has one for something.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flmgrow.formats.fields import MAX_LAYERS
from flmgrow.formats.huggingface.fields.row import (
    ARCEE,
    FLM,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT_BIGCODE,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MISTRAL,
    NEMOTRON,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
    STABLELM,
    STARCODER2,
    Field,
    Use,
    as_it_is,
    choice,
    flag,
    integer,
    number,
)
from flmgrow.formats.huggingface.fields.switch_rows import BIASES, OFF, ON, SCALED_SCORES
from flmgrow.model.config import Activation, ModelConfig

GEMMAS = (GEMMA, GEMMA2, GEMMA3)
_RMS_NORMED = (
    LLAMA, QWEN2, QWEN3, MISTRAL, GRANITE, SEED_OSS, ARCEE, PHI3, SMOLLM3, OLMO2, *GEMMAS,
)  # fmt: skip
KIN = (*_RMS_NORMED, NEMOTRON, STABLELM, STARCODER2)
"""Families with Llama's names for sizes, groups of heads among them."""

PARTLY_ROTATED = (NEMOTRON, STABLELM, PHI3)
"""Those of them that say which share of a head they rotate."""

GPTS = (GPT2, FLM, GPT_BIGCODE)
_GATED = (LLAMA, QWEN2, QWEN3, MISTRAL, GRANITE, SEED_OSS, STABLELM, PHI3, SMOLLM3, OLMO2)
_BIASED = (LLAMA, GRANITE, ARCEE, NEMOTRON, SMOLLM3)
"""Those with a switch for attention's biases, and one for the FFN's."""

BIASED_IN_ATTENTION = (OLMO2, *GEMMAS)
"""Those with the first of these alone."""

MAX_WIDTH = 1 << 30
"""More is taken for damage, before it is divided by."""

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "squared_relu",
}
"""By transformers' name; of several, a family's usual one is written, or the first."""

_GELU = "gelu_pytorch_tanh"
GATED_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "swiglu", _GELU: "geglu_tanh", "gelu": "geglu",
}  # fmt: skip
"""Those of FFNs with a gate, by what transformers calls the gate's."""


def _gate(config: ModelConfig) -> str:
    names = [name for name, each in GATED_ACTIVATIONS.items() if each == config.activation]
    return names[0] if names else "silu"


def _activation(usual: str, *families: str) -> Use[str]:
    """Return how families whose ``usual`` activation that is name the one they have."""

    def name(config: ModelConfig) -> str:
        """Return transformers' name of it; of another one if it has none."""
        names = [n for n in (usual, *ACTIVATIONS) if ACTIVATIONS[n] == config.activation]
        return names[0] if names else "gelu"

    return Use(families, choice(*ACTIVATIONS), usual, name)


def _size(
    name: str, *families: str, value: Callable[[ModelConfig], int], most: int | None = None
) -> Field[int]:
    """Return the row of a size that is always there, or follows from others."""
    return Field(name, (Use(families, integer(most), value=value),))


# --- Sizes

VOCAB = _size("vocab_size", *KIN, GPT_NEOX, *GPTS, value=lambda config: config.vocab)
HIDDEN = _size("hidden_size", *KIN, GPT_NEOX, value=lambda config: config.hidden)
FFN = _size("intermediate_size", *KIN, GPT_NEOX, value=lambda config: config.ffn)
LAYERS = _size(
    "num_hidden_layers", *KIN, GPT_NEOX, value=lambda config: config.layers, most=MAX_LAYERS
)
HEADS = _size("num_attention_heads", *KIN, GPT_NEOX, value=lambda config: config.heads)


def _groups(config: ModelConfig) -> int:
    return config.kv_groups


def _head_dim(config: ModelConfig) -> int:
    return config.head_dim


_UNSAID_GROUPS = tuple(name for name in KIN if name not in GEMMAS)
GROUPS = Field(
    "num_key_value_heads",
    (
        Use((*_UNSAID_GROUPS, GPT_BIGCODE), integer(), value=_groups),
        Use((GEMMA,), integer(), 16, _groups),
        Use((GEMMA2, GEMMA3), integer(), 4, _groups),
    ),
)
"""Without it, there is one group per head, but in Gemma. GPT-BigCode writes it, and goes by
``MULTI_QUERY``.
"""

_UNSAID_HEAD_DIM = tuple(name for name in _RMS_NORMED if name not in (QWEN3, *GEMMAS))
HEAD_DIM = Field(
    "head_dim",
    (
        Use((*_UNSAID_HEAD_DIM, NEMOTRON, STARCODER2, FLM), integer(), value=_head_dim),
        Use((QWEN3,), integer(), 128, _head_dim),
        Use(GEMMAS, integer(), 256, _head_dim),
    ),
)
"""Without it, the heads together are as wide as the model, but in some. In FLM, a field of our own.
"""

MAX_POSITIONS = _size(
    "max_position_embeddings", *KIN, GPT_NEOX, value=lambda config: config.max_positions
)
N_EMBD = Field(
    "n_embd",
    (
        Use((GPT2, GPT_BIGCODE), integer(), value=lambda config: config.hidden),
        Use((FLM,), integer(MAX_WIDTH), value=lambda config: config.hidden),
    ),
)
N_INNER = _size("n_inner", *GPTS, value=lambda config: config.ffn)
"""Without it, four times the width."""

N_LAYER = _size("n_layer", *GPTS, value=lambda config: config.layers, most=MAX_LAYERS)
N_HEAD = _size("n_head", *GPTS, value=lambda config: config.heads)
N_POSITIONS = _size("n_positions", *GPTS, value=lambda config: config.max_positions)
N_CTX: Field[object] = Field(
    "n_ctx", harmless=True, grown=lambda _stored, _old, new: new.max_positions
)
"""GPT-2's older name of ``N_POSITIONS``, which nobody reads."""


# --- Norms, activations, biases


def _norm_eps(config: ModelConfig) -> float:
    return config.norm_eps


_NONE = (None,)
"""What a family's file may say of another one's epsilon, as Seed-Coder's does, a Llama."""

RMS_NORM_EPS = Field(
    "rms_norm_eps",
    (
        Use(
            (LLAMA, QWEN2, QWEN3, MISTRAL, GRANITE, SEED_OSS, SMOLLM3, *GEMMAS),
            number,
            1e-6,
            _norm_eps,
        ),
        Use((ARCEE, PHI3, OLMO2), number, 1e-5, _norm_eps),
    ),
    neutral=_NONE,
)
LAYER_NORM_EPS = Field(
    "layer_norm_eps", (Use((GPT_NEOX, STABLELM), number, 1e-5, _norm_eps),), _NONE
)
NORM_EPSILON = Field("norm_epsilon", (Use((STARCODER2,), number, 1e-5, _norm_eps),), _NONE)
NORM_EPS = Field("norm_eps", (Use((NEMOTRON,), number, 1e-5, _norm_eps),), _NONE)
LAYER_NORM_EPSILON = Field[Any](
    "layer_norm_epsilon",
    (Use(GPTS, number, 1e-5, _norm_eps), Use[object]((STARCODER2,), as_it_is)),
    _NONE,
)
"""StarCoder 2 of 7B was published with it, too, and goes by ``NORM_EPSILON``."""

HIDDEN_ACT = Field[Any](
    "hidden_act",
    (
        Use(_GATED, choice("silu", "swish"), "silu", lambda _: "silu"),
        _activation("relu2", ARCEE, NEMOTRON),
        _activation("gelu", GPT_NEOX),
        _activation("gelu_pytorch_tanh", STARCODER2),
        Use((GEMMA,), choice(_GELU, "gelu"), _GELU, lambda _: _GELU),
        Use[object]((GEMMA2, GEMMA3), as_it_is, value=_gate),
    ),
)
"""Gemma 1 calls the tanh approximation gelu, too; later ones go by ``HIDDEN_ACTIVATION``."""

HIDDEN_ACTIVATION = Field(
    "hidden_activation",
    (
        Use((GEMMA,), choice(_GELU), _GELU, lambda _: _GELU),
        Use((GEMMA2, GEMMA3), choice(*GATED_ACTIVATIONS), _GELU, _gate),
    ),
)
ACTIVATION_FUNCTION = Field[Any](
    "activation_function",
    (
        _activation("gelu_new", GPT2),
        _activation("gelu_fast", FLM),
        _activation("gelu_pytorch_tanh", GPT_BIGCODE),
        Use[object]((STARCODER2,), as_it_is),
    ),
)
"""StarCoder 2 of 7B was published with it, too, for gelu, and goes by ``HIDDEN_ACT``."""

ATTENTION_BIAS = Field(
    "attention_bias",
    (
        Use((*_BIASED, *BIASED_IN_ATTENTION), flag, False, lambda config: config.qkv_bias),
        Use((GPT_NEOX, SEED_OSS), flag, True, lambda config: config.qkv_bias),
    ),
    neutral=OFF,
    changes=BIASES,
)
ATTENTION_OUT_BIAS = Field(
    "attention_out_bias",
    (Use((SEED_OSS,), flag, False, lambda config: config.attention_out_bias),),
    neutral=OFF,
    changes=BIASES,
)
QKV_BIAS = Field(
    "use_qkv_bias",
    (Use((STABLELM,), flag, False, lambda config: config.qkv_bias),),
    neutral=OFF,
    changes=BIASES,
)
USE_BIAS = Field("use_bias", (Use((STARCODER2,), flag, True, lambda config: config.linear_bias),))
"""Of all projections."""

MLP_BIAS = Field(
    "mlp_bias",
    (Use((*_BIASED, SEED_OSS), flag, False, lambda config: config.linear_bias),),
    neutral=OFF,
    changes=BIASES,
)


def _is_parallel(config: ModelConfig) -> bool:
    return config.residual != "sequential"


PARALLEL = Field(
    "use_parallel_residual",
    (
        Use((GPT_NEOX,), flag, True, _is_parallel),
        Use((STABLELM,), flag, False, _is_parallel),
    ),
)
"""Whether attention and FFN read the same residual; in StableLM, through one norm."""

_TIED = (SMOLLM3, STARCODER2, *GEMMAS)
_UNTIED = (*(name for name in KIN if name not in _TIED), GPT_NEOX)
TIED = Field(
    "tie_word_embeddings",
    (
        Use(_UNTIED, flag, False, lambda config: config.tied),
        Use((*GPTS, *_TIED), flag, True, lambda config: config.tied),
    ),
)


# --- Attention

SCALED = Field(
    "scale_attn_weights",
    (Use(GPTS, flag, True, lambda config: config.multipliers.attention != 1.0),),
    neutral=ON,
    changes=SCALED_SCORES,
)
BY_INVERSE_LAYER = Field(
    "scale_attn_by_inverse_layer_idx",
    (Use((GPT2, FLM), flag, False, lambda c: c.multipliers.attention_by_inverse_layer),),
    neutral=OFF,
    changes=SCALED_SCORES,
)
MULTI_QUERY = Field(
    "multi_query",
    (Use((GPT_BIGCODE,), flag, True, lambda config: config.kv_groups == 1),),
)
"""Whether all heads share one key and one value; else each has its own."""


MODEL_ROWS: tuple[Field[Any], ...] = (
    VOCAB, HIDDEN, FFN, LAYERS, HEADS, GROUPS, HEAD_DIM, MAX_POSITIONS, N_EMBD, N_INNER, N_LAYER,
    N_HEAD, N_POSITIONS, N_CTX, RMS_NORM_EPS, LAYER_NORM_EPS, NORM_EPS, LAYER_NORM_EPSILON,
    HIDDEN_ACT, ACTIVATION_FUNCTION, ATTENTION_BIAS, ATTENTION_OUT_BIAS, QKV_BIAS, MLP_BIAS,
    PARALLEL, USE_BIAS, NORM_EPSILON, TIED, SCALED, BY_INVERSE_LAYER, MULTI_QUERY,
    HIDDEN_ACTIVATION,
)  # fmt: skip
