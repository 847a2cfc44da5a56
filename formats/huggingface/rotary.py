"""Rotary positions in ``config.json``, where they have been written in three ways.

At the top level (``rope_theta``, in GPT-NeoX ``rotary_emb_base`` and ``rotary_pct``) with a
``rope_scaling`` beside it; or, since transformers 5, all in ``rope_parameters``, which version 4
passes over for the usual base of 10000. So both ways are written.
"""

from collections.abc import Mapping, Sequence

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.model.config import RotarySettings

_LLAMA3: Mapping[str, float] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Llama 3's constants: Megatron-LM has no argument for them."""

_NAMES = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_PARAMETERS: Mapping[str, frozenset[str]] = {
    "default": _NAMES,
    "linear": _NAMES | {"factor"},
    "llama3": _NAMES | {"factor", *_LLAMA3},
}

_DYNAMIC = (
    "it does not touch texts of up to max_position_embeddings: for those, in a copy of the folder, "
    'set {0} to "default", and leave out the factor beside it'
)
_OTHER_SCALING = (
    "Megatron-LM's dense models have no such scaling; a version of the model from before its "
    "texts were made longer, if there is one, can be read"
)
"""The ways out of kinds that are not read. ``dynamic`` raises the base for longer texts alone."""


def _parameters(reader: ArgumentReader) -> tuple[str, Mapping[str, object]]:
    """Return the field that holds the parameters, and them; nothing if there is none."""
    given = [n for n in ("rope_parameters", "rope_scaling") if reader.arguments.get(n) is not None]
    if len(given) > 1 and len({_plain(reader.arguments[name]) for name in given}) > 1:
        raise BadCheckpointError(f"{reader.where}: {' and '.join(given)} differ")
    if not given:
        return "rope_scaling", {}
    value = reader.arguments[given[0]]
    if not isinstance(value, dict):
        raise BadCheckpointError(
            f"{reader.where}: {given[0]}: found {shown(value)}, wanted an object"
        )
    return given[0], value


def _plain(value: object) -> str:
    """Return what parameters say of scaling, however it is spelt. (Bases are compared later.)"""
    if not isinstance(value, dict):
        return repr(value)
    kind = value.get("rope_type", value.get("type", "default"))
    said = {name: item for name, item in value.items() if name not in _NAMES}
    return repr((kind, sorted(said.items(), key=str)))


def _agreed(
    reader: ArgumentReader, field: ArgumentReader, names: Sequence[str], inside: str, default: float
) -> float:
    """Return a number that stands at the top level under ``names``, inside the parameters under
    ``inside``, or nowhere; where it stands more than once, it must be the same.
    """
    found = {name: reader.optional_number(name) for name in names}
    found[f"{field.prefix}{inside}"] = field.optional_number(inside)
    told = {name: value for name, value in found.items() if value is not None}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name} is {value:g}" for name, value in told.items())
        raise BadCheckpointError(f"{reader.where}: {listed}: wanted one value")
    return next(iter(told.values()), default)


def read_rotary(
    reader: ArgumentReader,
    base: Sequence[str] = ("rope_theta",),
    percent: Sequence[str] = (),
    share: float = 1.0,
) -> RotarySettings:
    """Return the settings; ``base`` and ``percent`` are the names at the top level, ``share`` is
    the rotated share where none is given. Without names for it, heads are rotated whole.

    Raises BadCheckpointError for scaling that the model description has no words for.
    """
    name, parameters = _parameters(reader)
    field = ArgumentReader(parameters, reader.where, prefix=f"{name}.")
    kind = _kind(field)
    if odd := sorted(parameters.keys() - _PARAMETERS[kind]):
        raise BadCheckpointError(
            f"{reader.where}: {name}.{odd[0]}: found {shown(parameters[odd[0]])}, which flmgrow "
            f"does not understand with rope_type {kind}"
        )
    if kind == "llama3":
        _check_llama3(reader, field)
    rotated = _agreed(reader, field, percent, "partial_rotary_factor", share)
    if not percent and rotated != 1.0:
        raise BadCheckpointError(
            f"{reader.where}: {name}.partial_rotary_factor: found {rotated:g}, wanted 1",
            "models of this type rotate whole heads",
        )
    angle = _agreed(reader, field, base, "rope_theta", 10000.0)
    factor = field.number("factor") if kind != "default" else None
    for label, value in (("rope_theta", angle), ("factor", factor), ("rotated share", rotated)):
        if value is not None and value <= 0:
            raise BadCheckpointError(
                f"{reader.where}: {label}: found {value:g}, wanted a positive number"
            )
    return RotarySettings(
        base=angle,
        percent=rotated,
        scaling_factor=factor if kind == "llama3" else None,
        interpolation=factor if kind == "linear" else None,
    )


def _kind(field: ArgumentReader) -> str:
    """Return the kind of scaling, which transformers before 4.43 calls ``type``."""
    name = "rope_type" if field.arguments.get("rope_type") is not None else "type"
    try:
        return field.choice(name, _PARAMETERS, "default")
    except BadCheckpointError as error:
        hint = _DYNAMIC if field.arguments[name] == "dynamic" else _OTHER_SCALING
        raise BadCheckpointError(error.message, hint.format(f"{field.prefix}{name}")) from None


def _check_llama3(reader: ArgumentReader, field: ArgumentReader) -> None:
    context = reader.integer("max_position_embeddings")
    for name, wanted in _LLAMA3.items():
        default = float(context) if name == "original_max_position_embeddings" else None
        if (found := field.number(name, default)) != wanted:
            raise BadCheckpointError(
                f"{reader.where}: {field.prefix}{name}: found {found:g}, wanted {wanted:g}",
                "Megatron-LM scales by Llama 3's own constants, and no others",
            )


def written_rotary(
    rotary: RotarySettings, base: str = "rope_theta", percent: str = ""
) -> dict[str, object]:
    """Return the fields for ``rotary``; what has no field is left out."""
    scaling: dict[str, object] | None = None
    if rotary.scaling_factor is not None:
        scaling = {"rope_type": "llama3", "factor": rotary.scaling_factor, **_LLAMA3}
    elif rotary.interpolation is not None:
        scaling = {"rope_type": "linear", "factor": rotary.interpolation}
    share = {percent: rotary.percent} if percent else {}
    inside = {"partial_rotary_factor": rotary.percent} if percent else {}
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": rotary.base, **inside}
    return {base: rotary.base, "rope_scaling": scaling, **share, "rope_parameters": parameters}
