"""Which fields of ``config.json`` must be neutral and which cannot matter, for every family.

``config.py`` says how it is used. A field that no rule here explains, and that its
family does not read, passes if it says nothing (null, false, zero, empty), with a note; else it
stops the import. The names are those of transformers 4.0 to 5.23, and what published models of the
supported families carry beside them.
"""

import re
from collections.abc import Mapping

OFF = (None, False)
_ON = (None, True)

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": OFF,
    "add_cross_attention": OFF,
    "cross_attention_hidden_size": (None,),
    "sliding_window": (None,),
    "use_sliding_window": OFF,
    "attention_bias": OFF,
    "mlp_bias": OFF,
    "clip_qkv": (None,),
    "logit_scale": (None, 1.0, 1),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0, 1),
    "residual_multiplier": (None, 1.0, 1),
    "logits_scaling": (None, 1.0, 1),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "chunk_size_feed_forward": (None, 0),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": OFF,
    "torchscript": OFF,
    "prefix": (None,),
    "partial_rotary_factor": (None, 1.0, 1),
    "use_mrope": OFF,
    "is_llama_config": (None, True),
    "rope_interleaved": OFF,
    "is_causal": _ON,
    "causal": _ON,
    "use_causal_mask": _ON,
    "use_rope": _ON,
    "use_rotary": _ON,
    "rotary": _ON,
    "use_rotary_position_embeddings": _ON,
    "pre_norm": _ON,
    "normalize_before": _ON,
    "do_layer_norm_before": _ON,
    "rms_norm": _ON,
    "use_rms_norm": _ON,
    "scale_attn": _ON,
    "scale_attn_weights": _ON,
    "scale_embedding": OFF,
    "gated_mlp": _ON,
    "use_gated_mlp": _ON,
}
"""Fields that change what is computed, with the values at which they do not."""

HARMLESS = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype _name_or_path _commit_hash
    _attn_implementation _attn_implementation_autoset attn_implementation use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    initializer_range pretraining_tp attention_dropout hidden_dropout classifier_dropout
    resid_pdrop embd_pdrop attn_pdrop summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj reorder_and_upcast_attn n_ctx
    max_window_layers is_decoder gradient_checkpointing use_bfloat16 tokenizer_class
    problem_type id2label label2id num_labels finetuning_task task_specific_params output_past
    output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences begin_suppress_tokens
    suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty tf_legacy_loss custom_pipelines transformers.js_config
    n_special predict_special_tokens ignore_index seq_length eos_token bos_token pad_token
    unk_token sep_token attn_impl kv_cache_dtype use_mem_efficient_attention loss_type
    """.split()
)
"""Names that say how a model is trained, sampled from, labelled or stored; not what it computes."""

_HARMLESS_KINDS = re.compile(
    r"_.*"  # transformers' own notes on a loaded model, such as _flash_attn_2_enabled
    r"|unsloth_.*|neftune_.*|tokenizer_.*|summary_.*"
    r"|.*dropout.*|.*layerdrop.*|.*_pdrop|.*initializer_.*|.*_init_std"
    r"|.*_token_ids?|.*_token_index"
    r"|max_(?:sequence|seq|model)_len(?:gth)?|model_max_length"
    r"|(?:use_)?(?:flash|fused|sdpa|xformers).*|.*_in_fp32"
)
"""Kinds of names: whatever comes after, they speak of training, texts or how kernels compute."""


def is_harmless(name: str) -> bool:
    """Whether a field's name says that it cannot change what the model computes."""
    return name in HARMLESS or _HARMLESS_KINDS.fullmatch(name) is not None


PRIVATE = frozenset({"_name_or_path", "_commit_hash"})
"""Fields that tell of the machine or the repository a file was made on: not passed on."""

ROTARY = frozenset(
    """
    rope_theta rope_scaling rope_parameters rotary_pct rotary_emb_base partial_rotary_factor
    """.split()
)
"""Fields that speak of rotary positions, which growth leaves alone."""
