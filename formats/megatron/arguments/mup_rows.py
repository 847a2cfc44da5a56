"""muP's constants: megatron-core's own arguments for them (0.17 and newer), and ours.

megatron-core has arguments for muP, and one trap. With m = hidden_size / mup_base_hidden_size, it
multiplies logits by ``mup_output_mult``, but takes 1/m for it where that is exactly 1. So what is
written for a model of another width is the factor that there was, and for a factor of 1 the next
float after it.

A model description has the factor times m, and from the one number the other does not always follow
to the last bit: then ours stands beside megatron-core's, and says it. Where a checkpoint does not
use megatron-core's arguments, ours alone say everything, as megatron-core 0.16 knows no others.
"""

from math import inf, isclose, nextafter
from typing import Any

from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.megatron.arguments.model_rows import HIDDEN
from flmgrow.formats.megatron.arguments.row import (
    Arguments,
    ModelArgument,
    flag,
    number,
    optional_integer,
    optional_number,
    optional_size,
)
from flmgrow.model.config import ModelConfig

ROUNDING = 1e-15
"""Relative; so much a factor may be off after some products and quotients."""

USE_MUP = ModelArgument("use_mup", flag(), value=lambda _: False)
"""Whether megatron-core's own arguments hold; without it, they say nothing."""


def is_native(arguments: Arguments) -> bool:
    """Whether a checkpoint says muP's constants in megatron-core's own arguments."""
    return bool(USE_MUP.get(arguments))


def _reader(arguments: Arguments) -> ArgumentReader:
    return ArgumentReader(arguments, "args")


def _width(arguments: Arguments) -> int:
    return HIDDEN.read(_reader(arguments))


def _base_is_due(arguments: Arguments, config: ModelConfig) -> bool:
    """Without one, megatron-core takes the width, whatever that is by then."""
    told = NATIVE_BASE.get(arguments) is not None
    return is_native(arguments) and (told or _width(arguments) != config.hidden)


NATIVE_BASE = ModelArgument(
    "mup_base_hidden_size",
    optional_size,
    value=lambda config: config.multipliers.mup_base_width,
    when=_base_is_due,
)
NATIVE_EMBEDDING = ModelArgument(
    "mup_embedding_mult", number(1.0), value=lambda config: config.multipliers.embedding
)
"""Multiplies learned positions, too."""

BASE_HEAD_DIM = ModelArgument("mup_base_head_dim", optional_number, value=lambda _: None)
SCALE_POWER = ModelArgument("mup_attn_scale_power", number(1.0), value=lambda _: 1.0)


def _applied(stored: float, width: float) -> float:
    """Return what logits are multiplied by in a model ``width`` times as wide as the base."""
    return 1.0 / width if stored == 1.0 else stored


def _native_factor(arguments: Arguments, config: ModelConfig) -> float:
    """Return what megatron-core must be told, so that logits are multiplied as ``config`` says."""
    stored = NATIVE_OUTPUT.read(_reader(arguments))
    base = NATIVE_BASE.read(_reader(arguments)) or _width(arguments)
    known, wanted = _applied(stored, _width(arguments) / base), config.logit_factor
    factor = known if isclose(known, wanted, rel_tol=ROUNDING) else wanted
    if _applied(stored, config.width_multiplier) == factor:
        return stored
    return nextafter(1.0, inf) if factor == 1.0 else factor


NATIVE_OUTPUT: ModelArgument[float] = ModelArgument(
    "mup_output_mult",
    number(1.0),
    value=lambda config: config.logit_factor,
    when=lambda arguments, config: (
        is_native(arguments)
        and _native_factor(arguments, config) != NATIVE_OUTPUT.read(_reader(arguments))
    ),
    grown=_native_factor,
)


def output_of(stored: float, width: float) -> float:
    """Return what a model description calls the output multiplier."""
    return 1.0 if stored == 1.0 else stored * width


def _output_is_due(arguments: Arguments, config: ModelConfig) -> bool:
    if is_native(arguments):
        factor = _native_factor(arguments, config)
        return output_of(factor, config.width_multiplier) != config.multipliers.output
    return config.multipliers.output != 1.0


EMBEDDING_MULTIPLIER = ModelArgument(
    "flmgrow_embedding_multiplier",
    number(1.0),
    value=lambda config: config.multipliers.embedding,
    when=lambda arguments, config: not is_native(arguments) and config.multipliers.embedding != 1.0,
)
OUTPUT_MULTIPLIER = ModelArgument(
    "flmgrow_output_multiplier",
    optional_number,
    value=lambda config: config.multipliers.output,
    when=_output_is_due,
)
MUP_BASE_WIDTH = ModelArgument(
    "flmgrow_mup_base_width",
    optional_integer,
    value=lambda config: config.multipliers.mup_base_width,
    when=lambda arguments, config: (
        not is_native(arguments) and config.multipliers.mup_base_width is not None
    ),
)

NATIVE_ROWS: tuple[ModelArgument[Any], ...] = (
    USE_MUP, NATIVE_BASE, NATIVE_EMBEDDING, NATIVE_OUTPUT, BASE_HEAD_DIM, SCALE_POWER,
)  # fmt: skip
"""megatron-core's arguments."""

OWN_MUP_ROWS: tuple[ModelArgument[Any], ...] = (
    EMBEDDING_MULTIPLIER, OUTPUT_MULTIPLIER, MUP_BASE_WIDTH,
)  # fmt: skip
"""Ours."""

MUP_ROWS: tuple[ModelArgument[Any], ...] = (*NATIVE_ROWS, *OWN_MUP_ROWS)
