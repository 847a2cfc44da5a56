"""The arguments about a run and its files that flmgrow looks at or brings up to date, and the
features that new arguments say are off.

None of them says what a model computes.
"""

from typing import Any

from flmgrow.formats.megatron.arguments.row import ModelArgument, as_it_is
from flmgrow.formats.torch_file.values import Global
from flmgrow.model.config import ModelConfig


def _row(name: str, value: object) -> ModelArgument[object]:
    """Return the row of an argument that has ``value`` where a model never had any."""
    return ModelArgument(name, as_it_is, understood=False, value=lambda _: value)


def _context(config: ModelConfig) -> int:
    return config.max_positions


DECODER_LAYERS = _row("decoder_num_layers", None)
EXPERTS = _row("num_experts", None)
EXPERT_RANKS = _row("expert_model_parallel_size", 1)
LATENT_ATTENTION = _row("multi_latent_attention", False)
RESIDUAL_AFTER_NORM = _row("apply_residual_connection_post_layernorm", False)

SEQUENCE_LENGTH = ModelArgument("seq_length", as_it_is, understood=False, value=_context)
SAMPLES_SEEN = _row("consumed_train_samples", 0)
VALIDATION_SAMPLES_SEEN = _row("consumed_valid_samples", 0)
ITERATION = _row("iteration", 0)
IMPLEMENTATION = _row("transformer_impl", "local")
FORMAT = _row("ckpt_format", "torch")
FSDP_DTENSOR = "fsdp_dtensor"
"""What ``FORMAT`` is of a run under Megatron's own FSDP."""

FULLY_SHARDED = _row("use_megatron_fsdp", False)
DISTRIBUTED_OPTIMIZER = _row("use_distributed_optimizer", False)
DTYPE = _row("params_dtype", None)
BF16 = _row("bf16", False)
FP16 = _row("fp16", False)
HIDDEN_DROPOUT = _row("hidden_dropout", 0.0)
ATTENTION_DROPOUT = _row("attention_dropout", 0.0)

RUN_ROWS: tuple[ModelArgument[Any], ...] = (
    DECODER_LAYERS, EXPERTS, EXPERT_RANKS, LATENT_ATTENTION, RESIDUAL_AFTER_NORM, SEQUENCE_LENGTH,
    SAMPLES_SEEN, VALIDATION_SAMPLES_SEEN, ITERATION, IMPLEMENTATION, FORMAT, DTYPE, BF16, FP16,
    HIDDEN_DROPOUT, ATTENTION_DROPOUT,
)  # fmt: skip


def dtype_arguments(dtype: str) -> dict[str, object]:
    """Return what says that weights are ``dtype``, such as ``bfloat16``."""
    return {
        DTYPE.name: Global("torch", dtype),
        BF16.name: dtype == "bfloat16",
        FP16.name: dtype == "float16",
    }
