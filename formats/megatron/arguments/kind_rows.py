"""The arguments that say what layers differ in: which attend in a window, which do not rotate.

megatron-core's window (N, 0) is a token and the N before it. Without a list, every n-th layer is
the odd one out: it attends to all, or does not rotate (``TransformerConfig``, 0.16 to 0.19). What
says the model already is left as it is stored, an integer among others.
"""

from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.formats.megatron.arguments.row import Arguments, ModelArgument, stored_name
from flmgrow.model.config import LayerKind, ModelConfig
from flmgrow.text import Found, Text

Frequency = int | tuple[bool, ...] | None
"""Every n-th layer, or a list of those that there are."""

_UNLIMITED = ((-1, -1), (-1, 0))
"""Transformer Engine's windows that reach all the way."""


def _window(reader: ArgumentReader, names: tuple[str, ...], default: int | None) -> int | None:
    """Read how many tokens a token sees, itself among them; None for all before it."""
    name = stored_name(reader.arguments, names)
    value = reader.arguments.get(name)
    if not value:
        return default
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if pair in _UNLIMITED:
        return None
    left, right = pair if len(pair) == 2 else (None, None)
    if type(left) is not int or type(right) is not int or left < 0 or right != 0:
        raise _wrong(reader, name, "(N, 0): a token sees the N before it, and none after it")
    return left + 1


def _frequency(reader: ArgumentReader, names: tuple[str, ...], default: Frequency) -> Frequency:
    """Read a frequency of layers."""
    name = stored_name(reader.arguments, names)
    value = reader.arguments.get(name)
    if not value:
        return default
    if isinstance(value, list | tuple) and all(each in (0, 1) for each in value):
        return tuple(bool(each) for each in value)
    if type(value) is not int or value < 1:
        raise _wrong(reader, name, "a positive whole number, or 0 or 1 for each layer")
    return value


def _wrong(reader: ArgumentReader, name: str, wanted: str) -> BadCheckpointError:
    found = Found(shown(reader.arguments.get(name)))
    return BadCheckpointError(
        Text(f"{reader.prefix}{name}: found ", found), where=reader.where, wanted=wanted
    )


def _windows(config: ModelConfig) -> list[int | None]:
    return [config.kind(layer).window for layer in range(config.layers)]


def _stored_window(config: ModelConfig) -> tuple[int, int] | None:
    window = next((each for each in _windows(config) if each is not None), None)
    return None if window is None else (window - 1, 0)


def _windowed(config: ModelConfig) -> list[int] | None:
    """Return 1 for each layer with a window, 0 for others; None if they do not differ."""
    windowed = [int(window is not None) for window in _windows(config)]
    return windowed if len({*windowed}) > 1 else None


def _still(config: ModelConfig) -> list[int] | None:
    """Return 1 for each layer that does not rotate, 0 for others; None if all do."""
    still = [int(not config.kind(layer).rotates) for layer in range(config.layers)]
    return still if any(still) else None


def _says_another_model(arguments: Arguments, config: ModelConfig) -> bool:
    """Whether stored arguments say other layers than those of ``config``."""
    reader = ArgumentReader(arguments, "args")
    try:
        return _kinds(reader, config.layers, config.max_positions) != _plain_kinds(config)
    except BadCheckpointError:  # such as a list for fewer layers
        return True


WINDOW = ModelArgument("window_size", _window, value=_stored_window, when=_says_another_model)
FULL_ATTENTION = ModelArgument(
    "window_attn_skip_freq", _frequency, value=_windowed, when=_says_another_model
)
"""Every n-th layer attends to all; or 1 for each layer that has the window."""

NOT_ROTATING = ModelArgument("no_rope_freq", _frequency, value=_still, when=_says_another_model)
"""Every n-th layer does not rotate; or 1 for each layer that does not."""

KIND_ROWS: tuple[ModelArgument[Any], ...] = (WINDOW, FULL_ATTENTION, NOT_ROTATING)


def layer_options(config: ModelConfig) -> str:
    """Return the options of Megatron-LM that say what the layers of a model are like."""
    told = {row.name: row.value(config) for row in KIND_ROWS}
    return " ".join(
        f"--{name.replace('_', '-')} {str(value).strip('()').replace(' ', '')}"
        for name, value in told.items()
        if value is not None
    )


def read_kinds(reader: ArgumentReader, layers: int, positions: int) -> tuple[LayerKind, ...]:
    """Return what the layers of a model are like whose texts have so many ``positions``.

    A window that is as long is none.

    Raises:
        BadCheckpointError: For a malformed value, and for a list of other layers than there are.
    """
    kinds = _kinds(reader, layers, positions)
    return tuple(LayerKind(window, rotates) for window, rotates in kinds)


def _plain_kinds(config: ModelConfig) -> list[tuple[int | None, bool]]:
    kinds = [config.kind(layer) for layer in range(config.layers)]
    return [(kind.window, kind.rotates) for kind in kinds]


def _kinds(reader: ArgumentReader, layers: int, positions: int) -> list[tuple[int | None, bool]]:
    window = WINDOW.read(reader)
    full = FULL_ATTENTION.read(reader)
    if window is None or window >= positions:
        windows: list[int | None] = [None] * layers
    elif isinstance(full, tuple):
        _check_layers(reader, FULL_ATTENTION, full, layers)
        windows = [window if windowed else None for windowed in full]
    else:
        windows = [None if each else window for each in _every(full, layers)]
    still = NOT_ROTATING.read(reader)
    if isinstance(still, tuple):
        _check_layers(reader, NOT_ROTATING, still, layers)
    elif still is not None and layers % still:
        raise _wrong(reader, NOT_ROTATING.name, f"a divisor of {layers} layers")
    stays = still if isinstance(still, tuple) else _every(still, layers)
    return [(each, not stay) for each, stay in zip(windows, stays, strict=True)]


def _every(period: int | None, layers: int) -> tuple[bool, ...]:
    """Return which layers are the ``period``-th, counted from 1."""
    return tuple(period is not None and not (layer + 1) % period for layer in range(layers))


def _check_layers(
    reader: ArgumentReader, row: ModelArgument[Any], listed: tuple[bool, ...], layers: int
) -> None:
    if len(listed) != layers:
        raise _wrong(reader, row.name, f"0 or 1 for each of {layers} layers")
