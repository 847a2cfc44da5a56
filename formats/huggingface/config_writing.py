"""``ModelConfig`` to ``config.json``.

Whatever a family cannot say is found by saying it: the fields that are to be written are read
again, and a model that comes back changed is refused with the differences named. So there is one
list of abilities, and it cannot be wrong.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import AS_STORED, ReadOptions
from flmgrow.formats.huggingface.config import CONFIG_FILE, model_of, seen
from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.names import ARCHITECTURES, BEGIN, END, MODEL_TYPE, ROWS
from flmgrow.formats.huggingface.fields.rotary_rows import (
    ROPE_PARAMETERS,
    ROPE_SCALING,
    ROTARY_ROWS,
)
from flmgrow.formats.huggingface.fields.row import Fields
from flmgrow.formats.huggingface.fields.window_rows import FULL_ATTENTION, LAYERED, slides
from flmgrow.formats.huggingface.rotary import NAMES
from flmgrow.model.config import ModelConfig
from flmgrow.model.wording import differences
from flmgrow.text import Setting, Text

NO_IDS: Fields = MappingProxyType({BEGIN.name: None, END.name: None})
_MOST_FAMILIES = 3
"""How many families say at most why they are none for a model."""

_ROTARY = frozenset(row.name for row in ROTARY_ROWS)


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
        if isinstance(spelt, dict) and isinstance(scaling, dict) and _are_of_all(spelt, scaling):
            # What is said, no defaults.
            kept = {n: value for n, value in spelt.items() if n in NAMES}
            others[name] = kept | {n: value for n, value in scaling.items() if n not in NAMES}
    return others


def _are_of_all(*parameters: Fields) -> bool:
    """Whether rotary parameters are those of all layers, not of each type of them."""
    return all(FULL_ATTENTION not in each for each in parameters)


def _new(family: Family, config: ModelConfig, ids: Fields) -> Fields:
    return {
        ARCHITECTURES.name: [family.architecture],
        MODEL_TYPE.name: family.name,
        **family.fixed,
        **family.write(config),
        **ids,
    }


class UnsayableError(UsageError):
    """No family of Hugging Face's can say a model, or not the one that was chosen."""


def _nearest(reasons: Mapping[str, list[str]]) -> str:
    """Return what the families that come nearest to a model cannot say of it."""
    fewest = min(len(lost) for lost in reasons.values())
    shown = [name for name, lost in reasons.items() if len(lost) == fewest][:_MOST_FAMILIES]
    listed = [f"{name} cannot say {', '.join(reasons[name])}" for name in shown]
    others = len(reasons) - len(shown)
    return "; ".join([*listed, f"nor can {others} others"] if others else listed)


def _check_hidden_windows(
    family: Family, own: tuple[Fields, ModelConfig], written: Fields, options: ReadOptions
) -> None:
    """Raise UsageError where a source read for short texts would lose windows of some layers.

    The folder is for texts of any length, and which of its layers slide nobody knows who reads the
    source as a model without windows.
    """
    fields, read = own
    if options.max_positions is None or family.name not in LAYERED:
        return
    whole = replace(options, max_positions=None)

    def sliding(fields: Fields) -> list[bool]:
        """Return which layers slide for texts of any length."""
        return slides(model_of(family, seen(family, fields, whole), CONFIG_FILE))

    stored = sliding(fields)
    if stored == slides(read):
        return
    said = sliding(written)
    if said != stored and ({*said} != {*stored} or len({*said}) > 1):
        raise UsageError(
            Text(
                Setting("max_position_embeddings"),
                f" {options.max_positions}: layers have a window, which the folder that is written "
                "would lose",
            ),
            "leave it out: shorter texts need nothing else",
        )


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
        UnsayableError: If no family (or not that one) can say the model, with the reasons.
        UsageError: For an unknown family, and where windows of some layers would get lost that
            ``options`` hide.
    """
    if name is not None and name not in FAMILIES:
        raise UsageError(
            Text(Setting("family"), f" {name}: unknown"), f"one of {', '.join(FAMILIES)}"
        )
    kept = own is not None and name in (None, own[0][MODEL_TYPE.name])
    options = options if kept else AS_STORED
    if own is not None and kept:
        family = FAMILIES[cast(str, own[0][MODEL_TYPE.name])]
        merged = _merged(family, config, ids, *own)
        _check_hidden_windows(family, own, merged, options)
        candidates = {family.name: merged}
    else:
        names = FAMILIES if name is None else [name]
        candidates = {each: _new(FAMILIES[each], config, ids) for each in names}
    reasons = {}
    for each, fields in candidates.items():
        reasons[each] = _unsaid(FAMILIES[each], seen(FAMILIES[each], fields, options), config)
        if not reasons[each]:
            architecture = {ARCHITECTURES.name: [FAMILIES[each].architecture]}
            return FAMILIES[each], {**fields, **architecture}
    raise UnsayableError(
        f"this model cannot be said in Hugging Face's terms: {_nearest(reasons)}",
        "grow it to sizes that a family can say",
    )
