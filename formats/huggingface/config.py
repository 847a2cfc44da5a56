"""``config.json`` to ``ModelConfig``, or refused."""

import json
from collections.abc import Iterable

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import AS_STORED, ReadOptions
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.names import (
    MODEL_TYPE,
    ROWS,
    is_harmless,
)
from flmgrow.formats.huggingface.fields.row import FieldReader, Fields
from flmgrow.formats.huggingface.fields.switch_rows import OTHER_MODELS
from flmgrow.formats.vouched import Vouched
from flmgrow.model.config import ModelConfig
from flmgrow.text import Found, Setting, Text

CONFIG_FILE = "config.json"


def family_of(fields: Fields, where: str) -> Family:
    """Return the family that ``config.json``, found in file ``where``, belongs to.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    name = MODEL_TYPE.get(fields)
    if not isinstance(name, str) or name not in FAMILIES:
        raise BadCheckpointError(
            Text("found ", Found(shown(name))),
            next(
                (
                    kind
                    for kind in OTHER_MODELS
                    if any(_tells(n, v, kind) for n, v in fields.items())
                ),
                "flmgrow knows only these families",
            ),
            where=(where, MODEL_TYPE.name),
            wanted=f"one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[name]


def _tells(name: str, value: object, kind: str) -> bool:
    """Whether a field tells that a model is of a ``kind`` that flmgrow does not have."""
    return bool(value) and name in ROWS and ROWS[name].changes == kind


def vouched_fields(options: ReadOptions) -> Vouched:
    """Return the fields that the user vouches for."""
    return Vouched("ignore_fields", options.ignored_fields)


def seen(family: Family, fields: Fields, options: ReadOptions) -> Fields:
    """Return ``config.json`` as the user wants it read.

    Without what they vouch for, and for texts no longer than they say. A field that the family is
    read by says what the model is: nobody can vouch that it does not matter.

    Raises:
        UsageError: For longer texts than the model knows positions for.
    """
    vouched = vouched_fields(options)
    kept = {
        name: value
        for name, value in fields.items()
        if name in family.understood or not vouched.covers(name)
    }
    wanted, declared = options.max_positions, family.positions.get(kept)
    if wanted is None:
        return kept
    if isinstance(declared, int) and wanted > declared:
        raise UsageError(
            Text(Setting("max_position_embeddings"), f" {wanted}: the model is for {declared}")
        )
    return {**kept, family.positions.name: wanted}


def read_fields(
    family: Family, fields: Fields, where: str, options: ReadOptions = AS_STORED
) -> ModelConfig:
    """Return the model that ``config.json`` describes.

    Raises:
        BadCheckpointError: For a malformed field, and for those that are not understood.
    """
    kept = seen(family, fields, options)
    strange = {name: value for name, value in kept.items() if value and _is_strange(family, name)}
    strange |= {name: value for name, value in kept.items() if _is_switched(family, name, value)}
    if strange:
        listed = Text("; ").join(
            Text(f"{name}: found ", Found(shown(value))) for name, value in strange.items()
        )
        raise BadCheckpointError(
            Text(listed, f", which flmgrow does not understand in a model of type {family.name}"),
            _unsupported(strange) or vouched_fields(options).hint(strange),
            where=where,
        )
    config = model_of(family, kept, where)
    scaled = config.rotary.yarn is not None or config.rotary.longrope is not None
    if scaled and options.max_positions is not None:
        raise UsageError(
            Text(
                Setting("max_position_embeddings"),
                f" {options.max_positions}: rotary scaling goes by the length that {where} says",
            ),
            "leave it out: shorter texts need nothing else",
        )
    if config.positions == "learned" and options.max_positions is not None:
        raise UsageError(
            Text(
                Setting("max_position_embeddings"),
                f" {options.max_positions}: the model has a table of "
                f"{family.positions.get(fields)} positions",
            ),
            "leave it out: shorter texts need nothing else",
        )
    return config


def _unsupported(names: Iterable[str]) -> str:
    """Return what of the model flmgrow has no place for, as some of the fields tell, if any does.

    Whoever passes over such a field has another model, so no hint leads there.
    """
    told = [ROWS[name].changes for name in names if name in ROWS]
    return "; ".join(dict.fromkeys(filter(None, told)))


def model_of(family: Family, fields: Fields, where: str) -> ModelConfig:
    """Return the model that the fields describe which ``family`` understands, whatever the others.

    Raises:
        BadCheckpointError: For a malformed field.
    """
    try:
        return family.read(FieldReader(fields, where, family.name))
    except UsageError as error:
        raise BadCheckpointError.of(error).at(where) from None


def _is_strange(family: Family, name: str) -> bool:
    """Whether no rule says anything about a field."""
    told = name in family.understood or name in family.fixed or _has_neutral(name)
    return not told and not is_harmless(name)


def _has_neutral(name: str) -> bool:
    return name in ROWS and ROWS[name].neutral is not None


def _is_switched(family: Family, name: str, value: object) -> bool:
    """Whether a field that the family does not use has a value that matters."""
    if name in family.understood or not _has_neutral(name):
        return False
    return not family.is_plain(name, value)


def notes_on_fields(family: Family, fields: Fields, options: ReadOptions) -> list[str]:
    """Return what one should know of how ``config.json`` was read."""
    vouched = vouched_fields(options)
    notes: list[str] = []
    silent = [name for name, value in fields.items() if not value and _is_strange(family, name)]
    if silent := [name for name in silent if not vouched.covers(name)]:
        listed = ", ".join(f"{name} is {json.dumps(fields[name])}" for name in silent)
        notes.append(f"{CONFIG_FILE}: {listed}: taken to change nothing")
    read = [name for name in fields if name in family.understood]
    for pattern in vouched.idle(name for name in fields if name not in read):
        met = [name for name in read if Vouched(vouched.setting, [pattern]).covers(name)]
        told = f"{', '.join(met)} says what the model is, and is read" if met else ""
        told = told or f"{CONFIG_FILE} has no such field"
        notes.append(Text(Setting(vouched.setting), f" {pattern}: {told}"))
    notes += [
        Text(
            f"{CONFIG_FILE}: {name} is {shown(value)}, and {ROWS[name].changes}: the model is read "
            "as if it did not say so (",
            Setting(vouched.setting),
            ")",
        )
        for name, value in fields.items()
        if vouched.covers(name) and _is_switched(family, name, value) and ROWS[name].changes
    ]
    return notes
