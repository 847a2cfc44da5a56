"""What the items of an ``fsdp_dtensor`` checkpoint are called, and what ``torch_dist`` calls them.

Megatron-LM hands its state to torch as it is, and torch names an item by all the keys that lead to
it: ``model.module.KEY`` for a weight, ``optimizer.state.module.module.module.KEY.exp_avg`` for a
state. How often ``module.`` stands there depends on what the model was wrapped in, and ``KEY`` on
the layer spec. Here both become what ``torch_dist`` has, so that all else reads either format.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import DcpMetadata, DcpObject, DcpTensor
from flmgrow.formats.megatron.content import EXTRA_STATE
from flmgrow.formats.megatron.torch_dist.objects import PER_RANK
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.text import Found, Text

FSDP_DTENSOR = "fsdp_dtensor"
SCHEDULE = "opt_param_scheduler"

_WEIGHT = re.compile(r"model\.(?:module\.)+(?P<key>.+)", re.DOTALL)
_STATE = re.compile(r"optimizer\.state\.(?:module\.)*(?P<key>.+)\.(?P<state>\w+)", re.DOTALL)
_SETTING = re.compile(
    r"optimizer\.param_to_group_meta\.(?:module\.)*(?P<key>.+)\.(?P<name>\w+)", re.DOTALL
)
_CHUNK = re.compile(r"model\d+\.module\..+", re.DOTALL)
_NUMBERED = re.compile(r"(?P<layers>decoder\.layers\.)(?P<layer>\d+)(?P<rest>\..+)", re.DOTALL)
_FUSED = {row.key: row.fused_key for row in ROWS if row.fused_key}


def is_fsdp(metadata: DcpMetadata) -> bool:
    """Whether a folder that lists this is of Megatron's own FSDP."""
    return any(_WEIGHT.fullmatch(name) or _CHUNK.fullmatch(name) for name in metadata.tensors)


def fused_key(key: str) -> str:
    """Return a parameter's key in the naming that fuses norms, its layer numbered."""
    match = _NUMBERED.fullmatch(key)
    if match is None:
        return key
    fused = _FUSED.get(f"{match['layers']}{{layer}}{match['rest']}")
    return fused.format(layer=match["layer"]) if fused else key


def _weight(name: str) -> str | None:
    match = _WEIGHT.fullmatch(name)
    return fused_key(match["key"]) if match else None


def _tensor_name(name: str) -> str:
    """Return what ``torch_dist`` calls a tensor; one of nobody's stays what it is."""
    if (weight := _weight(name)) is not None:
        return weight
    if match := _STATE.fullmatch(name):
        return f"optimizer.state.{match['state']}.{fused_key(match['key'])}"
    return name


def setting_of(name: str) -> tuple[str, str] | None:
    """Return the parameter that an item has a setting of, and the setting's name; None if the item
    is no setting of the optimizer's for a parameter.
    """
    match = _SETTING.fullmatch(name)
    return (fused_key(match["key"]), match["name"]) if match else None


def _rank_key(name: str) -> str | None:
    """Return the key of what is some rank's own, None if an item is no part of it."""
    first = name.partition(".")[0]
    return next((key for key, kind in PER_RANK.items() if kind == first), None)


@dataclass
class Sorted:
    """The items of a checkpoint: ``sharded`` under the names of ``torch_dist``; ``once``, by name,
    what is in the common part.
    """

    sharded: DcpMetadata
    once: dict[str, DcpObject] = field(default_factory=dict)


def sort_items(metadata: DcpMetadata, folder: Path) -> Sorted:
    """Return the items of the checkpoint in ``folder`` by what they are.

    Raises:
        BadCheckpointError: For two weights of one parameter.
    """
    tensors: dict[str, DcpTensor] = {}
    objects: dict[str, DcpObject] = {}
    once: dict[str, DcpObject] = {}
    for stored, tensor in metadata.tensors.items():
        if _rank_key(stored):
            continue
        name = _tensor_name(stored)
        if name in tensors:
            raise BadCheckpointError(
                Text("found ", Found(f"{tensors[name].name} and {stored}")),
                "two saves are mixed: use another copy",
                where=folder,
                wanted="one of them",
            )
        tensors[name] = tensor
    for stored, item in metadata.objects.items():
        if _rank_key(stored):
            continue
        if "." not in stored or stored.startswith(f"{SCHEDULE}."):
            once[stored] = item
        else:
            key = _weight(stored) or stored
            objects[f"{key}/shard_0_1" if key.endswith(f".{EXTRA_STATE}") else key] = item
    for key, item in _of_ranks([*metadata.tensors, *metadata.objects]):
        objects[key] = item
    return Sorted(DcpMetadata(tensors, objects), once)


def _of_ranks(names: Iterable[str]) -> list[tuple[str, DcpObject]]:
    """Return one item for each kind of what is some rank's own."""
    kinds = dict.fromkeys(key for name in names if (key := _rank_key(name)))
    return [(key, DcpObject(key, "", 0, 0)) for key in kinds]
