"""The families of transformers: for each, where its tensors are, and its fields to ``ModelConfig``.

A reading function refuses what Megatron's block cannot say; what is written says what it can, and
it is left to the caller to find out whether that is all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields import row as types
from flmgrow.formats.huggingface.fields.model_rows import MAX_POSITIONS
from flmgrow.formats.huggingface.fields.names import ROWS
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import AUTO_MAP
from flmgrow.formats.huggingface.flm import CODE, read_flm
from flmgrow.formats.huggingface.granite import read_multipliers
from flmgrow.formats.huggingface.parts import (
    exact_heads,
    grouped_heads,
    read_activation,
    read_kinds,
    read_residual,
    read_window,
)
from flmgrow.formats.huggingface.rotary import read_rotary
from flmgrow.formats.tables import huggingface as tables
from flmgrow.formats.tables.row import Row
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.text import Found, Text


@dataclass(frozen=True)
class Family:
    """A ``model_type`` of transformers.

    ``rows`` say where its tensors are, ``prefix`` is what all keys but the head's begin with (and
    lack where the bare model was saved), ``buffers`` match what is stored and no parameter.
    ``read`` translates the fields that it uses; ``positions`` is the one that holds the longest
    text's length. ``usual_ids`` are those that begin and end a text where no
    field says it. ``code`` says which class of which shipped file stands for
    each of transformers' automatic classes, where it has none; ``older_code`` what published
    models say of it that transformers has classes for by now.
    """

    name: str
    architecture: str
    rows: tuple[Row, ...]
    prefix: str
    buffers: re.Pattern[str]
    read: Callable[[FieldReader], ModelConfig]
    positions: Field[int] = MAX_POSITIONS
    usual_ids: tuple[int | None, int | None] = (None, None)
    code: Mapping[str, str] = field(default_factory=dict)
    older_code: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> dict[str, object]:
        """Fields that say the same of each of its models."""
        return {AUTO_MAP.name: dict(self.code)} if self.code else {}

    @cached_property
    def understood(self) -> frozenset[str]:
        """The names of the fields that are translated."""
        return frozenset(name for name, row in ROWS.items() if row.use_in(self.name) is not None)

    def write(self, config: ModelConfig) -> dict[str, object]:
        """Return the fields for ``config``.

        What has no field is left out, and so is an optional field that has nothing to say.
        """
        uses = {name: row.use_in(self.name) for name, row in ROWS.items()}
        values = {n: use.value(config) for n, use in uses.items() if use is not None and use.value}
        silent = {n for n, use in uses.items() if use is not None and use.optional}
        return {n: value for n, value in values.items() if value is not None or n not in silent}

    @property
    def code_files(self) -> list[str]:
        """The names of the shipped files, sorted."""
        return sorted({f"{place.partition('.')[0]}.py" for place in self.code.values()})

    def is_plain(self, name: str, value: object) -> bool:
        """Whether a field that is not understood has a value that does not matter."""
        if name == AUTO_MAP.name and isinstance(value, dict) and self.older_code:
            return value.items() <= self.older_code.items()
        return ROWS[name].is_neutral(value) or (name in self.fixed and value == self.fixed[name])


def _decoder(reader: FieldReader, **parts: Any) -> ModelConfig:
    """Return a decoder with rotary positions whose sizes have Llama's names.

    ``parts`` say what else it has.
    """
    groups, queries = grouped_heads(reader)
    hidden = rows.HIDDEN.read(reader)
    if rows.HEAD_DIM.use_in(reader.family) is None:
        head_dim = exact_heads(reader, rows.HIDDEN, rows.HEADS)
    else:
        head_dim = rows.HEAD_DIM.read(reader, max(1, hidden // (groups * queries)))
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
        layer_kinds=read_kinds(reader),
        **parts,
    )


def _llama(reader: FieldReader, **parts: Any) -> ModelConfig:
    """Return a decoder of Llama's parts, but for ``parts``."""
    if parts.get("activation") is None:
        rows.HIDDEN_ACT.read(reader)
    usual: dict[str, object] = {
        "norm": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": False,
    }  # fmt: skip
    return _decoder(reader, norm_eps=rows.RMS_NORM_EPS.read(reader), **{**usual, **parts})


def _biases(reader: FieldReader) -> dict[str, bool]:
    """Return which projections have biases where one switch is attention's and one the FFN's."""
    attention, ffn = rows.ATTENTION_BIAS.read(reader), rows.MLP_BIAS.read(reader)
    return {"qkv_bias": attention, "out_bias": attention, "linear_bias": ffn}


def _read_llama(reader: FieldReader) -> ModelConfig:
    exact_heads(reader, rows.HIDDEN, rows.HEADS)  # transformers 5 insists on it
    return _llama(reader, **_biases(reader))


def _read_granite(reader: FieldReader) -> ModelConfig:
    config = _llama(reader, **_biases(reader))
    return replace(config, multipliers=read_multipliers(reader, config.hidden))


def _read_arcee(reader: FieldReader) -> ModelConfig:
    exact_heads(reader, rows.HIDDEN, rows.HEADS)
    activation = read_activation(reader, rows.HIDDEN_ACT)
    return _llama(reader, activation=activation, **_biases(reader))


def _read_seed_oss(reader: FieldReader) -> ModelConfig:
    biases = {**_biases(reader), "out_bias": rows.ATTENTION_OUT_BIAS.read(reader)}
    return _llama(reader, **biases)


def _read_qwen2(reader: FieldReader) -> ModelConfig:
    return _llama(reader, qkv_bias=True)


