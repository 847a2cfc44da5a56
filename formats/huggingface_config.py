"""``config.json`` to ``ModelConfig`` and back.

Whatever a family cannot say is found by saying it: the fields that are to be written are read
again, and a model that comes back changed is refused with the differences named. So there is one
list of abilities, and it cannot be wrong.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import cast

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.arguments import ArgumentReader, shown
from flmgrow.formats.huggingface_families import FAMILIES, Family
from flmgrow.formats.huggingface_fields import HARMLESS, PRIVATE, ROTARY
from flmgrow.formats.huggingface_parts import FULL_ATTENTION
from flmgrow.model.config import ModelConfig

Fields = Mapping[str, object]


def family_of(fields: Fields, where: str) -> Family:
    """Return the family that ``config.json``, found in file ``where``, belongs to.

    Raises BadCheckpointError.
    """
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BadCheckpointError(
            f"{where}: model_type: found {shown(name)}, wanted one of {', '.join(FAMILIES)}",
            "flmgrow knows only these families",
        )
    return FAMILIES[name]


def read_fields(
    family: Family, fields: Fields, where: str, ignored: Collection[str] = ()
) -> ModelConfig:
    """Return the model that ``config.json`` describes; ``ignored`` are fields the user vouches for.

    Raises BadCheckpointError for a malformed field, and for one that is not understood.
    """
    for name, value in fields.items():
        if name in family.understood or name in HARMLESS or name in ignored:
            continue
        if not family.is_plain(name, value):
            raise BadCheckpointError(
                f"{where}: {name}: found {shown(value)}, which flmgrow does not understand in a "
                f"model of type {family.name}",
                f"if it does not change what the model computes, pass --ignore-arg {name}",
            )
    try:
        return family.read(ArgumentReader(fields, where, prefix=""))
    except UsageError as error:
        raise BadCheckpointError(f"{where}: {error.message}", error.hint) from None


def _flat(config: ModelConfig) -> dict[str, object]:
    """Return a model's fields, those of its parts among them."""
    result: dict[str, object] = {}
    for name, value in asdict(config).items():
        result.update({f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict)
                      else {name: value})  # fmt: skip
    return result


def _unsaid(family: Family, fields: Fields, config: ModelConfig) -> str:
    """Return what of a model is lost in ``fields``; an empty string if nothing is."""
    try:
        found = _flat(read_fields(family, fields, "config.json", fields))
    except BadCheckpointError as error:
        return error.message.removeprefix("config.json: ")
    wanted = _flat(config)
    return ", ".join(f"{name} {wanted[name]}" for name in wanted if wanted[name] != found[name])


def _merged(family: Family, config: ModelConfig, own: Fields, old: ModelConfig) -> Fields:
    """Return a model's own fields with those that its growth changed brought up to date.

    A field that is null, or not there, stands for a default that may depend on sizes: all such are
    written out.
    """
    before, after = family.write(old), family.write(config)
    kept = {name: value for name, value in own.items() if name not in PRIVATE}
    changed = {
        name: value
        for name, value in after.items()
        if name not in ROTARY and (own.get(name) is None or before[name] != value)
    }
    if isinstance(own.get("layer_types"), list):
        changed["layer_types"] = [FULL_ATTENTION] * config.layers
    if "n_ctx" in own:
        changed["n_ctx"] = config.max_positions
    return {**kept, **changed}


def _new(family: Family, config: ModelConfig) -> Fields:
    ids = {"bos_token_id": None, "eos_token_id": None}
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **family.fixed,
        **family.write(config),
        **ids,
    }


def written_fields(
    config: ModelConfig,
    name: str | None = None,
    own: tuple[Fields, ModelConfig] | None = None,
) -> tuple[Family, dict[str, object]]:
    """Return the family and the ``config.json`` that say ``config``.

    ``name`` chooses the family; ``own`` is what the source's file says, and the model it means.
    Raises UsageError, with the reasons, if no family (or not that one) can say the model.
    """
    if name is not None and name not in FAMILIES:
        raise UsageError(f"--family {name}: unknown", f"one of {', '.join(FAMILIES)}")
    if own is not None and name in (None, own[0]["model_type"]):
        family = FAMILIES[cast(str, own[0]["model_type"])]
        candidates = {family.name: _merged(family, config, *own)}
    else:
        names = FAMILIES if name is None else [name]
        candidates = {each: _new(FAMILIES[each], config) for each in names}
    reasons = {}
    for each, fields in candidates.items():
        reasons[each] = _unsaid(FAMILIES[each], fields, config)
        if not reasons[each]:
            architecture = {"architectures": [FAMILIES[each].architecture]}
            return FAMILIES[each], {**fields, **architecture}
    listed = "; ".join(f"{each} cannot say {reason}" for each, reason in reasons.items())
    raise UsageError(
        f"this model cannot be said in Hugging Face's terms: {listed}",
        "keep it as a Megatron checkpoint (--format megatron), or grow it to sizes that a family "
        "can say",
    )
