"""The families of transformers: for each, where its tensors are, and its fields to ``ModelConfig``.

A reading function refuses what Megatron's block cannot say; what is written says what it can, and
it is left to the caller to find out whether that is all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

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
    refuse_window,
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
    each of transformers' automatic classes, where it has none.
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
        return ROWS[name].is_neutral(value) or (name in self.fixed and value == self.fixed[name])


def _llama(
    reader: FieldReader, *, qkv_bias: bool = False, linear_bias: bool = False, qk_norm: bool = False
) -> ModelConfig:
    refuse_window(reader)
    groups, queries = grouped_heads(reader)
    hidden = rows.HIDDEN.read(reader)
    rows.HIDDEN_ACT.read(reader)
    return ModelConfig(
        layers=rows.LAYERS.read(reader),
        hidden=hidden,
        ffn=rows.FFN.read(reader),
        kv_groups=groups,
        queries_per_group=queries,
        head_dim=rows.HEAD_DIM.read(reader, max(1, hidden // (groups * queries))),
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.MAX_POSITIONS.read(reader),
        norm="rmsnorm",
        norm_eps=rows.RMS_NORM_EPS.read(reader),
        activation="swiglu",
        linear_bias=linear_bias,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied=rows.TIED.read(reader),
        positions="rope",
        rotary=read_rotary(reader),
    )


def _read_llama(reader: FieldReader) -> ModelConfig:
    exact_heads(reader, rows.HIDDEN, rows.HEADS)  # transformers 5 insists on it
    return _llama_with_biases(reader)


def _llama_with_biases(reader: FieldReader) -> ModelConfig:
    both = (rows.ATTENTION_BIAS, rows.MLP_BIAS)
    attention, ffn = (row.read(reader) for row in both)
    if attention != ffn:
        raise BadCheckpointError(
            f"{both[0].name} is {attention}, {both[1].name} is {ffn}: wanted both or neither",
            "Megatron's block has one switch for the two",
            where=reader.where,
        )
    return _llama(reader, qkv_bias=attention, linear_bias=ffn)


def _read_granite(reader: FieldReader) -> ModelConfig:
    config = _llama_with_biases(reader)
    return replace(config, multipliers=read_multipliers(reader, config.hidden))


def _read_qwen2(reader: FieldReader) -> ModelConfig:
    return _llama(reader, qkv_bias=True)


def _read_qwen3(reader: FieldReader) -> ModelConfig:
    return _llama(reader, qk_norm=True)


def _read_gpt2(reader: FieldReader) -> ModelConfig:
    hidden = rows.N_EMBD.read(reader)
    scaled = rows.SCALED.read(reader)
    by_layer = rows.BY_INVERSE_LAYER.read(reader)
    return ModelConfig(
        layers=rows.N_LAYER.read(reader),
        hidden=hidden,
        ffn=rows.N_INNER.read(reader, 4 * hidden),
        kv_groups=rows.N_HEAD.read(reader),
        queries_per_group=1,
        head_dim=exact_heads(reader, rows.N_EMBD, rows.N_HEAD),
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.N_POSITIONS.read(reader),
        norm_eps=rows.LAYER_NORM_EPSILON.read(reader),
        activation=read_activation(reader, rows.ACTIVATION_FUNCTION),
        tied=rows.TIED.read(reader),
        positions="learned",
        multipliers=Multipliers(
            attention=None if scaled else 1.0, attention_by_inverse_layer=by_layer
        ),
    )


def _read_neox(reader: FieldReader) -> ModelConfig:
    refuse_window(reader)
    for row, wanted in ((rows.PARALLEL, False), (rows.ATTENTION_BIAS, True)):
        if row.read(reader) != wanted:
            raise BadCheckpointError(
                Text("found ", Found(not wanted)),
                "Megatron's block adds attention before the FFN, and has biases everywhere or "
                "nowhere",
                where=(reader.where, row.name),
                wanted=wanted,
            )
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


def _llama_family(
    name: str,
    architecture: str,
    read: Callable[[FieldReader], ModelConfig],
    usual_ids: tuple[int | None, int | None] = (None, None),
) -> Family:
    return Family(
        name, architecture, tables.LLAMA, "model.", _LLAMA_BUFFERS, read, usual_ids=usual_ids
    )


_FAMILIES = (
    _llama_family(types.LLAMA, "LlamaForCausalLM", _read_llama, (1, 2)),
    _llama_family(types.QWEN2, "Qwen2ForCausalLM", _read_qwen2),
    _llama_family(types.QWEN3, "Qwen3ForCausalLM", _read_qwen3),
    _llama_family(types.MISTRAL, "MistralForCausalLM", _llama, (1, 2)),
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
    _llama_family(types.GRANITE, "GraniteForCausalLM", _read_granite, (1, 2)),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    name: family for name in types.MODEL_TYPES for family in _FAMILIES if family.name == name
}
"""By ``model_type``, in the order in which they are tried for a model that came from elsewhere."""
