"""The families of transformers: for each, its rows, and its fields to ``ModelConfig`` and back.

A reading function refuses what Megatron's block cannot say; a writing function says what it can and
leaves it to its caller to find out whether that is all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import MAX_LAYERS, ArgumentReader
from flmgrow.formats.huggingface import flm
from flmgrow.formats.huggingface.field_names import NEUTRAL
from flmgrow.formats.huggingface.parts import (
    activation_name,
    exact_heads,
    grouped_heads,
    read_activation,
    refuse_window,
)
from flmgrow.formats.huggingface.rotary import read_rotary, written_rotary
from flmgrow.formats.tables.huggingface import GPT2, GPT_NEOX, LLAMA
from flmgrow.formats.tables.row import Row
from flmgrow.model.config import ModelConfig, Multipliers

_NEOX_BASE = ("rotary_emb_base", "rope_theta")
_NEOX_SHARE = ("rotary_pct", "partial_rotary_factor")


@dataclass(frozen=True)
class Family:
    """A ``model_type`` of transformers.

    ``rows`` say where its tensors are, ``prefix`` is what all keys but the head's begin with (and
    lack where the bare model was saved), ``buffers`` match what is stored and no parameter.
    ``read`` and ``write`` translate its fields, which are ``understood``; ``positions`` is the one
    that holds the longest text's length. ``usual_ids`` are those that begin and end a text where no
    field says it. ``code`` says which class of which shipped file stands for
    each of transformers' automatic classes, where it has none.
    """

    name: str
    architecture: str
    rows: tuple[Row, ...]
    prefix: str
    buffers: re.Pattern[str]
    read: Callable[[ArgumentReader], ModelConfig]
    write: Callable[[ModelConfig], dict[str, object]]
    understood: frozenset[str]
    positions: str = "max_position_embeddings"
    usual_ids: tuple[int | None, int | None] = (None, None)
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> dict[str, object]:
        """Fields that say the same of each of its models."""
        return {"auto_map": dict(self.code)} if self.code else {}

    @property
    def code_files(self) -> list[str]:
        """The names of the shipped files, sorted."""
        return sorted({f"{place.partition('.')[0]}.py" for place in self.code.values()})

    def is_plain(self, name: str, value: object) -> bool:
        """Whether a field that is not understood has a value that does not matter."""
        own = [self.fixed[name]] if name in self.fixed else []
        values = [*NEUTRAL.get(name, (None,)), *own]
        return any(value == plain and type(value) is type(plain) for plain in values)


def _llama(
    reader: ArgumentReader, *, qkv_bias: bool = False, linear_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:  # fmt: skip
    groups, queries = grouped_heads(reader, "num_attention_heads", "num_key_value_heads")
    hidden = reader.integer("hidden_size")
    reader.choice("hidden_act", ("silu", "swish"), "silu")
    return ModelConfig(
        layers=reader.integer("num_hidden_layers", most=MAX_LAYERS),
        hidden=hidden,
        ffn=reader.integer("intermediate_size"),
        kv_groups=groups,
        queries_per_group=queries,
        head_dim=reader.integer("head_dim", max(1, hidden // (groups * queries))),
        vocab=reader.integer("vocab_size"),
        max_positions=reader.integer("max_position_embeddings"),
        norm="rmsnorm",
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        linear_bias=linear_bias,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied=reader.flag("tie_word_embeddings"),
        positions="rope",
        rotary=read_rotary(reader),
    )


def _read_llama(reader: ArgumentReader) -> ModelConfig:
    exact_heads(reader, "hidden_size", "num_attention_heads")  # transformers 5 insists on it
    biases = [reader.flag("attention_bias"), reader.flag("mlp_bias")]
    if biases[0] != biases[1]:
        raise BadCheckpointError(
            f"{reader.where}: attention_bias is {biases[0]}, mlp_bias is {biases[1]}: wanted both "
            "or neither",
            "Megatron's block has one switch for the two",
        )
    return _llama(reader, qkv_bias=biases[0], linear_bias=biases[1])


def _read_mistral(reader: ArgumentReader) -> ModelConfig:
    refuse_window(reader, default=4096)
    return _llama(reader)


def _read_qwen2(reader: ArgumentReader) -> ModelConfig:
    refuse_window(reader, default=None)
    return _llama(reader, qkv_bias=True)


def _read_qwen3(reader: ArgumentReader) -> ModelConfig:
    refuse_window(reader, default=None)
    return _llama(reader, qk_norm=True)


def _read_gpt2(reader: ArgumentReader) -> ModelConfig:
    hidden = reader.integer("n_embd")
    scaled = reader.flag("scale_attn_weights", default=True)
    by_layer = reader.flag("scale_attn_by_inverse_layer_idx")
    return ModelConfig(
        layers=reader.integer("n_layer", most=MAX_LAYERS),
        hidden=hidden,
        ffn=reader.integer("n_inner", 4 * hidden),
        kv_groups=reader.integer("n_head"),
        queries_per_group=1,
        head_dim=exact_heads(reader, "n_embd", "n_head"),
        vocab=reader.integer("vocab_size"),
        max_positions=reader.integer("n_positions"),
        norm_eps=reader.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(reader, "activation_function", "gelu_new"),
        tied=reader.flag("tie_word_embeddings", default=True),
        positions="learned",
        multipliers=Multipliers(
            attention=None if scaled else 1.0, attention_by_inverse_layer=by_layer
        ),
    )


def _read_neox(reader: ArgumentReader) -> ModelConfig:
    for name, wanted in (("use_parallel_residual", False), ("attention_bias", True)):
        if reader.flag(name, default=True) != wanted:
            raise BadCheckpointError(
                f"{reader.where}: {name}: found {not wanted}, wanted {wanted}",
                "Megatron's block adds attention before the FFN, and has biases everywhere or "
                "nowhere",
            )
    return ModelConfig(
        layers=reader.integer("num_hidden_layers", most=MAX_LAYERS),
        hidden=reader.integer("hidden_size"),
        ffn=reader.integer("intermediate_size"),
        kv_groups=reader.integer("num_attention_heads"),
        queries_per_group=1,
        head_dim=exact_heads(reader, "hidden_size", "num_attention_heads"),
        vocab=reader.integer("vocab_size"),
        max_positions=reader.integer("max_position_embeddings"),
        norm_eps=reader.number("layer_norm_eps", 1e-5),
        activation=read_activation(reader, "hidden_act", "gelu"),
        tied=reader.flag("tie_word_embeddings"),
        positions="rope",
        rotary=read_rotary(reader, _NEOX_BASE, _NEOX_SHARE, 0.25),
    )


def _write_llama(config: ModelConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_groups,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        **written_rotary(config.rotary),
    }


def _write_llama_biases(config: ModelConfig) -> dict[str, object]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.linear_bias}
    return {**_write_llama(config), **biases}


def _write_mistral(config: ModelConfig) -> dict[str, object]:
    return {**_write_llama(config), "sliding_window": None}


def _write_gpt2(config: ModelConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab,
        "n_embd": config.hidden,
        "n_inner": config.ffn,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.max_positions,
        "activation_function": activation_name(config),
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.multipliers.attention != 1.0,
        "scale_attn_by_inverse_layer_idx": config.multipliers.attention_by_inverse_layer,
        "tie_word_embeddings": config.tied,
    }


def _write_neox(config: ModelConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": activation_name(config),
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "use_parallel_residual": False,
        "attention_bias": True,
        **written_rotary(config.rotary, _NEOX_BASE[0], _NEOX_SHARE[0]),
    }


_LLAMA_BUFFERS = re.compile(
    r"model\.(?:layers\.[0-9]{1,6}\.self_attn\.)?rotary_emb\.inv_freq|rotary_emb\.inv_freq"
)
_GPT2_BUFFERS = re.compile(r"(?:transformer\.)?h\.[0-9]{1,6}\.attn\.(?:masked_)?bias")
_NEOX_BUFFERS = re.compile(
    r"(?:gpt_neox\.)?layers\.[0-9]{1,6}\.attention\."
    r"(?:bias|masked_bias|rotary_emb\.inv_freq)"
)
_LLAMA_FIELDS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps
    tie_word_embeddings rope_theta rope_scaling rope_parameters
    """.split()
)
_WINDOW = frozenset({"sliding_window", "use_sliding_window", "layer_types"})
_GPT2_FIELDS = frozenset(
    """
    vocab_size n_embd n_inner n_layer n_head n_positions activation_function layer_norm_epsilon
    scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings
    """.split()
)
_NEOX_FIELDS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act
    max_position_embeddings layer_norm_eps tie_word_embeddings use_parallel_residual
    attention_bias rope_scaling rope_parameters
    """.split()
).union(_NEOX_BASE, _NEOX_SHARE)


def _llama_family(
    name: str,
    architecture: str,
    read: Callable[[ArgumentReader], ModelConfig],
    write: Callable[[ModelConfig], dict[str, object]],
    more: frozenset[str],
    usual_ids: tuple[int | None, int | None] = (None, None),
) -> Family:
    return Family(
        name, architecture, LLAMA, "model.", _LLAMA_BUFFERS, read, write, _LLAMA_FIELDS | more,
        usual_ids=usual_ids,
    )  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _llama_family(
            "llama", "LlamaForCausalLM", _read_llama, _write_llama_biases,
            frozenset({"attention_bias", "mlp_bias"}), (1, 2),
        ),
        _llama_family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_llama, _WINDOW),
        _llama_family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_llama, _WINDOW),
        Family(
            "gpt2", "GPT2LMHeadModel", GPT2, "transformer.", _GPT2_BUFFERS, _read_gpt2, _write_gpt2,
            _GPT2_FIELDS, "n_positions", (50256, 50256),
        ),
        Family(
            "gpt_neox", "GPTNeoXForCausalLM", GPT_NEOX, "gpt_neox.", _NEOX_BUFFERS, _read_neox,
            _write_neox, _NEOX_FIELDS, usual_ids=(0, 2),
        ),
        _llama_family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, _WINDOW,
                      (1, 2)),
        Family(
            "flm", "FLMForCausalLM", GPT2, "transformer.", _GPT2_BUFFERS, flm.read_flm,
            flm.write_flm, flm.FIELDS, "n_positions", code=flm.CODE,
        ),
    )
}  # fmt: skip
"""By ``model_type``, in the order in which they are tried for a model that came from elsewhere."""
