"""Reading rotary positions, wherever in ``config.json`` they are said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.formats.huggingface.fields.model_rows import MAX_POSITIONS
from flmgrow.formats.huggingface.fields.rotary_rows import (
    ATTENTION,
    BASE,
    BASES,
    BETA_FAST,
    BETA_SLOW,
    FACTOR,
    FAST,
    KIND,
    KINDS,
    LONG,
    MSCALE,
    MSCALE_ALL,
    OLDER_KIND,
    ORIGINAL,
    PARTIAL,
    ROPE_PARAMETERS,
    ROPE_SCALING,
    ROPE_THETA,
    SHARES,
    SHORT,
    SLIDING_THETA,
    SLOW,
    TRAINED_LENGTH,
    TRUNCATE,
    TYPED,
)
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import PART_ROTATED
from flmgrow.formats.huggingface.fields.window_rows import FULL_ATTENTION, SLIDING_ATTENTION
from flmgrow.model.rotary import LongRope, RotarySettings, Yarn
from flmgrow.text import Found, Text

NAMES = frozenset({KIND, OLDER_KIND, ROPE_THETA.name, PARTIAL.name})
"""Entries of parameters that are said elsewhere in another spelling."""

_ENTRIES: Mapping[str, frozenset[str]] = {
    "default": NAMES,
    "linear": NAMES | {FACTOR},
    "llama3": NAMES | {FACTOR, ORIGINAL, SLOW, FAST},
    "yarn": NAMES
    | {FACTOR, ORIGINAL, BETA_FAST, BETA_SLOW, TRUNCATE, ATTENTION, MSCALE, MSCALE_ALL},
    "longrope": NAMES | {FACTOR, ORIGINAL, SHORT, LONG, ATTENTION},
}
"""What there may be among the parameters of each kind."""

_OTHER_NAMES = {"su": "longrope"}

_DYNAMIC = (
    "it does not touch texts of up to max_position_embeddings: for those, in a copy of the folder, "
    'set {0} to "default", and leave out the factor beside it'
)
_OTHER_SCALING = (
    "flmgrow has no such scaling; a version of the model from before its texts were made longer, "
    "if there is one, can be read"
)
"""The ways out of kinds that are not read. ``dynamic`` raises the base for longer texts alone."""


def _parameters(reader: FieldReader) -> tuple[str, Mapping[str, object]]:
    """Return the field that holds the parameters, and them; nothing if there is none."""
    told = {
        ROPE_PARAMETERS.name: _of_type(reader, FULL_ATTENTION),
        ROPE_SCALING.name: ROPE_SCALING.read(reader),
    }
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


def _of_type(reader: FieldReader, layer_type: str) -> object:
    """Return what ``ROPE_PARAMETERS`` hold, of one type of layers where a family has several."""
    told = ROPE_PARAMETERS.read(reader)
    if told is None or reader.family not in TYPED:
        return told
    if not isinstance(told, dict) or not told.keys() <= {FULL_ATTENTION, SLIDING_ATTENTION}:
        raise BadCheckpointError(
            Text("found ", Found(shown(told))),
            where=(reader.where, ROPE_PARAMETERS.name),
            wanted=f"an object with {FULL_ATTENTION} and {SLIDING_ATTENTION}",
        )
    return told.get(layer_type)


def _plain(value: object) -> str:
    """Return what parameters say of scaling, however it is spelt. (Bases are compared later.)"""
    if not isinstance(value, dict):
        return repr(value)
    kind = value.get(KIND, value.get(OLDER_KIND, "default"))
    kind = _OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    said = {name: item for name, item in value.items() if name not in NAMES}
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
    return _settings(reader, name, parameters, BASES)


def read_sliding_rotary(reader: FieldReader) -> RotarySettings:
    """Return the settings of layers that slide, in a family where they have their own.

    Raises:
        BadCheckpointError: As ``read_rotary`` does.
    """
    name, told = f"{ROPE_PARAMETERS.name}.{SLIDING_ATTENTION}", _of_type(reader, SLIDING_ATTENTION)
    if told is not None and not isinstance(told, dict):
        raise BadCheckpointError(
            Text("found ", Found(shown(told))), where=(reader.where, name), wanted="an object"
        )
    return _settings(reader, name, told or {}, [SLIDING_THETA])


def _settings(
    reader: FieldReader,
    name: str,
    parameters: Mapping[str, object],
    bases: Sequence[Field[float]],
) -> RotarySettings:
    """Return the settings that ``parameters`` say, which lie at ``name``, with one of ``bases``."""
    field = ArgumentReader(parameters, reader.where, prefix=f"{name}.")
    kind = _kind(field, reader.family)
    if odd := sorted(parameters.keys() - _ENTRIES[kind]):
        raise BadCheckpointError(
            Text(
                f"{name}.{odd[0]}: found ",
                Found(shown(parameters[odd[0]])),
                f", which flmgrow does not understand with rope_type {kind}",
            ),
            where=reader.where,
        )
    shares = _used(reader, SHARES)
    rotated = _agreed(reader, field, shares, PARTIAL.name, 1.0)
    if not shares and rotated != 1.0:
        raise BadCheckpointError(
            Text(f"{name}.{PARTIAL.name}: found ", Found(f"{rotated:g}")),
            PART_ROTATED,
            where=reader.where,
            wanted="1",
        )
    angle = _agreed(reader, field, _used(reader, bases), ROPE_THETA.name, BASE)
    for label, value in ((ROPE_THETA.name, angle), ("rotated share", rotated)):
        if value <= 0:
            raise not_positive(reader, label, value)
    scaling = _SCALINGS[kind](_Scaling(reader, field))
    return RotarySettings(base=angle, percent=rotated, **scaling)


def not_positive(reader: FieldReader, label: str, value: float) -> BadCheckpointError:
    """Return the refusal of a ``value`` that the field called ``label`` must not have."""
    return BadCheckpointError(
        Text("found ", Found(f"{value:g}")),
        where=(reader.where, label),
        wanted="a positive number",
    )


@dataclass(frozen=True)
class _Scaling:
    """The parameters of a scaling, ``field``, in the file that ``reader`` reads."""

    reader: FieldReader
    field: ArgumentReader

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number; ``default`` stands for an absent one, which else is wrong."""
        given = self.field.optional_number(name)
        value = given if given or default is None else default
        value = self.field.number(name) if value is None else value
        if value <= 0:
            raise not_positive(self.reader, name, value)
        return value

    @property
    def factor(self) -> float:
        """How much longer texts are than those of training, where nothing says it otherwise."""
        return self.number(FACTOR, MAX_POSITIONS.read(self.reader) / self.context)

    @property
    def context(self) -> int:
        """How long the texts of training were."""
        outside = self.reader.optional_integer(TRAINED_LENGTH.name)
        inside = self.field.optional_integer(ORIGINAL)
        told = outside if outside is not None else inside
        length = MAX_POSITIONS.read(self.reader) if told is None else told
        if length <= 0:
            raise not_positive(self.reader, ORIGINAL, length)
        return length

    def factors(self, name: str) -> tuple[float, ...]:
        """Return a number for each pair."""
        told = self.field.arguments.get(name)
        right = isinstance(told, list) and all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < inf
            for one in told
        )
        if not isinstance(told, list) or not right:
            raise BadCheckpointError(
                Text("found ", Found(shown(told))),
                where=(self.reader.where, f"{self.field.prefix}{name}"),
                wanted="a list of positive numbers",
            )
        return tuple(float(one) for one in told)


