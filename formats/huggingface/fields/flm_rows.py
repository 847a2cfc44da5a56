"""The fields that FLM has beside GPT-2's, as FLM-101B's ``config.json`` was published.

Logits are multiplied by ``OUTPUT / SCALE_FACTOR``, which is a model's logit factor if the scale
factor is the width over the base width. ``INTERLEAVED`` and ``XPOS_CENTRE`` are fields of our own;
the code that an export ships reads them.
"""

from typing import Any

from flmgrow.formats.huggingface.fields.model_rows import MAX_WIDTH
from flmgrow.formats.huggingface.fields.rotary_rows import BASE
from flmgrow.formats.huggingface.fields.row import (
    FLM,
    GRANITE,
    Field,
    Use,
    choice,
    flag,
    number,
    optional_integer,
    optional_positive,
)
from flmgrow.model.config import ModelConfig

_ONLY = (FLM,)


def scale_factor(hidden: int, base: int | None) -> float:
    """Return the width over muP's base width; 1 without one."""
    return 1.0 if base is None else hidden / base


def _is_scaled(config: ModelConfig) -> bool:
    factors = config.multipliers
    return (factors.embedding, factors.output, factors.mup_base_width) != (1, 1, None)


def _base_width(config: ModelConfig) -> int | None:
    return config.multipliers.mup_base_width


ENCODING = Field("relative_encoding", (Use(_ONLY, choice("rotary"), "rotary", lambda _: "rotary"),))
THETA = Field("rotary_theta", (Use(_ONLY, number, BASE, lambda config: config.rotary.base),))
INTERLEAVED = Field(
    "rotary_interleaved", (Use(_ONLY, flag, False, lambda config: config.rotary.interleaved),)
)
USE_XPOS = Field(
    "rotary_use_xpos", (Use(_ONLY, flag, False, lambda config: config.positions == "xpos"),)
)
XPOS_SCALE_BASE = Field(
    "rotary_xpos_scale_base",
    (Use(_ONLY, number, 512.0, lambda config: config.rotary.xpos_scale_base),),
)
XPOS_CENTRE = Field(
    "rotary_xpos_centre",
    (Use[int | None](_ONLY, optional_integer, 0, lambda config: config.rotary.xpos_centre),),
)
USE_MUP = Field("use_mup", (Use(_ONLY, flag, False, _is_scaled),))
BASE_WIDTH = Field(
    "mup_base_width",
    (
        Use(_ONLY, optional_positive(MAX_WIDTH), value=_base_width),
        Use((GRANITE,), optional_positive(MAX_WIDTH), value=_base_width, optional=True),
    ),
)
"""In Granite, a field of our own, which only training asks for."""

SCALE_FACTOR = Field(
    "mup_scale_factor",
    (
        Use(
            _ONLY,
            number,
            value=lambda config: scale_factor(config.hidden, config.multipliers.mup_base_width),
        ),
    ),
)
"""Without it, what follows from the widths."""

INPUT = Field("input_mult", (Use(_ONLY, number, 1.0, lambda config: config.multipliers.embedding),))
OUTPUT = Field("output_mult", (Use(_ONLY, number, 1.0, lambda config: config.multipliers.output),))

FLM_ROWS: tuple[Field[Any], ...] = (
    ENCODING, THETA, INTERLEAVED, USE_XPOS, XPOS_SCALE_BASE, XPOS_CENTRE, USE_MUP, BASE_WIDTH,
    SCALE_FACTOR, INPUT, OUTPUT,
)  # fmt: skip
