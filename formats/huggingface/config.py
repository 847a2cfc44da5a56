"""``config.json`` to ``ModelConfig`` and back.

Whatever a family cannot say is found by saying it: the fields that are to be written are read
again, and a model that comes back changed is refused with the differences named. So there is one
list of abilities, and it cannot be wrong.
"""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import cast

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import AS_STORED, ReadOptions
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.names import (
    ARCHITECTURES,
    BEGIN,
    END,
    MODEL_TYPE,
    ROWS,
    is_harmless,
)
from flmgrow.formats.huggingface.fields.rotary_rows import (
    ROPE_PARAMETERS,
    ROPE_SCALING,
    ROTARY_ROWS,
)
from flmgrow.formats.huggingface.fields.row import FieldReader, Fields
from flmgrow.formats.huggingface.fields.switch_rows import OTHER_MODELS
from flmgrow.formats.huggingface.rotary import NAMES
from flmgrow.formats.vouched import Vouched
from flmgrow.model.config import ModelConfig
from flmgrow.model.wording import differences
from flmgrow.text import Found, Setting, Text

CONFIG_FILE = "config.json"
NO_IDS: Fields = MappingProxyType({BEGIN.name: None, END.name: None})
_MOST_FAMILIES = 3
"""How many families say at most why they are none for a model."""

_ROTARY = frozenset(row.name for row in ROTARY_ROWS)


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


def _unsaid(family: Family, fields: Fields, config: ModelConfig) -> list[str]:
    """Return what of a model is lost in ``fields``."""
    try:
        found = model_of(family, fields, CONFIG_FILE)
    except BadCheckpointError as error:
        return [error.relative_to(CONFIG_FILE).message]
    return [f"{name} {value}" for name, value in differences(config, found).items()]


def _merged(
    family: Family, config: ModelConfig, ids: Fields, own: Fields, old: ModelConfig
) -> Fields:
    """Return a model's own fields with those that its growth changed brought up to date.

    A field that is null, or not there, stands for a default that may depend on sizes: all such are
    written out.
    """
    before, after = family.write(old), family.write(config)
    kept = {n: value for n, value in own.items() if n not in ROWS or not ROWS[n].private}
    changed = {
        name: value
        for name, value in after.items()
        if name not in _ROTARY and (own.get(name) is None or before[name] != value)
    }
    grown = {n: row.grown for n, row in ROWS.items() if n in own and row.grown is not None}
    changed |= {name: follow(own[name], old, config) for name, follow in grown.items()}
    return {**ids, **_other_spelling(own, after), **kept, **changed}


def _other_spelling(own: Fields, written: Fields) -> Fields:
    """Return how the other versions of transformers spell a source's rotary positions.

    Only where they are spelt in one of the two ways that ``rotary.py`` writes.
    """
    said = {name: own[name] for name in _ROTARY if own.get(name) is not None}
    if not said or not all(name in written for name in said):
        return {}
    others = {name: written[name] for name in written if name in _ROTARY and name not in said}
    scaling = said.get(ROPE_PARAMETERS.name, said.get(ROPE_SCALING.name))
    for name in (ROPE_PARAMETERS.name, ROPE_SCALING.name):
        spelt = others.get(name)
        if isinstance(spelt, dict) and isinstance(scaling, dict):  # what is said, no defaults
            kept = {n: value for n, value in spelt.items() if n in NAMES}
            others[name] = kept | {n: value for n, value in scaling.items() if n not in NAMES}
    return others


def _new(family: Family, config: ModelConfig, ids: Fields) -> Fields:
    return {
        ARCHITECTURES.name: [family.architecture],
        MODEL_TYPE.name: family.name,
        **family.fixed,
        **family.write(config),
        **ids,
    }


def _nearest(reasons: Mapping[str, list[str]]) -> str:
    """Return what the families that come nearest to a model cannot say of it."""
    fewest = min(len(lost) for lost in reasons.values())
    shown = [name for name, lost in reasons.items() if len(lost) == fewest][:_MOST_FAMILIES]
    listed = [f"{name} cannot say {', '.join(reasons[name])}" for name in shown]
    others = len(reasons) - len(shown)
    return "; ".join([*listed, f"nor can {others} others"] if others else listed)


def written_fields(
    config: ModelConfig,
    name: str | None = None,
    ids: Fields = NO_IDS,
    own: tuple[Fields, ModelConfig] | None = None,
    options: ReadOptions = AS_STORED,
) -> tuple[Family, dict[str, object]]:
    """Return the family and the ``config.json`` that say ``config``.

    ``name`` chooses the family, ``ids`` are the special tokens'. ``own`` is what the source's file
    says, and the model it means when it is read with ``options``.

    Raises:
        UsageError: If no family (or not that one) can say the model; the message has the reasons.
    """
    if name is not None and name not in FAMILIES:
        raise UsageError(
            Text(Setting("family"), f" {name}: unknown"), f"one of {', '.join(FAMILIES)}"
        )
    kept = own is not None and name in (None, own[0][MODEL_TYPE.name])
    options = options if kept else AS_STORED
    if own is not None and kept:
        family = FAMILIES[cast(str, own[0][MODEL_TYPE.name])]
        candidates = {family.name: _merged(family, config, ids, *own)}
    else:
        names = FAMILIES if name is None else [name]
        candidates = {each: _new(FAMILIES[each], config, ids) for each in names}
    reasons = {}
    for each, fields in candidates.items():
        reasons[each] = _unsaid(FAMILIES[each], seen(FAMILIES[each], fields, options), config)
        if not reasons[each]:
            architecture = {ARCHITECTURES.name: [FAMILIES[each].architecture]}
            return FAMILIES[each], {**fields, **architecture}
    raise UsageError(
        f"this model cannot be said in Hugging Face's terms: {_nearest(reasons)}",
        Text(
            "keep it as a Megatron checkpoint (",
            Setting("format", "megatron"),
            "), or grow it to sizes that a family can say",
        ),
    )
