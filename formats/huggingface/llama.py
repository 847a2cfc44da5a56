"""Fields to ``ModelConfig`` for the families whose sizes have Llama's names."""

from dataclasses import replace
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.rotary_rows import TYPED
from flmgrow.formats.huggingface.fields.row import FieldReader
from flmgrow.formats.huggingface.granite import read_multipliers
from flmgrow.formats.huggingface.parts import (
    exact_heads,
    grouped_heads,
    read_activation,
    read_residual,
)
from flmgrow.formats.huggingface.rotary import read_rotary, read_sliding_rotary
from flmgrow.formats.huggingface.windows import read_kinds
from flmgrow.model.config import ModelConfig
from flmgrow.text import Found, Text


def decoder(reader: FieldReader, **parts: Any) -> ModelConfig:
    """Return a decoder with rotary positions whose sizes have Llama's names.

    ``parts`` say what else it has.
    """
    groups, queries = grouped_heads(reader)
    hidden = rows.HIDDEN.read(reader)
    if rows.HEAD_DIM.use_in(reader.family) is None:
        head_dim = exact_heads(reader, rows.HIDDEN, rows.HEADS)
    else:
        usual = rows.HEAD_DIM.absent(reader.family) or max(1, hidden // (groups * queries))
        head_dim = rows.HEAD_DIM.read(reader, usual)
    sliding = read_sliding_rotary(reader) if reader.family in TYPED else None
    return ModelConfig(
        layers=rows.LAYERS.read(reader),
        hidden=hidden,
        ffn=rows.FFN.read(reader),
        kv_groups=groups,
        queries_per_group=queries,
        head_dim=head_dim,
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.MAX_POSITIONS.read(reader),
        tied=rows.TIED.read(reader),
        positions="rope",
        rotary=read_rotary(reader),
        layer_kinds=read_kinds(reader, sliding),
        **parts,
    )


def _llama(reader: FieldReader, **parts: Any) -> ModelConfig:
    """Return a decoder of Llama's parts, but for ``parts``."""
    if parts.get("activation") is None:
        rows.HIDDEN_ACT.read(reader)
    usual: dict[str, object] = {
        "norm": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": False,
    }  # fmt: skip
    return decoder(reader, norm_eps=rows.RMS_NORM_EPS.read(reader), **{**usual, **parts})


def _biases(reader: FieldReader) -> dict[str, bool]:
    """Return which projections have biases where one switch is attention's and one the FFN's."""
    attention, ffn = rows.ATTENTION_BIAS.read(reader), rows.MLP_BIAS.read(reader)
    return {"qkv_bias": attention, "out_bias": attention, "linear_bias": ffn}


def read_llama(reader: FieldReader) -> ModelConfig:
    """Llama: one switch is for the biases of attention, one for those of the FFN."""
    exact_heads(reader, rows.HIDDEN, rows.HEADS)  # transformers 5 insists on it
    return _llama(reader, **_biases(reader))


def read_mistral(reader: FieldReader) -> ModelConfig:
    """Mistral: a Llama without biases."""
    return _llama(reader)


def read_granite(reader: FieldReader) -> ModelConfig:
    """Granite: a Llama with multipliers."""
    config = _llama(reader, **_biases(reader))
    return replace(config, multipliers=read_multipliers(reader, config.hidden))


def read_arcee(reader: FieldReader) -> ModelConfig:
    """Arcee: a Llama whose FFN has no gate."""
    exact_heads(reader, rows.HIDDEN, rows.HEADS)
    activation = read_activation(reader, rows.HIDDEN_ACT)
    return _llama(reader, activation=activation, **_biases(reader))


def read_seed_oss(reader: FieldReader) -> ModelConfig:
    """Seed-OSS: a Llama whose output projection of attention has a switch of its own."""
    biases = {**_biases(reader), "out_bias": rows.ATTENTION_OUT_BIAS.read(reader)}
    return _llama(reader, **biases)


def read_qwen2(reader: FieldReader) -> ModelConfig:
    """Qwen2: a Llama whose queries, keys and values have biases."""
    return _llama(reader, qkv_bias=True)


def read_qwen3(reader: FieldReader) -> ModelConfig:
    """Qwen3: a Llama whose queries and keys have norms."""
    return _llama(reader, qk_norm=True)


def read_olmo2(reader: FieldReader) -> ModelConfig:
    """OLMo 2: a Llama with norms after its branches, and one over the queries of all heads."""
    biased = rows.ATTENTION_BIAS.read(reader)
    return _llama(
        reader,
        norm_places="after",
        qk_norm=True,
        qk_norm_of_all=True,
        qkv_bias=biased,
        out_bias=biased,
    )


def read_nemotron(reader: FieldReader) -> ModelConfig:
    """Nemotron: layer norms with gains around zero, and an FFN without a gate."""
    return decoder(
        reader,
        norm_eps=rows.NORM_EPS.read(reader),
        zero_centred_gain=True,
        activation=read_activation(reader, rows.HIDDEN_ACT),
        **_biases(reader),
    )


def read_smollm3(reader: FieldReader) -> ModelConfig:
    """SmolLM3: a Llama some of whose layers turn nothing."""
    return _llama(reader, **_biases(reader))


def read_starcoder2(reader: FieldReader) -> ModelConfig:
    """StarCoder2: layer norms, biases everywhere or nowhere, an FFN without a gate."""
    biased = rows.USE_BIAS.read(reader)
    return decoder(
        reader,
        norm_eps=rows.NORM_EPSILON.read(reader),
        activation=read_activation(reader, rows.HIDDEN_ACT),
        linear_bias=biased,
        qkv_bias=biased,
    )


def read_phi3(reader: FieldReader) -> ModelConfig:
    """Phi-3 and Phi-4: a Llama whose fused projections the rows know of."""
    config = _llama(reader)
    if config.rotary.longrope is not None:  # transformers 5 counts its factors by the width
        width = replace(config.rotary, longrope=None).pairs(
            exact_heads(reader, rows.HIDDEN, rows.HEADS)
        )
        if width != config.rotary.pairs(config.head_dim):
            raise BadCheckpointError(
                Text("found ", Found(config.head_dim)),
                "with LongRoPE, transformers takes the model to be as wide as its heads together",
                where=(reader.where, rows.HEAD_DIM.name),
                wanted=f"{config.hidden // config.heads}",
            )
    return config


def read_stablelm(reader: FieldReader) -> ModelConfig:
    """StableLM: layer norms around a gated FFN."""
    rows.HIDDEN_ACT.read(reader)
    return decoder(
        reader,
        norm_eps=rows.LAYER_NORM_EPS.read(reader),
        activation="swiglu",
        linear_bias=False,
        qkv_bias=rows.QKV_BIAS.read(reader),
        residual=read_residual(reader, "parallel_one_norm"),
    )
