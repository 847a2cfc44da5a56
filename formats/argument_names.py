"""Which of Megatron-LM's arguments flmgrow understands, which must be neutral, which cannot matter.

Data only; ``arguments.py`` says how it is used. Names are those of Megatron-LM core_v0.11 to
core_v0.19.
"""

from collections.abc import Mapping

UNDERSTOOD = frozenset(
    """
    num_layers encoder_num_layers hidden_size ffn_hidden_size num_attention_heads
    num_query_groups group_query_attention kv_channels max_position_embeddings normalization
    norm_epsilon layernorm_epsilon apply_layernorm_1p layernorm_zero_centered_gamma swiglu
    squared_relu openai_gelu bias_gelu_fusion add_bias_linear add_qkv_bias qk_layernorm
    untie_embeddings_and_output_weights position_embedding_type use_rotary_position_embeddings
    rotary_base rotary_percent rotary_interleaved use_rope_scaling rope_scaling_factor
    rotary_seq_len_interpolation_factor softmax_scale vocab_size padded_vocab_size
    tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size
    num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank
    decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
    num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage
    account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
    pipeline_model_parallel_layout flmgrow_true_vocab_size flmgrow_xpos_scale_base
    flmgrow_xpos_centre flmgrow_embedding_multiplier flmgrow_output_multiplier
    flmgrow_mup_base_width flmgrow_attention_by_inverse_layer
    """.split()
)
"""Translated to the model or the layout and back."""

_OFF = (None, False, 0)

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "num_experts": (None,),
    "num_moe_experts": (None,),
    "expert_model_parallel_size": (None, 1),
    "multi_latent_attention": _OFF,
    "mtp_num_layers": _OFF,
    "window_size": (None,),
    "experimental_attention_variant": (None,),
    "linear_attention_type": (None,),
    "attention_output_gate": _OFF,
    "softmax_type": (None, "vanilla"),
    "qk_l2_norm": _OFF,
    "quick_geglu": _OFF,
    "gated_linear_unit": (None, False, True),
    "glu_linear_offset": (None, 0, 0.0),
    "activation_func_clamp_value": (None,),
    "no_rope_freq": (None,),
    "mrope_section": (None,),
    "apply_residual_connection_post_layernorm": _OFF,
    "heterogeneous_layers_config_path": (None, ""),
    "heterogeneous_layers_config_encoded_json": (None, ""),
    "heterogeneous_block_specs": _OFF,
    "hybrid_layer_pattern": (None, ""),
    "hybrid_override_pattern": (None, ""),
    "is_hybrid_model": _OFF,
    "use_mup": _OFF,
    "bidirectional_attention": _OFF,
    "rope_type": (None, "rope", "yarn"),
    "decoder_num_layers": (None, 0),
    "fp8": (None, False, "", "hybrid", "e4m3"),
    "fp4": (None, False, ""),
    "spec": (None, [], ()),
    "use_legacy_models": _OFF,
    "moe_latent_size": (None,),
    "bert_load": (None,),
    "first_last_layers_bf16": (None, False, True),
}
"""Arguments that change the function, with the values at which they do not.

``rope_type`` acts only under multi-latent attention, ``gated_linear_unit`` is derived from
``swiglu``; FP8 training keeps its weights in higher precision, and its scaling state is carried.
"""

