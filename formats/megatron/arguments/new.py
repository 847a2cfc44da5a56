"""Training arguments for a model that never had any: as Megatron-LM would hold them for it.

A checkpoint from elsewhere has no ``args``, and Megatron-LM takes the model from nothing else. Only
what describes the model, its vocabulary and its numbers is made up here; how to train it is for the
run that loads it to say.
"""

from flmgrow.formats.layout.placements import VOCAB_MULTIPLE
from flmgrow.formats.torch_file.values import Global
from flmgrow.model.config import ModelConfig

IMPLEMENTATIONS = {False: "local", True: "transformer_engine"}
"""The layer spec that has the plain names of parameters, and the one that fuses norms."""

_POSITIONS = {"learned": "learned_absolute", "xpos": "rope"}


def _rotary(config: ModelConfig) -> dict[str, object]:
    rotary = config.rotary
    base = int(rotary.base) if rotary.base.is_integer() else rotary.base
    return {
        "position_embedding_type": _POSITIONS.get(config.positions, config.positions),
        "use_rotary_position_embeddings": False,
        "rotary_base": base,
        "rotary_percent": rotary.percent,
        "rotary_interleaved": rotary.interleaved,
        "rotary_seq_len_interpolation_factor": rotary.interpolation,
        "use_rope_scaling": rotary.scaling_factor is not None,
        "rope_scaling_factor": 8.0 if rotary.scaling_factor is None else rotary.scaling_factor,
    }


def new_arguments(
    config: ModelConfig, padded_vocab: int, dtype: str, transformer_impl: str
) -> dict[str, object]:
    """Return the arguments of a model of one rank whose weights are ``dtype``."""
    grouped = config.queries_per_group > 1
    return {
        "num_layers": config.layers,
        "encoder_num_layers": config.layers,
        "decoder_num_layers": None,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.heads,
        "kv_channels": config.head_dim,
        "group_query_attention": grouped,
        "num_query_groups": config.kv_groups if grouped else 1,
        "max_position_embeddings": config.max_positions,
        "seq_length": config.max_positions,
        **_rotary(config),
        "normalization": "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
        "norm_epsilon": config.norm_eps,
        "apply_layernorm_1p": config.zero_centred_gain,
        "apply_residual_connection_post_layernorm": False,
        "swiglu": config.activation == "swiglu",
        "squared_relu": config.activation == "squared_relu",
        "openai_gelu": config.activation == "gelu_tanh",
        "bias_gelu_fusion": False,
        "add_bias_linear": config.linear_bias,
        "add_qkv_bias": config.qkv_bias and not config.linear_bias,
        "qk_layernorm": config.qk_norm,
        "softmax_scale": config.multipliers.attention,
        "untie_embeddings_and_output_weights": not config.tied,
        "num_experts": None,
        "multi_latent_attention": False,
        "vocab_size": config.vocab,
        "padded_vocab_size": padded_vocab,
        "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "num_layers_per_virtual_pipeline_stage": None,
        "num_virtual_stages_per_pipeline_rank": None,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "pipeline_model_parallel_layout": None,
        "expert_model_parallel_size": 1,
        "transformer_impl": transformer_impl,
        "params_dtype": Global("torch", dtype),
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "ckpt_format": "torch",
    }
