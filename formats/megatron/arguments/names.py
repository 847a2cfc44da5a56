"""Which of Megatron-LM's arguments flmgrow understands, which change the function, which do not.

Data only; ``classes.py`` says how it is used. Names are those of Megatron-LM core_v0.11 to
core_v0.19; all of them, with their defaults, are in ``defaults.json``. An argument in that
table which is neither understood nor listed here cannot change what a GPT computes: it is about
training, inference, another kind of model, or a feature whose switch is listed.
"""

from collections.abc import Mapping

from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS
from flmgrow.formats.megatron.arguments.layout_rows import LAYOUT_ROWS
from flmgrow.formats.megatron.arguments.model_rows import MODEL_ROWS
from flmgrow.formats.megatron.arguments.mup_rows import MUP_ROWS
from flmgrow.formats.megatron.arguments.row import understood_names
from flmgrow.formats.megatron.arguments.run_rows import (
    DECODER_LAYERS,
    EXPERT_RANKS,
    EXPERTS,
    IMPLEMENTATION,
    ITERATION,
    LATENT_ATTENTION,
    RESIDUAL_AFTER_NORM,
    SEQUENCE_LENGTH,
)
from flmgrow.formats.megatron.arguments.vocabulary_rows import TOKENIZER_TYPE, VOCABULARY_ROWS

UNDERSTOOD = understood_names((*MODEL_ROWS, *KIND_ROWS, *MUP_ROWS, *VOCABULARY_ROWS, *LAYOUT_ROWS))
"""Translated to the model or the layout and back."""

_EXPERTS = "mixture of experts"
_LINEAR = "linear or sparse attention"
_MIXED = "layers of several kinds"
_HYBRID = "state-space layers"
_GATED = "an activation of another kind"

FEATURES: Mapping[str, str] = {
    EXPERTS.name: _EXPERTS,
    "num_moe_experts": _EXPERTS,
    EXPERT_RANKS.name: _EXPERTS,
    LATENT_ATTENTION.name: "multi-latent attention (MLA)",
    "mtp_num_layers": "multi-token prediction (MTP)",
    "experimental_attention_variant": _LINEAR,
    "linear_attention_type": _LINEAR,
    "attention_output_gate": "gated attention",
    "softmax_type": "a softmax with a sink",
    "qk_l2_norm": "an L2 norm of queries and keys",
    "quick_geglu": _GATED,
    "glu_linear_offset": _GATED,
    "activation_func_clamp_value": _GATED,
    "mrope_section": "multimodal rotary positions",
    RESIDUAL_AFTER_NORM.name: "residuals after the norm",
    "heterogeneous_layers_config_path": _MIXED,
    "heterogeneous_layers_config_encoded_json": _MIXED,
    "heterogeneous_block_specs": _MIXED,
    "hybrid_layer_pattern": _HYBRID,
    "hybrid_override_pattern": _HYBRID,
    "hybrid_attention_ratio": _HYBRID,
    "hybrid_mlp_ratio": _HYBRID,
    "is_hybrid_model": _HYBRID,
    "bidirectional_attention": "attention to later tokens",
    DECODER_LAYERS.name: "an encoder and a decoder",
    "pipeline_model_parallel_split_rank": "an encoder and a decoder",
    "retro_add_retriever": "retrieval (RETRO)",
    "use_legacy_models": "the model classes of before megatron-core",
}
"""The switches of features that flmgrow does not have, with the name of each feature.

They are off at a default of any version, and at None, False, 0 or an empty value.
"""

UNCLEAR = frozenset({"spec"})
"""Whether these change the function, only who set them can say; at a default they do not."""

HARMLESS = frozenset(
    """
    batch_size checkpoint_activations consumed_train_bins cpu_offloading
    cuda_graph_scope_deprecated curr_iteration data_parallel_size decoder_seq_length
    distributed_backend do_test do_train do_valid encoder_seq_length ep_size filter_warnings
    global_batch_size gradient_accumulation_fusion grpo_samples_per_iteration local_rank
    lr lr_warmup_samples micro_batch_size mock_data model_parallel_size model_type most_recent_k
    num_floating_point_operations_so_far rank tp_size train_iters
    use_flashinfer_fused_rope use_nsys_profiler world_size

    fused_single_qkv_rope gated_linear_unit log_learning_rate_to_tensorboard manual_gc_multiplier
    memory_efficient_layer_norm moe_router_topk_limited_devices moe_token_dropping
    no_bias_dropout_fusion no_bias_gelu_fusion no_bias_swiglu_fusion
    no_create_attention_mask_in_dataloader no_masked_softmax_fusion no_rope_fusion
    no_use_layer_wise_param_layout num_layers_to_build num_multimodal_embeddings
    original_max_position_embeddings persist_layer_norm recompute_activations
    """.split()
) | {row.name for row in (ITERATION, SEQUENCE_LENGTH, TOKENIZER_TYPE, IMPLEMENTATION)}
"""Names outside the table of defaults that cannot change what a model computes: what every run
sets or derives for itself, and older names. ``gated_linear_unit`` is derived from ``swiglu``.
"""