HARMLESS = frozenset(
    """
    add_position_embedding apply_query_key_layer_scaling apply_rope_fusion
    apply_wd_to_qk_layernorm attention_backend attention_dropout attention_softmax_in_fp32
    bert_binary_head bert_embedder_type bias_dropout_fusion bias_swiglu_fusion cache_mla_latents
    clone_scatter_output_in_embedding create_attention_mask_in_dataloader
    cross_entropy_loss_fusion decoupled_lr dino_freeze_last_layer dino_head_hidden_size
    dino_norm_last_layer disable_bf16_reduced_precision_matmul distribute_saved_activations
    embedding_init_method_std embedding_path expert_tensor_parallel_size flash_decode
    fp16_lm_cross_entropy fp32_residual_connection freeze_all_layers fused_residual_rmsnorm
    fused_single_qkv_rope head_lr_mult hidden_dropout initial_loss_scale init_method_std
    kitchen_attention_backend kv_lora_rank linear_conv_kernel_dim linear_key_head_dim
    linear_num_key_heads linear_num_value_heads linear_value_head_dim
    log_learning_rate_to_tensorboard log_loss_scale_to_tensorboard log_max_attention_logit
    log_params_norm loss_scale loss_scale_window manual_gc_multiplier mamba_head_dim
    mamba_num_groups mamba_num_heads mamba_state_dim mask_type masked_softmax_fusion
    memory_efficient_layer_norm min_loss_scale mscale mscale_all_dim mtp_detach_heads
    mtp_loss_scaling_factor mup_attn_scale_power mup_base_head_dim mup_base_hidden_size
    mup_embedding_mult mup_output_mult mup_width_mult muon_extra_scale_factor muon_scale_mode
    num_layers_at_end_in_bf16 num_layers_at_start_in_bf16 num_multimodal_embeddings
    output_bert_embeddings no_persist_layer_norm no_bias_dropout_fusion no_bias_gelu_fusion
    no_bias_swiglu_fusion no_create_attention_mask_in_dataloader no_masked_softmax_fusion
    no_rope_fusion no_use_layer_wise_param_layout use_layer_wise_param_layout persist_layer_norm
    qk_clip qk_clip_alpha qk_clip_threshold qk_head_dim qk_pos_emb_head_dim q_lora_rank
    recompute_activations recompute_num_layers relative_attention_max_distance
    relative_attention_num_buckets reset_attention_mask reset_position_ids
    retriever_score_scaling rotary_scaling_factor scatter_gather_tensors_in_pipeline
    use_cpu_initialization use_flash_attn use_fused_weighted_squared_relu use_kitchen_attention
    v_head_dim window_attn_skip_freq original_max_position_embeddings
    yarn_original_max_position_embeddings test_mode timing_log_level use_te_activation_func
    dsa_indexer_head_dim dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32
    dsa_indexer_loss_coeff dsa_indexer_n_heads dsa_indexer_rope_interleaved
    dsa_indexer_rotate_activation dsa_indexer_scoring_relu dsa_indexer_skip_topk_offset
    dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_use_sparse_loss
    encoder_tensor_model_parallel_size encoder_pipeline_model_parallel_size
    hierarchical_context_parallel_sizes moe_aux_loss_coeff moe_apply_probs_on_input
    moe_deepep_num_sms moe_enable_deepep moe_expert_capacity_factor moe_extended_tp
    moe_ffn_hidden_size moe_flex_dispatcher_backend moe_grouped_gemm moe_hybridep_num_sms
    moe_input_jitter_eps moe_layer_freq moe_layer_recompute moe_pad_expert_input_to_capacity
    moe_per_layer_logging moe_permute_fusion moe_router_bias_update_rate moe_router_dtype
    moe_router_enable_expert_bias moe_router_force_load_balancing moe_router_fusion
    moe_router_group_topk moe_router_load_balancing_type moe_router_num_groups
    moe_router_padding_for_fp8 moe_router_padding_for_quantization moe_router_pre_softmax
    moe_router_score_function moe_router_topk moe_router_topk_limited_devices
    moe_router_topk_scaling_factor moe_shared_expert_gate moe_shared_expert_intermediate_size
    moe_shared_expert_overlap moe_token_dispatcher_type moe_token_drop_policy moe_token_dropping
    moe_upcycling_granularity moe_use_legacy_grouped_gemm moe_use_upcycling moe_z_loss_coeff
    num_layers_to_build inference_dynamic_batching_buffer_overflow_factor
    overlap_moe_expert_parallel_comm rl_kv_cache_management_mode
    """.split()
)
"""Names that speak of the model and yet cannot change what it computes.

Dropout, fusions and precision of intermediates; arguments of features whose switch is in NEUTRAL
(experts, latent attention, sparse attention, state-space layers); training-only settings.
``apply_query_key_layer_scaling`` divides scores and multiplies them back inside the softmax.
"""
