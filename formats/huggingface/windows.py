"""What the layers of a model are like: how far back each attends, and whether it rotates."""

from typing import cast

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields import window_rows
from flmgrow.formats.huggingface.fields.row import GEMMA2, GEMMA3, SMOLLM3, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import WINDOWS
from flmgrow.formats.huggingface.fields.window_rows import (
    FULL_ATTENTION,
    LAYER_TYPES,
    LAYERED,
    SLIDING_ATTENTION,
    SWITCHED,
    USE_WINDOW,
    WINDOW,
    WINDOWED,
    repeated,
)
from flmgrow.model.config import LayerKind, RotarySettings
from flmgrow.text import Found, Pass, Text

_TYPES = (FULL_ATTENTION, SLIDING_ATTENTION)


def read_kinds(
    reader: FieldReader, sliding_rotary: RotarySettings | None = None
) -> tuple[LayerKind, ...]:
    """Return what the layers of a model are like; those that slide have ``sliding_rotary``.

    Raises:
        BadCheckpointError: For windows that are not supported, and for a malformed list of layers.
    """
    layers = rows.LAYERS.read(reader)
    told = window_rows.ROTATING.use_in(reader.family) is not None
    rotating = _rotating(reader, layers) if told else [True] * layers
    if reader.family not in LAYERED:
        window = read_window(reader)
        return tuple(LayerKind(window, rotates) for rotates in rotating)
    sliding = _sliding(reader, rotating)
    window = _sliding_window(reader) if any(sliding) else None
    return tuple(
        LayerKind(window, rotates, sliding_rotary) if slides else LayerKind(rotates=rotates)
        for slides, rotates in zip(sliding, rotating, strict=True)
    )


def read_window(reader: FieldReader) -> int | None:
    """Return the window of a model whose layers have one in common.

    None if it reaches as far as the positions.

    Raises:
        BadCheckpointError: For windows that layers do not share, and for any in a family that has
            none.
    """
    length = rows.MAX_POSITIONS.read(reader)
    window = WINDOW.read(reader)
    used = USE_WINDOW.read(reader) and window is not None
    types = LAYER_TYPES.read(reader)
    known = _TYPES if window is not None else (FULL_ATTENTION,)
    if types is not None and (not isinstance(types, list) or any(t not in known for t in types)):
        raise BadCheckpointError(
            Text("found ", Found(shown(types))),
            "attention of other kinds is not supported",
            where=(reader.where, LAYER_TYPES.name),
            wanted=f"{FULL_ATTENTION} only",
        )
    if not used and SLIDING_ATTENTION not in (types or ()):
        return None
    shared = _is_whole(window) and reader.family in WINDOWED and len({*(types or ())}) < 2
    if shared and cast(int, window) < length:
        return cast(int, window)
    if not _is_whole(window) or cast(int, window) < length:
        way = Text(
            "; it does not touch texts that fit into the window: ",
            Pass("max_position_embeddings", window),
            f", which reads {rows.MAX_POSITIONS.name} as {window}",
        )
        raise BadCheckpointError(
            Text("found ", Found(shown(window))),
            WINDOWS + way if _is_whole(window) else WINDOWS,
            where=(reader.where, WINDOW.name),
            wanted=f"null or at least {rows.MAX_POSITIONS.name} ({length})",
        )
    return None


def _is_whole(window: object) -> bool:
    return isinstance(window, int) and not isinstance(window, bool) and window > 0


def _sliding(reader: FieldReader, rotating: list[bool]) -> list[bool]:
    """Return which layers slide."""
    layers = len(rotating)
    types = LAYER_TYPES.read(reader)
    used = reader.family not in SWITCHED or USE_WINDOW.read(reader)
    known = _TYPES if used else (FULL_ATTENTION,)
    if types is None:
        return _sliding_by_rule(reader, rotating) if used else [False] * layers
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise BadCheckpointError(
            Text("found ", Found(shown(types))),
            "attention of other kinds is not supported",
            where=(reader.where, LAYER_TYPES.name),
            wanted=f"{' or '.join(known)} for each of {layers} layers",
        )
    return [kind == SLIDING_ATTENTION for kind in types]


def _sliding_by_rule(reader: FieldReader, rotating: list[bool]) -> list[bool]:
    """Return which layers slide where no list says it."""
    layers = len(rotating)
    if reader.family == GEMMA2:
        return repeated(layers, 2)
    if reader.family == GEMMA3:
        return repeated(layers, window_rows.PERIOD.read(reader))
    if WINDOW.read(reader) is None:
        return [False] * layers
    if reader.family == SMOLLM3:
        return [not rotates for rotates in rotating]
    first = window_rows.FIRST_SLIDING.read(reader)
    return [layer >= cast(int, first) for layer in range(layers)]


def _sliding_window(reader: FieldReader) -> int | None:
    """Return the window of the layers that slide; None if it reaches as far as the positions."""
    window = WINDOW.read(reader)
    if not _is_whole(window):
        raise BadCheckpointError(
            Text("found ", Found(shown(window))),
            where=(reader.where, WINDOW.name),
            wanted="a positive whole number, as there are layers that slide",
        )
    return cast(int, window) if cast(int, window) < rows.MAX_POSITIONS.read(reader) else None


def _rotating(reader: FieldReader, layers: int) -> list[bool]:
    """Return which layers rotate."""
    told = window_rows.ROTATING.read(reader)
    if told is None:
        interval = window_rows.ROTATING_INTERVAL.read(reader)
        return [bool((layer + 1) % interval) for layer in range(layers)]
    if not isinstance(told, list) or len(told) < layers or any(one not in (0, 1) for one in told):
        raise BadCheckpointError(
            Text("found ", Found(shown(told))),
            where=(reader.where, window_rows.ROTATING.name),
            wanted=f"0 or 1 for each of {layers} layers",
        )
    return [bool(one) for one in told[:layers]]
