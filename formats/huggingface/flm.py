"""FLM's fields in ``config.json``, as FLM-101B's was published, to ``ModelConfig`` and back.

Logits are multiplied by ``output_mult / mup_scale_factor``, which is a model's logit factor if the
scale factor is the width over the base width. ``head_dim``, ``rotary_interleaved`` and
``rotary_xpos_centre`` are fields of our own; the code that an export ships reads them.
"""

from collections.abc import Mapping
from dataclasses import replace

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import MAX_LAYERS, ArgumentReader
from flmgrow.formats.huggingface.parts import activation_name, exact_heads, read_activation
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings

CODE: Mapping[str, str] = {
    "AutoConfig": "configuration_flm.FLMConfig",
    "AutoModel": "modeling_flm.FLMModel",
    "AutoModelForCausalLM": "modeling_flm.FLMForCausalLM",
}
"""Which class of which shipped file each of transformers' automatic classes stands for."""

MAX_WIDTH = 1 << 30
"""More is taken for damage, before it is divided by."""

FIELDS = frozenset(
    """
    vocab_size n_embd n_inner n_layer n_head n_positions head_dim activation_function
    layer_norm_epsilon relative_encoding rotary_theta rotary_interleaved rotary_use_xpos
    rotary_xpos_scale_base rotary_xpos_centre scale_attn_weights scale_attn_by_inverse_layer_idx
    use_mup mup_base_width mup_scale_factor input_mult output_mult tie_word_embeddings
    """.split()
)


def _positive(reader: ArgumentReader, name: str, default: float) -> float:
    value = reader.number(name, default)
    if value <= 0:
        raise BadCheckpointError(
            f"{reader.where}: {name}: found {value:g}, wanted a positive number"
        )
    return value


def _rotary(reader: ArgumentReader) -> RotarySettings:
    return RotarySettings(
        base=_positive(reader, "rotary_theta", 10000.0),
        interleaved=reader.flag("rotary_interleaved"),
        xpos_scale_base=_positive(reader, "rotary_xpos_scale_base", 512.0),
        xpos_centre=reader.optional_integer("rotary_xpos_centre") or 0,
    )


def _scale_factor(hidden: int, base: int | None) -> float:
    return 1.0 if base is None else hidden / base


def _multipliers(reader: ArgumentReader, hidden: int) -> Multipliers:
    scores = Multipliers(
        attention=None if reader.flag("scale_attn_weights", default=True) else 1.0,
        attention_by_inverse_layer=reader.flag("scale_attn_by_inverse_layer_idx"),
    )
    if not reader.flag("use_mup"):
        return scores
    base = None
    if reader.arguments.get("mup_base_width") is not None:
        base = reader.integer("mup_base_width", most=MAX_WIDTH)
    wanted = _scale_factor(hidden, base)
    if (found := reader.number("mup_scale_factor", wanted)) != wanted:
        raise BadCheckpointError(
            f"{reader.where}: mup_scale_factor: found {found:g}, wanted n_embd / mup_base_width "
            f"({wanted:g})",
            "only such a factor can follow the width when the model grows",
        )
    return replace(
        scores,
        embedding=reader.number("input_mult", 1.0),
        output=reader.number("output_mult", 1.0),
        mup_base_width=base,
    )


def read_flm(reader: ArgumentReader) -> ModelConfig:
    """Return the model that an FLM's ``config.json`` describes. Raises BadCheckpointError.

    Fields that are not there have the defaults of the shipped ``FLMConfig``.
    """
    hidden, heads = reader.integer("n_embd", most=MAX_WIDTH), reader.integer("n_head")
    given = reader.arguments.get("head_dim") is not None
    reader.choice("relative_encoding", ("rotary",), "rotary")
    return ModelConfig(
        layers=reader.integer("n_layer", most=MAX_LAYERS),
        hidden=hidden,
        ffn=reader.integer("n_inner", 4 * hidden),
        kv_groups=heads,
        queries_per_group=1,
        head_dim=reader.integer("head_dim") if given else exact_heads(reader, "n_embd", "n_head"),
        vocab=reader.integer("vocab_size"),
        max_positions=reader.integer("n_positions"),
        norm_eps=reader.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(reader, "activation_function", "gelu_fast"),
        tied=reader.flag("tie_word_embeddings", default=True),
        positions="xpos" if reader.flag("rotary_use_xpos") else "rope",
        rotary=_rotary(reader),
        multipliers=_multipliers(reader, hidden),
    )


def write_flm(config: ModelConfig) -> dict[str, object]:
    """Return the fields for ``config``; what has no field is left out."""
    factors = config.multipliers
    return {
        "vocab_size": config.vocab,
        "n_embd": config.hidden,
        "n_inner": config.ffn,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.max_positions,
        "head_dim": config.head_dim,
        "activation_function": activation_name(config),
        "layer_norm_epsilon": config.norm_eps,
        "relative_encoding": "rotary",
        "rotary_theta": config.rotary.base,
        "rotary_interleaved": config.rotary.interleaved,
        "rotary_use_xpos": config.positions == "xpos",
        "rotary_xpos_scale_base": config.rotary.xpos_scale_base,
        "rotary_xpos_centre": config.rotary.xpos_centre,
        "scale_attn_weights": factors.attention != 1.0,
        "scale_attn_by_inverse_layer_idx": factors.attention_by_inverse_layer,
        "use_mup": (factors.embedding, factors.output, factors.mup_base_width) != (1, 1, None),
        "mup_base_width": factors.mup_base_width,
        "mup_scale_factor": _scale_factor(config.hidden, factors.mup_base_width),
        "input_mult": factors.embedding,
        "output_mult": factors.output,
        "tie_word_embeddings": config.tied,
    }
