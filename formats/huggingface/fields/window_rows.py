"""The fields of what layers differ in: how far back they attend, and whether they rotate.

Some families have one window for all layers; in others, layers have a type each, and only those
that slide have the window. Where no list says the types, each family has a rule of its own.
"""

from collections.abc import Sequence
from typing import Any

from flmgrow.formats.huggingface.fields.model_rows import KIN
from flmgrow.formats.huggingface.fields.row import (
    ARCEE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MISTRAL,
    MODEL_TYPES,
    NEMOTRON,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
    STABLELM,
    STARCODER2,
    Field,
    Use,
    as_it_is,
    flag,
    integer,
    whole_number,
)
from flmgrow.formats.huggingface.fields.switch_rows import OFF, WINDOWS
from flmgrow.model.config import ModelConfig

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""The kinds of layers there may be among ``LAYER_TYPES``."""

_UNWINDOWED = (LLAMA, GPT_NEOX, GRANITE, SEED_OSS, ARCEE, NEMOTRON, STABLELM, OLMO2, GEMMA)
WINDOWED = (MISTRAL, PHI3, STARCODER2)
"""Families whose layers have one window in common."""

_QWENS = (QWEN2, QWEN3)
SWITCHED = (*_QWENS, SMOLLM3)
"""Those whose layers may slide, if ``USE_WINDOW`` says so."""

_ALTERNATING = (GEMMA2, GEMMA3)
LAYERED = (*SWITCHED, *_ALTERNATING)
"""Those in which each layer has its type."""


def slides(config: ModelConfig) -> list[bool]:
    """Return which layers are of the kind that slides: with a window, or rotary settings of their
    own.
    """
    kinds = [config.kind(layer) for layer in range(config.layers)]
    return [kind.window is not None or kind.rotary is not None for kind in kinds]


def _window(config: ModelConfig) -> int | None:
    """Return the window of all layers, None if they have not one in common."""
    windows = {config.kind(layer).window for layer in range(config.layers)}
    return windows.pop() if len(windows) == 1 else None


def _sliding_window(config: ModelConfig) -> int | None:
    """Return the window of the layers that slide; one as long as any text if they have none."""
    windows = [config.kind(layer).window for layer in range(config.layers)]
    told = next((window for window in windows if window is not None), None)
    return config.max_positions if told is None and any(slides(config)) else told


WINDOW = Field(
    "sliding_window",
    (
        Use[object]((MISTRAL,), as_it_is, 4096, _window),
        Use[object]((PHI3, STARCODER2), as_it_is, None, _window),
        Use[object](_QWENS, as_it_is, 4096, _sliding_window, optional=True),
        Use[object]((SMOLLM3,), as_it_is, None, _sliding_window, optional=True),
        Use[object](_ALTERNATING, as_it_is, 4096, _sliding_window, optional=True),
        Use[object](_UNWINDOWED, as_it_is),
    ),
    neutral=(None,),
    changes=WINDOWS,
)
"""Most have none; the caches of transformers go by it all the same."""

OTHER_WINDOW = Field[Any]("sliding_window_size", (Use[object]((GEMMA2,), as_it_is),))
"""Gemma 2 was published with both names; nobody reads this one."""

USE_WINDOW = Field(
    "use_sliding_window",
    (
        Use((*_UNWINDOWED, *WINDOWED, *_ALTERNATING), flag, True),
        Use(SWITCHED, flag, False, lambda config: any(slides(config)) or None, optional=True),
    ),
    neutral=OFF,
    changes=WINDOWS,
)


def _types(config: ModelConfig) -> list[str]:
    return [SLIDING_ATTENTION if one else FULL_ATTENTION for one in slides(config)]


def _types_if_any_slides(config: ModelConfig) -> list[str] | None:
    return _types(config) if any(slides(config)) else None


def _more_layers(stored: object, old: ModelConfig, new: ModelConfig) -> object:
    return stored if not isinstance(stored, list) or new.layers == old.layers else _types(new)


LAYER_TYPES = Field(
    "layer_types",
    (
        Use[object](_ALTERNATING, as_it_is, value=_types),
        Use[object](SWITCHED, as_it_is, value=_types_if_any_slides, optional=True),
        Use[object]([name for name in (*KIN, GPT_NEOX) if name not in LAYERED], as_it_is),
    ),
    grown=_more_layers,
)


def _first_sliding(config: ModelConfig) -> int | None:
    """Return how many layers there are before those that slide; None if none does."""
    sliding = slides(config)
    return sliding.index(True) if any(sliding) else None


FIRST_SLIDING = Field[Any](
    "max_window_layers",
    (
        Use(_QWENS, whole_number, 28, _first_sliding, optional=True),
        Use[object]([name for name in MODEL_TYPES if name not in _QWENS], as_it_is),
    ),
)
"""Without ``LAYER_TYPES``, how many layers do not slide in Qwen; the others do. No other family
asks.
"""


def repeated(layers: int, period: int) -> list[bool]:
    """Return which layers slide where each ``period``-th attends to all."""
    return [bool((layer + 1) % period) for layer in range(layers)]


def _period(sliding: Sequence[bool]) -> int | None:
    """Return the period of layers that attend to all; None if there is none."""
    first = next((place for place, one in enumerate(sliding) if not one), len(sliding))
    return first + 1 if repeated(len(sliding), first + 1) == list(sliding) else None


PERIOD = Field(
    "sliding_window_pattern",
    (Use((GEMMA3,), integer(), 6, lambda config: _period(slides(config)), optional=True),),
    grown=lambda _stored, _old, new: _period(slides(new)),
)
"""Without ``LAYER_TYPES``, every such layer of Gemma 3 attends to all; of Gemma 2, every second."""


def _rotating(config: ModelConfig) -> list[int]:
    return [int(config.kind(layer).rotates) for layer in range(config.layers)]


ROTATING = Field("no_rope_layers", (Use[object]((SMOLLM3,), as_it_is, value=_rotating),))
"""1 for each layer that rotates, 0 for others, whatever its name says."""

ROTATING_INTERVAL = Field("no_rope_layer_interval", (Use((SMOLLM3,), integer(), 4),))
"""Without ``ROTATING``, every such layer does not rotate."""

WINDOW_ROWS: tuple[Field[Any], ...] = (
    WINDOW, OTHER_WINDOW, USE_WINDOW, LAYER_TYPES, FIRST_SLIDING, PERIOD, ROTATING,
    ROTATING_INTERVAL,
)  # fmt: skip
