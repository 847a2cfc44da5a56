"""The fields that say what a model computes, but for rotary positions: sizes, norms, activations.

Llama and its kin (Granite is one), GPT-NeoX, and the GPT-2 that FLM is made of have names of their
own for most.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flmgrow.formats.fields import MAX_LAYERS
from flmgrow.formats.huggingface.fields.row import (
    FLM,
    GPT2,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    Field,
    Use,
    as_it_is,
    choice,
    flag,
    integer,
    number,
)
from flmgrow.formats.huggingface.fields.switch_rows import BIASES, OFF, ON, SCALED_SCORES, WINDOWS
from flmgrow.model.config import Activation, ModelConfig

LLAMAS = (LLAMA, QWEN2, QWEN3, MISTRAL, GRANITE)
GPTS = (GPT2, FLM)
_QWENS = (QWEN2, QWEN3)
MAX_WIDTH = 1 << 30
"""More is taken for damage, before it is divided by."""

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""By transformers' name; the first of several is the one that is written."""

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""The kinds of layers there may be among ``LAYER_TYPES``."""


def _activation_name(config: ModelConfig) -> str:
    """Return transformers' name of the model's activation; of another one if it has none."""
    names = [theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation]
    return names[0] if names else "gelu"


def _size(
    name: str, *families: str, value: Callable[[ModelConfig], int], most: int | None = None
) -> Field[int]:
    """Return the row of a size that is always there, or follows from others."""
    return Field(name, (Use(families, integer(most), value=value),))


# --- Sizes

VOCAB = _size("vocab_size", *LLAMAS, GPT_NEOX, *GPTS, value=lambda config: config.vocab)
HIDDEN = _size("hidden_size", *LLAMAS, GPT_NEOX, value=lambda config: config.hidden)
FFN = _size("intermediate_size", *LLAMAS, GPT_NEOX, value=lambda config: config.ffn)
LAYERS = _size(
    "num_hidden_layers", *LLAMAS, GPT_NEOX, value=lambda config: config.layers, most=MAX_LAYERS
)
HEADS = _size("num_attention_heads", *LLAMAS, GPT_NEOX, value=lambda config: config.heads)
GROUPS = _size("num_key_value_heads", *LLAMAS, value=lambda config: config.kv_groups)
"""Without it, there is one group per head."""

HEAD_DIM = _size("head_dim", *LLAMAS, FLM, value=lambda config: config.head_dim)
"""Without it, the heads together are as wide as the model. In FLM, a field of our own."""

MAX_POSITIONS = _size(
    "max_position_embeddings", *LLAMAS, GPT_NEOX, value=lambda config: config.max_positions
)
N_EMBD = Field(
    "n_embd",
    (
        Use((GPT2,), integer(), value=lambda config: config.hidden),
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


RMS_NORM_EPS = Field("rms_norm_eps", (Use(LLAMAS, number, 1e-6, _norm_eps),))
LAYER_NORM_EPS = Field("layer_norm_eps", (Use((GPT_NEOX,), number, 1e-5, _norm_eps),))
LAYER_NORM_EPSILON = Field("layer_norm_epsilon", (Use(GPTS, number, 1e-5, _norm_eps),))
HIDDEN_ACT = Field(
    "hidden_act",
    (
        Use(LLAMAS, choice("silu", "swish"), "silu", lambda _: "silu"),
        Use((GPT_NEOX,), choice(*ACTIVATIONS), "gelu", _activation_name),
    ),
)
ACTIVATION_FUNCTION = Field(
    "activation_function",
    (
        Use((GPT2,), choice(*ACTIVATIONS), "gelu_new", _activation_name),
        Use((FLM,), choice(*ACTIVATIONS), "gelu_fast", _activation_name),
    ),
)
ATTENTION_BIAS = Field(
    "attention_bias",
    (
        Use((LLAMA, GRANITE), flag, False, lambda config: config.qkv_bias),
        Use((GPT_NEOX,), flag, True, lambda _: True),
    ),
    neutral=OFF,
    changes=BIASES,
)
MLP_BIAS = Field(
    "mlp_bias",
    (Use((LLAMA, GRANITE), flag, False, lambda config: config.linear_bias),),
    neutral=OFF,
    changes=BIASES,
)
PARALLEL = Field("use_parallel_residual", (Use((GPT_NEOX,), flag, True, lambda _: False),))
"""Whether attention and FFN read the same residual, which Megatron's block cannot say."""

TIED = Field(
    "tie_word_embeddings",
    (
        Use((*LLAMAS, GPT_NEOX), flag, False, lambda config: config.tied),
        Use(GPTS, flag, True, lambda config: config.tied),
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
    (Use(GPTS, flag, False, lambda config: config.multipliers.attention_by_inverse_layer),),
)
WINDOW = Field(
    "sliding_window",
    (
        Use[object]((MISTRAL,), as_it_is, 4096, lambda _: None),
        Use[object]((LLAMA, GPT_NEOX, GRANITE, *_QWENS), as_it_is),
    ),
    neutral=(None,),
    changes=WINDOWS,
)
"""Llama, Granite and GPT-NeoX have none; the caches of transformers go by it all the same."""

USE_WINDOW = Field(
    "use_sliding_window",
    (Use((LLAMA, GPT_NEOX, MISTRAL, GRANITE), flag, True), Use(_QWENS, flag, False)),
    neutral=OFF,
    changes=WINDOWS,
)


def _more_layers(stored: object, old: ModelConfig, new: ModelConfig) -> object:
    longer = isinstance(stored, list) and new.layers != old.layers
    return [FULL_ATTENTION] * new.layers if longer else stored


LAYER_TYPES = Field(
    "layer_types", (Use[object]((*LLAMAS, GPT_NEOX), as_it_is),), grown=_more_layers
)

MODEL_ROWS: tuple[Field[Any], ...] = (
    VOCAB, HIDDEN, FFN, LAYERS, HEADS, GROUPS, HEAD_DIM, MAX_POSITIONS, N_EMBD, N_INNER, N_LAYER,
    N_HEAD, N_POSITIONS, N_CTX, RMS_NORM_EPS, LAYER_NORM_EPS, LAYER_NORM_EPSILON, HIDDEN_ACT,
    ACTIVATION_FUNCTION, ATTENTION_BIAS, MLP_BIAS, PARALLEL, TIED, SCALED, BY_INVERSE_LAYER,
    WINDOW, USE_WINDOW, LAYER_TYPES,
)  # fmt: skip
