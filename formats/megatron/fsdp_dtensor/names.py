"""What the items of an ``fsdp_dtensor`` checkpoint are called, and what ``torch_dist`` calls them.

Megatron-LM hands its state to torch as it is, and torch names an item by all the keys that lead to
it: ``model.module.KEY`` for a weight, ``optimizer.state.module.module.module.KEY.exp_avg`` for a
state. How often ``module.`` stands there depends on what the model was wrapped in, and ``KEY`` on
the layer spec. What is read gets the names that ``torch_dist`` has, so that all else reads either
format; what is written gets those that a run of megatron-core 0.16 to 0.19 asks for.
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

SCHEDULE = "opt_param_scheduler"

_WEIGHTS = "model."
_STATES = "optimizer.state."
_SETTINGS = "optimizer.param_to_group_meta."
_MODULE = "module."

_WRAPPED = re.escape(_MODULE)
_WEIGHT = re.compile(rf"{re.escape(_WEIGHTS)}(?:{_WRAPPED})+(?P<key>.+)", re.DOTALL)
_STATE = re.compile(rf"{re.escape(_STATES)}(?:{_WRAPPED})*(?P<key>.+)\.(?P<state>\w+)", re.DOTALL)
_SETTING = re.compile(
    rf"{re.escape(_SETTINGS)}(?:{_WRAPPED})*(?P<key>.+)\.(?P<name>\w+)", re.DOTALL
)
_CHUNK = re.compile(r"model\d+\.module\..+", re.DOTALL)
_NUMBERED = re.compile(r"(?P<layers>decoder\.layers\.)(?P<layer>\d+)(?P<rest>\..+)", re.DOTALL)
_FUSED = {row.key: row.fused_key for row in ROWS if row.fused_key}


@dataclass(frozen=True)
class StoredNames:
    """What a run calls what belongs to a parameter; ``half``: its model computes in 16 bits.

    The model's own state has one wrapper in its names (``MegatronFSDP``), an optimizer's has all:
    ``FullyShardedDataParallel``, ``MegatronFSDP``, and ``Float16Module`` in 16 bits.
    """

    half: bool

    @property
    def _wrappers(self) -> str:
        return _MODULE * (3 if self.half else 2)

    def weight(self, key: str) -> str:
        """Return the name of the weight of parameter ``key``."""
        return f"{_WEIGHTS}{_MODULE}{key}"

    def state(self, key: str, state: str) -> str:
        """Return the name of a state of parameter ``key``, such as ``exp_avg``."""
        return f"{_STATES}{self._wrappers}{key}.{state}"

    def setting(self, key: str, name: str) -> str:
        """Return the name of a setting of the group that parameter ``key`` is in."""
        return f"{_SETTINGS}{self._wrappers}{key}.{name}"


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
    what is in the common part. ``fused`` says whether their own names fuse norms.
    """

    sharded: DcpMetadata
    once: dict[str, DcpObject] = field(default_factory=dict)
    fused: bool = True


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
    weights = filter(None, (_WEIGHT.fullmatch(stored) for stored in metadata.tensors))
    fused = all(fused_key(match["key"]) == match["key"] for match in weights)
    return Sorted(DcpMetadata(tensors, objects), once, fused)


def _of_ranks(names: Iterable[str]) -> list[tuple[str, DcpObject]]:
    """Return one item for each kind of what is some rank's own."""
    kinds = dict.fromkeys(key for name in names if (key := _rank_key(name)))
    return [(key, DcpObject(key, "", 0, 0)) for key in kinds]
