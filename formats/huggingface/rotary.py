"""Reading rotary positions, wherever in ``config.json`` they are said."""

from collections.abc import Mapping, Sequence

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.formats.huggingface.fields.model_rows import MAX_POSITIONS
from flmgrow.formats.huggingface.fields.rotary_rows import (
    BASE,
    BASES,
    FACTOR,
    KIND,
    LLAMA3,
    OLDER_KIND,
    ORIGINAL,
    PARTIAL,
    ROPE_PARAMETERS,
    ROPE_SCALING,
    ROPE_THETA,
    SHARES,
)
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import PART_ROTATED
from flmgrow.model.config import RotarySettings
from flmgrow.text import Found, Text

_NAMES = frozenset({KIND, OLDER_KIND, ROPE_THETA.name, PARTIAL.name})
_ENTRIES: Mapping[str, frozenset[str]] = {
    "default": _NAMES,
    "linear": _NAMES | {FACTOR},
    "llama3": _NAMES | {FACTOR, *LLAMA3},
}
"""What there may be among the parameters of each kind."""

_DYNAMIC = (
    "it does not touch texts of up to max_position_embeddings: for those, in a copy of the folder, "
    'set {0} to "default", and leave out the factor beside it'
)
_OTHER_SCALING = (
    "Megatron-LM's dense models have no such scaling; a version of the model from before its "
    "texts were made longer, if there is one, can be read"
)
"""The ways out of kinds that are not read. ``dynamic`` raises the base for longer texts alone."""


def _parameters(reader: FieldReader) -> tuple[str, Mapping[str, object]]:
    """Return the field that holds the parameters, and them; nothing if there is none."""
    told = {row.name: row.read(reader) for row in (ROPE_PARAMETERS, ROPE_SCALING)}
    given = {name: value for name, value in told.items() if value is not None}
    if len({_plain(value) for value in given.values()}) > 1:
        raise BadCheckpointError(f"{' and '.join(given)} differ", where=reader.where)
    for name, value in given.items():
        if not isinstance(value, dict):
            raise BadCheckpointError(
                Text("found ", Found(shown(value))), where=(reader.where, name), wanted="an object"
            )
        return name, value
    return ROPE_SCALING.name, {}


def _plain(value: object) -> str:
    """Return what parameters say of scaling, however it is spelt. (Bases are compared later.)"""
    if not isinstance(value, dict):
        return repr(value)
    kind = value.get(KIND, value.get(OLDER_KIND, "default"))
    said = {name: item for name, item in value.items() if name not in _NAMES}
    return repr((kind, sorted(said.items(), key=str)))


def _agreed(
    reader: FieldReader, field: ArgumentReader, rows: Sequence[Field[float]], inside: str,
    otherwise: float,
) -> float:  # fmt: skip
    """Return a number that stands at the top level in ``rows``, inside the parameters under
    ``inside``, or nowhere; where it stands more than once, it must be the same.
    """
    found = {row.name: reader.optional_number(row.name) for row in rows}
    found[f"{field.prefix}{inside}"] = field.optional_number(inside)
    told = {name: value for name, value in found.items() if value is not None}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name} is {value:g}" for name, value in told.items())
        raise BadCheckpointError("wanted one value", where=(reader.where, listed))
    usual = rows[0].absent(reader.family) if rows else None
    return next(iter(told.values()), otherwise if usual is None else usual)


def _used(reader: FieldReader, rows: Sequence[Field[float]]) -> list[Field[float]]:
    return [row for row in rows if row.use_in(reader.family) is not None]


def read_rotary(reader: FieldReader) -> RotarySettings:
    """Return the settings. A family that has no field for the share rotates heads whole.

    Raises:
        BadCheckpointError: For scaling that the model description has no words for.
    """
    name, parameters = _parameters(reader)
    field = ArgumentReader(parameters, reader.where, prefix=f"{name}.")
    kind = _kind(field)
    if odd := sorted(parameters.keys() - _ENTRIES[kind]):
        raise BadCheckpointError(
            Text(
                f"{name}.{odd[0]}: found ",
                Found(shown(parameters[odd[0]])),
                f", which flmgrow does not understand with rope_type {kind}",
            ),
            where=reader.where,
        )
    if kind == "llama3":
        _check_llama3(reader, field)
    shares = _used(reader, SHARES)
    rotated = _agreed(reader, field, shares, PARTIAL.name, 1.0)
    if not shares and rotated != 1.0:
        raise BadCheckpointError(
            Text(f"{name}.{PARTIAL.name}: found ", Found(f"{rotated:g}")),
            PART_ROTATED,
            where=reader.where,
            wanted="1",
        )
    angle = _agreed(reader, field, _used(reader, BASES), ROPE_THETA.name, BASE)
    factor = field.number(FACTOR) if kind != "default" else None
    for label, value in ((ROPE_THETA.name, angle), (FACTOR, factor), ("rotated share", rotated)):
        if value is not None and value <= 0:
            raise BadCheckpointError(
                Text("found ", Found(f"{value:g}")),
                where=(reader.where, label),
                wanted="a positive number",
            )
    return RotarySettings(
        base=angle,
        percent=rotated,
        scaling_factor=factor if kind == "llama3" else None,
        interpolation=factor if kind == "linear" else None,
    )


def _kind(field: ArgumentReader) -> str:
    """Return the kind of scaling, by either of its names."""
    name = KIND if field.arguments.get(KIND) is not None else OLDER_KIND
    try:
        return field.choice(name, _ENTRIES, "default")
    except BadCheckpointError as error:
        hint = _DYNAMIC if field.arguments[name] == "dynamic" else _OTHER_SCALING
        hint = hint.format(f"{field.prefix}{name}")
        raise error.with_hint(hint) from None


def _check_llama3(reader: FieldReader, field: ArgumentReader) -> None:
    context = MAX_POSITIONS.read(reader)
    for name, wanted in LLAMA3.items():
        default = float(context) if name == ORIGINAL else None
        if (found := field.number(name, default)) != wanted:
            raise BadCheckpointError(
                Text(f"{field.prefix}{name}: found ", Found(f"{found:g}")),
                "Megatron-LM scales by Llama 3's own constants, and no others",
                where=reader.where,
                wanted=f"{wanted:g}",
            )
