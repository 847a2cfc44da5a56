"""What several families of transformers say in the same way: heads, activations, windows."""

from typing import cast

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.model_rows import FULL_ATTENTION, SLIDING_ATTENTION
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import WINDOWS
from flmgrow.model.config import Activation, LayerKind, Residual
from flmgrow.text import Found, Pass, Text

_TYPES = (FULL_ATTENTION, SLIDING_ATTENTION)


def grouped_heads(reader: FieldReader) -> tuple[int, int]:
    """Return (groups, queries per group); without a number of groups, there is one per head."""
    heads = rows.HEADS.read(reader)
    count = rows.GROUPS.read(reader, heads)
    if heads % count:
        raise BadCheckpointError(
            Text("found ", Found(count), f", which does not divide {rows.HEADS.name} {heads}"),
            where=(reader.where, rows.GROUPS.name),
        )
    return count, heads // count


def exact_heads(reader: FieldReader, hidden: Field[int], heads: Field[int]) -> int:
    """Return the size of a head where the heads together are as wide as the model."""
    width, count = hidden.read(reader), heads.read(reader)
    if width % count:
        raise BadCheckpointError(
            Text("found ", Found(width)),
            where=(reader.where, hidden.name),
            wanted=f"a multiple of {heads.name} {count}",
        )
    return width // count


def read_window(reader: FieldReader) -> int | None:
    """Return the window of a model whose layers have one in common.

    None if it reaches as far as the positions.

    Raises:
        BadCheckpointError: For windows that layers do not share, and for any in a family that has
            none.
    """
    length = rows.MAX_POSITIONS.read(reader)
    window = rows.WINDOW.read(reader)
    used = rows.USE_WINDOW.read(reader) and window is not None
    types = rows.LAYER_TYPES.read(reader)
    known = _TYPES if window is not None else (FULL_ATTENTION,)
    if types is not None and (not isinstance(types, list) or any(t not in known for t in types)):
        raise BadCheckpointError(
            Text("found ", Found(shown(types))),
            "attention of other kinds is not supported",
            where=(reader.where, rows.LAYER_TYPES.name),
            wanted=f"{FULL_ATTENTION} only",
        )
    if not used and SLIDING_ATTENTION not in (types or ()):
        return None
    whole = isinstance(window, int) and not isinstance(window, bool) and window > 0
    shared = whole and reader.family in rows.WINDOWED and len({*(types or ())}) < 2
    if shared and cast(int, window) < length:
        return cast(int, window)
    if not whole or cast(int, window) < length:
        way = Text(
            "; it does not touch texts that fit into the window: ",
            Pass("max_position_embeddings", window),
            f", which reads {rows.MAX_POSITIONS.name} as {window}",
        )
        raise BadCheckpointError(
            Text("found ", Found(shown(window))),
            WINDOWS + way if whole else WINDOWS,
            where=(reader.where, rows.WINDOW.name),
            wanted=f"null or at least {rows.MAX_POSITIONS.name} ({length})",
        )
    return None


def read_kinds(reader: FieldReader) -> tuple[LayerKind, ...]:
    """Return what the layers of a model are like.

    Raises:
        BadCheckpointError: For windows that are not supported, and for a malformed list of layers.
    """
    layers, window = rows.LAYERS.read(reader), read_window(reader)
    rotating = _rotating(reader, layers) if rows.ROTATING.use_in(reader.family) else [True] * layers
    return tuple(LayerKind(window, rotates) for rotates in rotating)


def _rotating(reader: FieldReader, layers: int) -> list[bool]:
    """Return which layers rotate."""
    told = rows.ROTATING.read(reader)
    if told is None:
        interval = rows.ROTATING_INTERVAL.read(reader)
        return [bool((layer + 1) % interval) for layer in range(layers)]
    if not isinstance(told, list) or len(told) < layers or any(one not in (0, 1) for one in told):
        raise BadCheckpointError(
            Text("found ", Found(shown(told))),
            where=(reader.where, rows.ROTATING.name),
            wanted=f"0 or 1 for each of {layers} layers",
        )
    return [bool(one) for one in told[:layers]]


def read_residual(reader: FieldReader, parallel: Residual) -> Residual:
    """Return how attention and FFN follow each other, in parallel as the family does it."""
    return parallel if rows.PARALLEL.read(reader) else "sequential"


def read_activation(reader: FieldReader, field: Field[str]) -> Activation:
    """Return the activation that ``field`` names."""
    return rows.ACTIVATIONS[field.read(reader)]
