"""The fields that change what is computed in ways that flmgrow has no place for, or might.

Each says what it changes, which is told where its value is not neutral. What says nothing of the
sort may be a left-over, and only who made the model can say.
"""

from typing import Any

from flmgrow.formats.huggingface.fields.row import Field

OFF = (None, False)
ON = (None, True)
ONE = (None, 1.0, 1)

PICTURES = "models of pictures or sound are not supported: give the folder of a text model alone"
EXPERTS = "mixtures of experts are not supported"
ENCODER = "models with an encoder are not supported"
OTHER_MODELS = (PICTURES, EXPERTS, ENCODER)
"""What a model of no family is instead, told by fields that only such models have."""

CROSS = "attention to an encoder is not supported"
WINDOWS = "attention in windows is not supported"
BIASES = "biases are not supported there"
PART_ROTATED = "models of this type rotate whole heads"
OTHER_POSITIONS = "positions of another kind are not supported"
OTHER_NORMS = "norms of another kind, or in other places, are not supported"
SCALED_SCORES = "attention scores without their scale are not supported"
NO_GATE = "FFNs without a gate are not supported in a model of this type"
LATER_TOKENS = "attention to later tokens is not supported"
MULTIPLIER = (
    "factors that embeddings, scores, branches or logits are multiplied by are not supported in a "
    "model of this type"
)
CAPPED = "scores and logits that are capped are not supported"
CLIPPED = "queries, keys and values that are clipped are not supported"


def _switch(name: str, neutral: tuple[object, ...] | None, changes: str = "") -> Field[Any]:
    return Field(name, neutral=neutral, changes=changes)


QUANTIZATION = Field[Any]("quantization_config", neutral=(None,), private=True)
COMPRESSION = Field[Any]("compression_config", private=True)
MLX_QUANTIZATION = Field[Any]("quantization", private=True)
QUANTIZED = (QUANTIZATION, COMPRESSION, MLX_QUANTIZATION)
"""How weights are quantized: as transformers, older compressed-tensors and MLX have it."""

AUTO_MAP = _switch("auto_map", (None,))
"""The code that stands for transformers' automatic classes."""

_OTHER_KINDS = (
    _switch("vision_config", None, PICTURES),
    _switch("audio_config", None, PICTURES),
    _switch("text_config", None, PICTURES),
    _switch("num_local_experts", None, EXPERTS),
    _switch("num_experts", None, EXPERTS),
    _switch("n_routed_experts", None, EXPERTS),
    _switch("moe_num_experts", None, EXPERTS),
    _switch("is_encoder_decoder", OFF, ENCODER),
    _switch("encoder_layers", None, ENCODER),
)
_CONSTANTS = (
    _switch("clip_qkv", (None,), CLIPPED),
    _switch("logit_scale", ONE, MULTIPLIER),
    _switch("scale_embedding", OFF, MULTIPLIER),
    _switch("scale_attn", ON, SCALED_SCORES),
)
_BLOCKS = (
    _switch("use_mrope", OFF, OTHER_POSITIONS),
    _switch("rope_interleaved", OFF, OTHER_POSITIONS),
    _switch("use_rope", ON, OTHER_POSITIONS),
    _switch("use_rotary", ON, OTHER_POSITIONS),
    _switch("rotary", ON, OTHER_POSITIONS),
    _switch("use_rotary_position_embeddings", ON, OTHER_POSITIONS),
    _switch("is_causal", ON, LATER_TOKENS),
    _switch("causal", ON, LATER_TOKENS),
    _switch("use_causal_mask", ON, LATER_TOKENS),
    _switch("use_bidirectional_attention", OFF, LATER_TOKENS),
    _switch("qk_layernorm", OFF, OTHER_NORMS),
    _switch("norm_type", (None, "layer_norm"), OTHER_NORMS),
    _switch("mlp_type", (None, "default")),
    _switch("lm_head_bias", OFF, BIASES),
    _switch("full_attn_mod", ONE, WINDOWS),
    _switch("interpolate_factor", ONE, OTHER_POSITIONS),
    _switch("pre_norm", ON, OTHER_NORMS),
    _switch("normalize_before", ON, OTHER_NORMS),
    _switch("do_layer_norm_before", ON, OTHER_NORMS),
    _switch("rms_norm", ON, OTHER_NORMS),
    _switch("use_rms_norm", ON, OTHER_NORMS),
    _switch("gated_mlp", ON, NO_GATE),
    _switch("use_gated_mlp", ON, NO_GATE),
    _switch("add_cross_attention", OFF, CROSS),
    _switch("cross_attention_hidden_size", (None,), CROSS),
    _switch("tie_encoder_decoder", OFF, CROSS),
    _switch("pruned_heads", (None, {}), "layers of which heads are left out are not supported"),
)
_MAY_MATTER = (
    _switch("chunk_size_feed_forward", (None, 0)),
    _switch("torchscript", OFF),
    _switch("prefix", (None,)),
    _switch("is_llama_config", ON),
)

SWITCH_ROWS: tuple[Field[Any], ...] = (
    *QUANTIZED, AUTO_MAP, *_OTHER_KINDS, *_CONSTANTS, *_BLOCKS, *_MAY_MATTER,
)  # fmt: skip
