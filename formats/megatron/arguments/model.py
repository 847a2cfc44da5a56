"""Reading a model's configuration from Megatron-LM's arguments.

Megatron-LM's ``args`` say what the model computes, in names this module understands or refuses. A
checkpoint carries some hundred arguments. Those that describe the model are translated to a
``ModelConfig`` and back. Which of the others stop the run, ``classes.py`` says; the rest
is carried unchanged.

What Megatron has no argument for (xPos, muP multipliers, the paper's attention scale, the true
vocabulary size) stands under names of our own, with the prefix ``flmgrow_``.
"""

from collections.abc import Collection
from typing import cast

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import MAX_LAYERS, MAX_TOKENS, ArgumentReader
from flmgrow.formats.layout.placements import padded_size
from flmgrow.formats.megatron.arguments.classes import OWN_PREFIX, Arguments, refuse_unknown
from flmgrow.model.config import (
    Activation,
    ModelConfig,
    Multipliers,
    Norm,
    Positions,
    RotarySettings,
)


def _activation(reader: ArgumentReader) -> Activation:
    if reader.flag("swiglu"):
        return "swiglu"
    if reader.flag("squared_relu"):
        return "squared_relu"
    fused = reader.flag("bias_gelu_fusion") and reader.flag("add_bias_linear", default=True)
    return "gelu_tanh" if fused or reader.flag("openai_gelu") else "gelu"


def _positions(reader: ArgumentReader) -> Positions:
    if reader.flag("use_rotary_position_embeddings"):
        kind = "rope"
    else:
        kind = reader.choice(
            "position_embedding_type", ("learned_absolute", "rope", "none"), "learned_absolute"
        )
    if kind == "rope" and reader.arguments.get("flmgrow_xpos_scale_base") is not None:
        return "xpos"
    return "learned" if kind == "learned_absolute" else cast(Positions, kind)


def _rotary(reader: ArgumentReader) -> RotarySettings:
    scaled = reader.flag("use_rope_scaling")
    return RotarySettings(
        base=reader.number("rotary_base", 10000.0),
        percent=reader.number("rotary_percent", 1.0),
        interleaved=reader.flag("rotary_interleaved"),
        scaling_factor=reader.number("rope_scaling_factor", 8.0) if scaled else None,
        interpolation=reader.optional_number("rotary_seq_len_interpolation_factor"),
        xpos_scale_base=reader.number("flmgrow_xpos_scale_base", 512.0),
        xpos_centre=reader.optional_integer("flmgrow_xpos_centre") or 0,
    )


def _multipliers(reader: ArgumentReader) -> Multipliers:
    return Multipliers(
        embedding=reader.number("flmgrow_embedding_multiplier", 1.0),
        output=reader.number("flmgrow_output_multiplier", 1.0),
        mup_base_width=reader.optional_integer("flmgrow_mup_base_width"),
        attention=reader.optional_number("softmax_scale"),
        attention_by_inverse_layer=reader.flag("flmgrow_attention_by_inverse_layer"),
    )


def true_vocabulary(reader: ArgumentReader, padded: int) -> int:
    """Return the number of real ids in a table of ``padded`` rows, as far as the arguments tell.

    Megatron-LM's NullTokenizer adds an end-of-document id to ``vocab_size`` in some versions;
    counting one row too many is harmless, one too few is not. So where ``vocab_size``, padded as
    Megatron-LM does it, is not the size of the table, all rows are taken as real: the argument is
    of another tokenizer, or the table's size was given.
    """
    if own := reader.optional_integer("flmgrow_true_vocab_size"):
        return min(own, padded)
    given = reader.optional_integer("vocab_size")
    if not given:
        return padded
    size = given + _added_ids(reader.arguments)
    multiple = reader.integer("make_vocab_size_divisible_by", 128)
    tp = reader.integer("tensor_model_parallel_size", 1)
    by_rule = {padded_size(one, multiple, tp) for one in (given, size)}
    return min(size, padded) if padded in by_rule else padded


def vocabulary_notes(arguments: Arguments, vocab: int) -> tuple[str, ...]:
    """Return what to tell of a model of ``vocab`` ids if ``vocab_size`` says fewer, or nothing."""
    given = arguments.get("vocab_size")
    told = arguments.get("flmgrow_true_vocab_size") is not None
    if told or not isinstance(given, int) or vocab <= given + _added_ids(arguments):
        return ()
    return (
        f"args.vocab_size is {given}, which does not explain a table of {vocab} rows: all of them "
        "are taken as real (--true-vocab-size says otherwise)",
    )


def tokens_seen(arguments: Arguments) -> int | None:
    """Return how many tokens training says it has consumed; None where it does not say.

    The count goes on through growth, as Megatron-LM's own does.
    """
    samples, length = (arguments.get(name) for name in ("consumed_train_samples", "seq_length"))
    if not isinstance(samples, int) or not isinstance(length, int):
        return None
    tokens = samples * length
    return tokens if 0 < tokens < MAX_TOKENS else None


def _added_ids(arguments: Arguments) -> int:
    """Return how many ids the tokenizer has beyond ``vocab_size``."""
    return int(arguments.get("tokenizer_type") == "NullTokenizer")