def _read_qwen3(reader: FieldReader) -> ModelConfig:
    return _llama(reader, qk_norm=True)


def _read_nemotron(reader: FieldReader) -> ModelConfig:
    return _decoder(
        reader,
        norm_eps=rows.NORM_EPS.read(reader),
        zero_centred_gain=True,
        activation=read_activation(reader, rows.HIDDEN_ACT),
        **_biases(reader),
    )


def _read_smollm3(reader: FieldReader) -> ModelConfig:
    return _llama(reader, **_biases(reader))


def _read_starcoder2(reader: FieldReader) -> ModelConfig:
    biased = rows.USE_BIAS.read(reader)
    return _decoder(
        reader,
        norm_eps=rows.NORM_EPSILON.read(reader),
        activation=read_activation(reader, rows.HIDDEN_ACT),
        linear_bias=biased,
        qkv_bias=biased,
    )


def _read_phi3(reader: FieldReader) -> ModelConfig:
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


def _read_stablelm(reader: FieldReader) -> ModelConfig:
    rows.HIDDEN_ACT.read(reader)
    return _decoder(
        reader,
        norm_eps=rows.LAYER_NORM_EPS.read(reader),
        activation="swiglu",
        linear_bias=False,
        qkv_bias=rows.QKV_BIAS.read(reader),
        residual=read_residual(reader, "parallel_one_norm"),
    )


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


def _read_gpt2(reader: FieldReader) -> ModelConfig:
    config, by_layer = _of_gpt2(reader), rows.BY_INVERSE_LAYER.read(reader)
    scores = replace(config.multipliers, attention_by_inverse_layer=by_layer)
    return replace(config, multipliers=scores)


def _read_gpt_bigcode(reader: FieldReader) -> ModelConfig:
    return _of_gpt2(reader, 1 if rows.MULTI_QUERY.read(reader) else None)


def _read_neox(reader: FieldReader) -> ModelConfig:
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


_LLAMA_BUFFERS = re.compile(
    r"model\.(?:layers\.[0-9]{1,6}\.self_attn\.)?rotary_emb\.inv_freq|rotary_emb\.inv_freq"
)
_GPT2_BUFFERS = re.compile(r"(?:transformer\.)?h\.[0-9]{1,6}\.attn\.(?:masked_)?bias")
_NEOX_BUFFERS = re.compile(
    r"(?:gpt_neox\.)?layers\.[0-9]{1,6}\.attention\."
    r"(?:bias|masked_bias|rotary_emb\.inv_freq)"
)


_PHI3_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    "AutoTokenizer": "Xenova/gpt-4o",
}
"""What Phi-3 and Phi-4 are published with: the code from before transformers had its own."""


def _of_llama(
    name: str,
    architecture: str,
    read: Callable[[FieldReader], ModelConfig],
    usual_ids: tuple[int | None, int | None] = (None, None),
    rows: tuple[Row, ...] = tables.LLAMA,
    older_code: Mapping[str, str] | None = None,
) -> Family:
    return Family(
        name, architecture, rows, "model.", _LLAMA_BUFFERS, read, usual_ids=usual_ids,
        older_code=older_code or {},
    )  # fmt: skip


_FAMILIES = (
    _of_llama(types.LLAMA, "LlamaForCausalLM", _read_llama, (1, 2)),
    _of_llama(types.QWEN2, "Qwen2ForCausalLM", _read_qwen2),
    _of_llama(types.QWEN3, "Qwen3ForCausalLM", _read_qwen3),
    _of_llama(types.MISTRAL, "MistralForCausalLM", _llama, (1, 2)),
    Family(
        types.GPT2, "GPT2LMHeadModel", tables.GPT2, "transformer.", _GPT2_BUFFERS, _read_gpt2,
        rows.N_POSITIONS, (50256, 50256),
    ),
    Family(
        types.GPT_NEOX, "GPTNeoXForCausalLM", tables.GPT_NEOX, "gpt_neox.", _NEOX_BUFFERS,
        _read_neox, usual_ids=(0, 2),
    ),
    Family(
        types.FLM, "FLMForCausalLM", tables.GPT2, "transformer.", _GPT2_BUFFERS, read_flm,
        rows.N_POSITIONS, code=CODE,
    ),
    _of_llama(types.GRANITE, "GraniteForCausalLM", _read_granite, (1, 2)),
    _of_llama(types.ARCEE, "ArceeForCausalLM", _read_arcee, (128000, 128001)),
    _of_llama(types.NEMOTRON, "NemotronForCausalLM", _read_nemotron, (2, 3)),
    _of_llama(types.STABLELM, "StableLmForCausalLM", _read_stablelm, (0, 0)),
    _of_llama(types.PHI3, "Phi3ForCausalLM", _read_phi3, (1, 32000), tables.PHI3, _PHI3_CODE),
    Family(
        types.GPT_BIGCODE, "GPTBigCodeForCausalLM", tables.GPT_BIGCODE, "transformer.",
        _GPT2_BUFFERS, _read_gpt_bigcode, rows.N_POSITIONS, (50256, 50256),
    ),
    _of_llama(types.SEED_OSS, "SeedOssForCausalLM", _read_seed_oss, (0, 2)),
    _of_llama(types.SMOLLM3, "SmolLM3ForCausalLM", _read_smollm3, (128000, 128001)),
    _of_llama(
        types.STARCODER2, "Starcoder2ForCausalLM", _read_starcoder2, (50256, 50256),
        tables.STARCODER2,
    ),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    name: family for name in types.MODEL_TYPES for family in _FAMILIES if family.name == name
}
"""By ``model_type``, in the order in which they are tried for a model that came from elsewhere."""
