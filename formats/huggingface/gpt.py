"""Fields to ``ModelConfig`` for the families that descend from GPT-2, and for GPT-NeoX."""

from dataclasses import replace

from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.row import FieldReader
from flmgrow.formats.huggingface.parts import (
    exact_heads,
    read_activation,
    read_residual,
)
from flmgrow.formats.huggingface.rotary import read_rotary
from flmgrow.formats.huggingface.windows import read_window
from flmgrow.model.config import ModelConfig, Multipliers


def _of_gpt2(reader: FieldReader, groups: int | None = None) -> ModelConfig:
    """Return a decoder of GPT-2's parts; without ``groups``, there is one for each head."""
    hidden, heads = rows.N_EMBD.read(reader), rows.N_HEAD.read(reader)
    return ModelConfig(
        layers=rows.N_LAYER.read(reader),
        hidden=hidden,
        ffn=rows.N_INNER.read(reader, 4 * hidden),
        kv_groups=groups or heads,
        queries_per_group=heads // (groups or heads),
        head_dim=exact_heads(reader, rows.N_EMBD, rows.N_HEAD),
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.N_POSITIONS.read(reader),
        norm_eps=rows.LAYER_NORM_EPSILON.read(reader),
        activation=read_activation(reader, rows.ACTIVATION_FUNCTION),
        tied=rows.TIED.read(reader),
        positions="learned",
        multipliers=Multipliers(attention=None if rows.SCALED.read(reader) else 1.0),
    )


def read_gpt2(reader: FieldReader) -> ModelConfig:
    """GPT-2: one group of keys and values for each head."""
    config, by_layer = _of_gpt2(reader), rows.BY_INVERSE_LAYER.read(reader)
    scores = replace(config.multipliers, attention_by_inverse_layer=by_layer)
    return replace(config, multipliers=scores)


def read_gpt_bigcode(reader: FieldReader) -> ModelConfig:
    """GPT-BigCode: a GPT-2 that may have one group for all heads."""
    return _of_gpt2(reader, 1 if rows.MULTI_QUERY.read(reader) else None)


def read_neox(reader: FieldReader) -> ModelConfig:
    """GPT-NeoX: rotary positions, and a residual path that may be parallel."""
    read_window(reader)
    attention = rows.ATTENTION_BIAS.read(reader)
    return ModelConfig(
        layers=rows.LAYERS.read(reader),
        hidden=rows.HIDDEN.read(reader),
        ffn=rows.FFN.read(reader),
        kv_groups=rows.HEADS.read(reader),
        queries_per_group=1,
        head_dim=exact_heads(reader, rows.HIDDEN, rows.HEADS),
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.MAX_POSITIONS.read(reader),
        norm_eps=rows.LAYER_NORM_EPS.read(reader),
        activation=read_activation(reader, rows.HIDDEN_ACT),
        qkv_bias=attention,
        out_bias=attention,
        residual=read_residual(reader, "parallel"),
        tied=rows.TIED.read(reader),
        positions="rope",
        rotary=read_rotary(reader),
    )