def _llama3(scaling: _Scaling) -> dict[str, Any]:
    return {
        "scaling_factor": scaling.number(FACTOR),
        "scaling_slow": scaling.number(SLOW),
        "scaling_fast": scaling.number(FAST),
        "scaling_context": scaling.context,
    }


def _yarn(scaling: _Scaling) -> dict[str, Any]:
    """Scores grow a little with texts, unless parameters say how much."""
    factor, field = scaling.factor, scaling.field
    several = [field.optional_number(name) for name in (MSCALE, MSCALE_ALL)]
    usual = _grown(factor)
    if all(several):
        usual = _grown(factor, several[0] or 1.0) / _grown(factor, several[1] or 1.0)
    return {
        "yarn": Yarn(
            factor=factor,
            context=scaling.context,
            fast=scaling.number(BETA_FAST, 32.0),
            slow=scaling.number(BETA_SLOW, 1.0),
            attention=scaling.number(ATTENTION, usual),
            truncated=field.flag(TRUNCATE, default=True),
        )
    }


def _grown(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * log(factor) + 1.0


def _longrope(scaling: _Scaling) -> dict[str, Any]:
    factor, context = scaling.factor, scaling.context
    usual = 1.0 if factor <= 1 or context < 2 else sqrt(1 + log(factor) / log(context))
    return {
        "longrope": LongRope(
            short=scaling.factors(SHORT),
            long=scaling.factors(LONG),
            context=context,
            attention=scaling.number(ATTENTION, usual),
        )
    }


_SCALINGS: Mapping[str, Callable[[_Scaling], dict[str, Any]]] = {
    "default": lambda _: {},
    "linear": lambda scaling: {"interpolation": scaling.number(FACTOR)},
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""The settings that each kind says."""


def _kind(field: ArgumentReader, family: str) -> str:
    """Return the kind of scaling, by either of its names."""
    name = KIND if field.arguments.get(KIND) is not None else OLDER_KIND
    told = field.arguments.get(name)
    if isinstance(told, str) and told in _OTHER_NAMES:
        return _OTHER_NAMES[told]
    try:
        return field.choice(name, KINDS.get(family, _ENTRIES), "default")
    except BadCheckpointError as error:
        hint = _DYNAMIC if field.arguments[name] == "dynamic" else _OTHER_SCALING
        hint = hint.format(f"{field.prefix}{name}")
        raise error.with_hint(hint) from None
