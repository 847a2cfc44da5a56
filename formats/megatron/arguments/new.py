"""Training arguments for a model that never had any: as Megatron-LM would hold them for it.

A checkpoint from elsewhere has no ``args``, and Megatron-LM takes the model from nothing else. Only
what describes the model, its vocabulary and its numbers is made up here; how to train it is for the
run that loads it to say.
"""

from typing import Any

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments import layout_rows, model_rows, run_rows, vocabulary_rows
from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS
from flmgrow.formats.megatron.arguments.row import LayoutArgument, ModelArgument
from flmgrow.model.config import ModelConfig

IMPLEMENTATIONS = {False: "local", True: "transformer_engine"}
"""The layer spec that has the plain names of parameters, and the one that fuses norms."""

_ROWS: tuple[ModelArgument[Any] | LayoutArgument[Any], ...] = (
    model_rows.LAYERS, model_rows.ENCODER_LAYERS, run_rows.DECODER_LAYERS, model_rows.HIDDEN,
    model_rows.FFN, model_rows.HEADS, model_rows.HEAD_DIM, model_rows.GROUPED, model_rows.GROUPS,
    model_rows.MAX_POSITIONS, run_rows.SEQUENCE_LENGTH, model_rows.POSITIONS,
    model_rows.USE_ROTARY, model_rows.ROTARY_BASE, model_rows.ROTARY_PERCENT,
    model_rows.INTERLEAVED, model_rows.INTERPOLATION, model_rows.USE_SCALING,
    model_rows.SCALING_FACTOR, model_rows.NORM, model_rows.NORM_EPS, model_rows.ZERO_CENTRED,
    run_rows.RESIDUAL_AFTER_NORM, model_rows.SWIGLU, model_rows.SQUARED_RELU,
    model_rows.TANH_GELU, model_rows.FUSED_GELU, model_rows.LINEAR_BIAS, model_rows.QKV_BIAS,
    model_rows.QK_NORM, model_rows.SOFTMAX_SCALE, *KIND_ROWS, model_rows.UNTIED, run_rows.EXPERTS,
    run_rows.LATENT_ATTENTION, vocabulary_rows.VOCAB, vocabulary_rows.PADDED_VOCAB,
    vocabulary_rows.MULTIPLE, vocabulary_rows.TOKENIZER_TYPE, vocabulary_rows.TOKENIZER_MODEL,
    layout_rows.TP, layout_rows.PP, layout_rows.VPP, layout_rows.LAYERS_PER_CHUNK,
    layout_rows.STAGES_PER_RANK, layout_rows.FIRST, layout_rows.LAST, layout_rows.TEXT,
    run_rows.EXPERT_RANKS, run_rows.IMPLEMENTATION, run_rows.DTYPE, run_rows.BF16, run_rows.FP16,
    run_rows.HIDDEN_DROPOUT, run_rows.ATTENTION_DROPOUT, run_rows.ITERATION,
    run_rows.SAMPLES_SEEN, run_rows.VALIDATION_SAMPLES_SEEN, run_rows.FORMAT,
)  # fmt: skip
"""In the order in which they are written."""


def new_arguments(
    config: ModelConfig, padded_vocab: int, dtype: str, transformer_impl: str
) -> dict[str, object]:
    """Return the arguments of a model of one rank whose weights are ``dtype``."""
    layout = Layout(1, 1, 1, (config.layers,))
    values = {
        row.name: row.value(layout) if isinstance(row, LayoutArgument) else row.value(config)
        for row in _ROWS
    }
    return {
        **values,
        vocabulary_rows.PADDED_VOCAB.name: padded_vocab,
        run_rows.IMPLEMENTATION.name: transformer_impl,
        **run_rows.dtype_arguments(dtype),
    }
