"""What several families of transformers say in the same way: heads, activations, windows."""

from collections.abc import Mapping
from typing import cast

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.model.config import Activation, ModelConfig

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""By transformers' name; the first of several is the one that is written."""

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""The kinds of layers there may be among ``layer_types``."""

_TYPES = (FULL_ATTENTION, SLIDING_ATTENTION)
_SHORTER = "--max-position-embeddings"


def grouped_heads(reader: ArgumentReader, name: str, groups: str) -> tuple[int, int]:
    """Return (groups, queries per group); without a number of groups, there is one per head."""
    heads = reader.integer(name)
    count = reader.integer(groups, heads)
    if heads % count:
        raise BadCheckpointError(
            f"{reader.where}: {groups}: found {count}, which does not divide {name} {heads}"
        )
    return count, heads // count


def exact_heads(reader: ArgumentReader, hidden: str, heads: str) -> int:
    """Return the size of a head where the heads together are as wide as the model."""
    width, count = reader.integer(hidden), reader.integer(heads)
    if width % count:
        raise BadCheckpointError(
            f"{reader.where}: {hidden}: found {width}, wanted a multiple of {heads} {count}"
        )
    return width // count


def refuse_window(reader: ArgumentReader, default: int | None) -> None:
    """Raise BadCheckpointError for attention that does not reach as far as the positions."""
    length = reader.integer("max_position_embeddings")
    window = reader.arguments.get("sliding_window", default)
    used = reader.flag("use_sliding_window", default=default is not None) and window is not None
    types = reader.arguments.get("layer_types")
    known = _TYPES if window is not None else (FULL_ATTENTION,)
    if types is not None and (not isinstance(types, list) or any(t not in known for t in types)):
        raise BadCheckpointError(
            f"{reader.where}: layer_types: found {shown(types)}, wanted full_attention only",
            "attention of other kinds is not supported",
        )
    if not used and SLIDING_ATTENTION not in (types or ()):
        return
    whole = isinstance(window, int) and not isinstance(window, bool) and window > 0
    if not whole or cast(int, window) < length:
        way = (
            f"; it does not touch texts that fit into the window: pass {_SHORTER} {window}, which "
            f"reads max_position_embeddings as {window}"
        )
        raise BadCheckpointError(
            f"{reader.where}: sliding_window: found {shown(window)}, wanted null or at least "
            f"max_position_embeddings ({length})",
            f"attention in windows is not supported{way if whole else ''}",
        )


def read_activation(reader: ArgumentReader, name: str, default: str) -> Activation:
    """Return the activation that field ``name`` names."""
    return ACTIVATIONS[reader.choice(name, ACTIVATIONS, default)]


def activation_name(config: ModelConfig) -> str:
    """Return transformers' name of the model's activation; of another one if it has none."""
    names = [theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation]
    return names[0] if names else "gelu"
