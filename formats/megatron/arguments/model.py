"""Reading a model's configuration from Megatron-LM's arguments.

Megatron-LM's ``args`` say what the model computes, in names this module understands or refuses. A
checkpoint carries some hundred arguments. Those that describe the model have a row each
(``model_rows.py``, ``vocabulary_rows.py``) and are translated to a ``ModelConfig`` and back. Which
of the others stop the run, ``classes.py`` says; the rest is carried unchanged.
"""

from collections.abc import Collection
from typing import Any, cast

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import MAX_TOKENS, ArgumentReader
from flmgrow.formats.megatron.arguments import model_rows as rows
from flmgrow.formats.megatron.arguments.classes import OWN_PREFIX, refuse_unknown
from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS, read_kinds
from flmgrow.formats.megatron.arguments.mup import read_multipliers
from flmgrow.formats.megatron.arguments.mup_rows import MUP_ROWS
from flmgrow.formats.megatron.arguments.row import Arguments, ModelArgument
from flmgrow.formats.megatron.arguments.run_rows import SAMPLES_SEEN, SEQUENCE_LENGTH
from flmgrow.formats.megatron.arguments.vocabulary_rows import TRUE_VOCAB, VOCAB, true_vocabulary
from flmgrow.model.config import (
    Activation,
    ModelConfig,
    Norm,
    Positions,
    RotarySettings,
)

_WRITTEN: tuple[ModelArgument[Any], ...] = (
    rows.LAYERS, rows.HIDDEN, rows.FFN, rows.HEADS, rows.HEAD_DIM, rows.GROUPED, rows.UNTIED,
    rows.NORM_EPS, TRUE_VOCAB, rows.GROUPS, rows.ENCODER_LAYERS, rows.MOE_FFN, rows.COMM_TYPE,
    *KIND_ROWS, VOCAB, *MUP_ROWS, *rows.OWN_ROWS,
)  # fmt: skip
"""The arguments that growth brings up to date, in the order in which absent ones are written."""


def _activation(reader: ArgumentReader) -> Activation:
    if rows.SWIGLU.read(reader):
        return "swiglu"
    if rows.SQUARED_RELU.read(reader):
        return "squared_relu"
    fused = rows.FUSED_GELU.read(reader) and rows.LINEAR_BIAS.read(reader)
    return "gelu_tanh" if fused or rows.TANH_GELU.read(reader) else "gelu"


def _positions(reader: ArgumentReader) -> Positions:
    kind = "rope" if rows.USE_ROTARY.read(reader) else rows.POSITIONS.read(reader)
    if kind == "rope" and rows.XPOS_SCALE_BASE.get(reader.arguments) is not None:
        return "xpos"
    return "learned" if kind == "learned_absolute" else cast(Positions, kind)


def _rotary(reader: ArgumentReader) -> RotarySettings:
    scaled = rows.USE_SCALING.read(reader)
    return RotarySettings(
        base=rows.ROTARY_BASE.read(reader),
        percent=rows.ROTARY_PERCENT.read(reader),
        interleaved=rows.INTERLEAVED.read(reader),
        scaling_factor=rows.SCALING_FACTOR.read(reader) if scaled else None,
        interpolation=rows.INTERPOLATION.read(reader),
        xpos_scale_base=rows.XPOS_SCALE_BASE.read(reader),
        xpos_centre=rows.XPOS_CENTRE.read(reader) or 0,
    )


def tokens_seen(arguments: Arguments) -> int | None:
    """Return how many tokens training says it has consumed; None where it does not say.

    The count goes on through growth, as Megatron-LM's own does.
    """
    samples, length = SAMPLES_SEEN.get(arguments), SEQUENCE_LENGTH.get(arguments)
    if not isinstance(samples, int) or not isinstance(length, int):
        return None
    tokens = samples * length
    return tokens if 0 < tokens < MAX_TOKENS else None


def read_config(
    arguments: Arguments, where: str, padded_vocab: int, ignored: Collection[str] = ()
) -> ModelConfig:
    """Return the model that ``arguments`` describe; ``where`` names their file in messages.

    Raises:
        BadCheckpointError: For a missing or malformed value, and for anything that changes the
            function and is not understood.
    """
    refuse_unknown(arguments, where, ignored)
    reader = ArgumentReader(arguments, where)
    heads = rows.HEADS.read(reader)
    groups = rows.GROUPS.read(reader) if rows.GROUPED.read(reader) else heads
    if heads % groups:
        raise BadCheckpointError(
            f"{heads} heads are no multiple of {groups} query groups", where=where
        )
    hidden = rows.HIDDEN.read(reader)
    linear_bias = rows.LINEAR_BIAS.read(reader)
    norm = rows.NORM.read(reader)
    head_dim = rows.HEAD_DIM.read(reader, max(1, hidden // heads))
    positions, layers = _positions(reader), rows.LAYERS.read(reader)
    longest = rows.MAX_POSITIONS.read(reader)
    return ModelConfig(
        layers=layers,
        hidden=hidden,
        ffn=rows.FFN.read(reader, 4 * hidden),
        kv_groups=groups,
        queries_per_group=heads // groups,
        head_dim=head_dim,
        vocab=true_vocabulary(reader, padded_vocab),
        max_positions=longest,
        norm=cast(Norm, norm.lower()),
        norm_eps=rows.NORM_EPS.read(reader),
        zero_centred_gain=rows.ZERO_CENTRED.read(reader),
        activation=_activation(reader),
        linear_bias=linear_bias,
        qkv_bias=linear_bias or rows.QKV_BIAS.read(reader),
        qk_norm=rows.QK_NORM.read(reader),
        tied=not rows.UNTIED.read(reader),
        positions=positions,
        rotary=_rotary(reader),
        layer_kinds=read_kinds(reader, layers, longest),
        multipliers=read_multipliers(reader, hidden, head_dim, positions),
    )


def written_arguments(arguments: Arguments, config: ModelConfig) -> dict[str, object]:
    """Return ``arguments`` with everything that describes the model brought up to ``config``."""
    kept = {name: value for name, value in arguments.items() if not name.startswith(OWN_PREFIX)}
    for row in _WRITTEN:
        kept |= row.written(arguments, config)
    return kept
