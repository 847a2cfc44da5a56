"""The fields of rotary positions, which have been written in three ways.

At the top level (``ROPE_THETA`` and ``PARTIAL``, in GPT-NeoX under names of its own) with
``ROPE_SCALING`` beside them; or, since transformers 5, all in ``ROPE_PARAMETERS``, which version 4
passes over for the usual base. So both ways are written.
"""

from collections.abc import Mapping
from typing import Any

from flmgrow.formats.huggingface.fields.model_rows import KIN, PARTLY_ROTATED
from flmgrow.formats.huggingface.fields.row import (
    GEMMA3,
    GPT_NEOX,
    NEMOTRON,
    PHI3,
    SMOLLM3,
    STABLELM,
    Field,
    Use,
    as_it_is,
    number,
)
from flmgrow.formats.huggingface.fields.switch_rows import ONE, PART_ROTATED
from flmgrow.formats.huggingface.fields.window_rows import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    slides,
)
from flmgrow.model.config import ModelConfig
from flmgrow.model.rotary import RotarySettings

KIND, OLDER_KIND, FACTOR = "rope_type", "type", "factor"
"""Entries of the parameters; what is scaled and how, which transformers before 4.43 calls
``type``.
"""

ORIGINAL = "original_max_position_embeddings"
SLOW, FAST = "low_freq_factor", "high_freq_factor"
"""Of Llama 3's kind."""

BETA_FAST, BETA_SLOW, TRUNCATE = "beta_fast", "beta_slow", "truncate"
MSCALE, MSCALE_ALL = "mscale", "mscale_all_dim"
"""Of YaRN."""

SHORT, LONG = "short_factor", "long_factor"
"""Of LongRoPE."""

ATTENTION = "attention_factor"
KINDS: Mapping[str, tuple[str, ...]] = {
    PHI3: ("default", "longrope"),
    GEMMA3: ("default", "linear"),
}
"""The kinds that a family knows, if it does not know all."""

TYPED = (GEMMA3,)
"""Families whose layers rotate by their type: those that slide have settings of their own."""

BASE = 10000.0
_TEN_THOUSAND = tuple(name for name in KIN if name not in (SMOLLM3, *TYPED))
_ALL = (*KIN, GPT_NEOX)
_WHOLE = tuple(name for name in KIN if name not in (*PARTLY_ROTATED, *TYPED))


def _base(config: ModelConfig) -> float:
    return config.rotary.base


def _percent(config: ModelConfig) -> float:
    return config.rotary.percent


def _scaling(config: ModelConfig) -> dict[str, object] | None:
    return _scaling_of(config.rotary)


def _scaling_of(rotary: RotarySettings) -> dict[str, object] | None:
    if rotary.scaling_factor is not None:
        bands = {SLOW: rotary.scaling_slow, FAST: rotary.scaling_fast}
        context = {ORIGINAL: rotary.scaling_context}
        return {KIND: "llama3", FACTOR: rotary.scaling_factor, **bands, **context}
    if rotary.interpolation is not None:
        return {KIND: "linear", FACTOR: rotary.interpolation}
    if (yarn := rotary.yarn) is not None:
        return {
            KIND: "yarn", FACTOR: yarn.factor, ORIGINAL: yarn.context, BETA_FAST: yarn.fast,
            BETA_SLOW: yarn.slow, ATTENTION: yarn.attention, TRUNCATE: yarn.truncated,
        }  # fmt: skip
    if (longrope := rotary.longrope) is not None:
        return {
            KIND: "longrope", SHORT: [*longrope.short], LONG: [*longrope.long],
            ORIGINAL: longrope.context, ATTENTION: longrope.attention,
        }  # fmt: skip
    return None


def _parameters(config: ModelConfig) -> dict[str, object]:
    return _parameters_of(config.rotary)


def _parameters_of(rotary: RotarySettings) -> dict[str, object]:
    return {KIND: "default", **(_scaling_of(rotary) or {}), ROPE_THETA.name: rotary.base}


def _sliding(config: ModelConfig) -> RotarySettings:
    """Return the settings of the layers that slide; the usual ones if none does."""
    sliding = [config.kind(layer) for layer, slide in enumerate(slides(config)) if slide]
    own = [kind.rotary for kind in sliding if kind.rotary is not None]
    return own[0] if own else config.rotary if sliding else RotarySettings()


def _by_type(config: ModelConfig) -> dict[str, object]:
    return {
        FULL_ATTENTION: _parameters(config),
        SLIDING_ATTENTION: _parameters_of(_sliding(config)),
    }


def _partial_parameters(config: ModelConfig) -> dict[str, object]:
    return {**_parameters(config), PARTIAL.name: _percent(config)}


ROTARY_EMB_BASE = Field("rotary_emb_base", (Use((GPT_NEOX,), number, BASE, _base),))
ROPE_THETA = Field(
    "rope_theta",
    (
        Use(_TEN_THOUSAND, number, BASE, _base),
        Use((SMOLLM3,), number, 2e6, _base),
        Use(TYPED, number, 1e6, _base),
        Use((GPT_NEOX,), number, BASE),
    ),
)
ROTARY_PCT = Field("rotary_pct", (Use((GPT_NEOX,), number, 0.25, _percent),))
PARTIAL = Field(
    "partial_rotary_factor",
    (
        Use((GPT_NEOX,), number, 0.25),
        Use((NEMOTRON,), number, 0.5, _percent),
        Use((STABLELM,), number, 0.25, _percent),
        Use((PHI3,), number, 1.0, _percent),
    ),
    neutral=ONE,
    changes=PART_ROTATED,
)
ROPE_SCALING = Field("rope_scaling", (Use[object](_ALL, as_it_is, value=_scaling),))
ROPE_PARAMETERS = Field(
    "rope_parameters",
    (
        Use[object](_WHOLE, as_it_is, value=_parameters),
        Use[object]((GPT_NEOX, *PARTLY_ROTATED), as_it_is, value=_partial_parameters),
        Use[object](TYPED, as_it_is, value=_by_type),
    ),
)
"""In Gemma 3, parameters for each type of layers, by its name."""

SLIDING_THETA = Field(
    "rope_local_base_freq", (Use(TYPED, number, BASE, lambda c: _sliding(c).base),)
)
"""The base of layers that slide."""

TRAINED_LENGTH = Field[object](ORIGINAL, harmless=True)
"""At the top level, where only scaling goes by it, before what its own parameters say."""

BASES, SHARES = (ROTARY_EMB_BASE, ROPE_THETA), (ROTARY_PCT, PARTIAL)
"""The names of one number, and of the share of a head that is rotated; a model may have several."""

ROTARY_ROWS: tuple[Field[Any], ...] = (
    *BASES, *SHARES, ROPE_SCALING, ROPE_PARAMETERS, TRAINED_LENGTH, SLIDING_THETA,
)  # fmt: skip
"""Growth leaves them alone."""