def read_config(
    arguments: Arguments, where: str, padded_vocab: int, ignored: Collection[str] = ()
) -> ModelConfig:
    """Return the model that ``arguments`` describe; ``where`` names their file in messages.

    Raises BadCheckpointError for a missing or malformed value, and for anything that changes the
    function and is not understood.
    """
    refuse_unknown(arguments, where, ignored)
    reader = ArgumentReader(arguments, where)
    heads = reader.integer("num_attention_heads")
    groups = reader.integer("num_query_groups") if reader.flag("group_query_attention") else heads
    if heads % groups:
        raise BadCheckpointError(f"{where}: {heads} heads are no multiple of {groups} query groups")
    hidden = reader.integer("hidden_size")
    linear_bias = reader.flag("add_bias_linear", default=True)
    norm = reader.choice("normalization", ("LayerNorm", "RMSNorm"), "LayerNorm")
    eps_name = "norm_epsilon" if "norm_epsilon" in arguments else "layernorm_epsilon"
    return ModelConfig(
        layers=reader.integer("num_layers", most=MAX_LAYERS),
        hidden=hidden,
        ffn=reader.integer("ffn_hidden_size", 4 * hidden),
        kv_groups=groups,
        queries_per_group=heads // groups,
        head_dim=reader.integer("kv_channels", max(1, hidden // heads)),
        vocab=true_vocabulary(reader, padded_vocab),
        max_positions=reader.integer("max_position_embeddings"),
        norm=cast(Norm, norm.lower()),
        norm_eps=reader.number(eps_name, 1e-5),
        zero_centred_gain=reader.flag("apply_layernorm_1p", "layernorm_zero_centered_gamma"),
        activation=_activation(reader),
        linear_bias=linear_bias,
        qkv_bias=linear_bias or reader.flag("add_qkv_bias"),
        qk_norm=reader.flag("qk_layernorm"),
        tied=not reader.flag("untie_embeddings_and_output_weights"),
        positions=_positions(reader),
        rotary=_rotary(reader),
        multipliers=_multipliers(reader),
    )


def _sizes(arguments: Arguments, config: ModelConfig) -> dict[str, object]:
    grouped = config.queries_per_group > 1
    eps_name = "norm_epsilon" if "norm_epsilon" in arguments else "layernorm_epsilon"
    changes: dict[str, object] = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.heads,
        "kv_channels": config.head_dim,
        "group_query_attention": grouped,
        "untie_embeddings_and_output_weights": not config.tied,
        eps_name: config.norm_eps,
        "flmgrow_true_vocab_size": config.vocab,
    }
    if grouped or arguments.get("group_query_attention"):
        changes["num_query_groups"] = config.kv_groups
    return changes | _followers(arguments, config)


def _followers(arguments: Arguments, config: ModelConfig) -> dict[str, object]:
    """Return what Megatron-LM derives from the model's sizes, where it has done so.

    ``num_query_groups`` of a multi-head model is 1 if nobody gave it, and not looked at.
    ``moe_ffn_hidden_size`` is filled in without any experts, too.
    """
    changes: dict[str, object] = {}
    multi_head = config.queries_per_group == 1
    if multi_head and arguments.get("num_query_groups") not in (None, 1):
        changes["num_query_groups"] = config.heads
    if arguments.get("encoder_num_layers") is not None:
        changes["encoder_num_layers"] = config.layers
    width = arguments.get("ffn_hidden_size")
    if width is not None and arguments.get("moe_ffn_hidden_size") == width:
        changes["moe_ffn_hidden_size"] = config.ffn
    kinds = arguments.get("cp_comm_type")
    if isinstance(kinds, list) and len(kinds) > 1 and len({str(kind) for kind in kinds}) == 1:
        changes["cp_comm_type"] = kinds[:1]  # one for all layers, however many there are
    if arguments.get("vocab_size") is not None and _grows_vocabulary(arguments, config):
        changes["vocab_size"] = config.vocab - _added_ids(arguments)
    return changes


def _grows_vocabulary(arguments: Arguments, config: ModelConfig) -> bool:
    """Whether ``config`` has more ids than the model that ``arguments`` describe; if not, their
    ``vocab_size`` is the tokenizer's, whatever it says of the table.
    """
    reader = ArgumentReader(arguments, "args")
    padded = reader.optional_integer("padded_vocab_size") or config.vocab
    return config.vocab > true_vocabulary(reader, padded)


def _own(config: ModelConfig) -> dict[str, object]:
    factors = config.multipliers
    own = {
        "flmgrow_embedding_multiplier": (factors.embedding, 1.0),
        "flmgrow_output_multiplier": (factors.output, 1.0),
        "flmgrow_mup_base_width": (factors.mup_base_width, None),
        "flmgrow_attention_by_inverse_layer": (factors.attention_by_inverse_layer, False),
    }
    if config.positions == "xpos":
        own["flmgrow_xpos_scale_base"] = (config.rotary.xpos_scale_base, None)
        own["flmgrow_xpos_centre"] = (config.rotary.xpos_centre, 0)
    return {name: value for name, (value, default) in own.items() if value != default}


def written_arguments(arguments: Arguments, config: ModelConfig) -> dict[str, object]:
    """Return ``arguments`` with everything that describes the model brought up to ``config``."""
    kept = {name: value for name, value in arguments.items() if not name.startswith(OWN_PREFIX)}
    return {**kept, **_sizes(arguments, config), **_own(config)}
