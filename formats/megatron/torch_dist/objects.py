"""Objects of a distributed checkpoint: what is neither an array nor in the common part.

megatron-core names each ``KEY/shard_PLACE_SIZE``. Modules of Transformer Engine keep scales (for
FP8) in an ``_extra_state``, which belongs to a layer as its weights do: layers are stacked, and the
place is the layer's number, or they are numbered in the key. Everything else that Megatron-LM saves
so is some rank's own, and means nothing in another layout.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER
from flmgrow.formats.megatron.content import EXTRA_STATE, KINDS
from flmgrow.formats.vouched import Vouched

LAYERS = "decoder.layers."

PER_RANK: Mapping[str, str] = {
    "rng_state": "rng_state",
    "rerun_state_machine_state": "rerun_state_machine",
}
"""Objects that are a rank's own: their key, and that of the same content in a legacy checkpoint.

Megatron-LM ``generate_state_dict``, and ``rerun_state_machine.py`` of megatron-core 0.10 to 0.19.
"""

_OBJECT = re.compile(r"(?P<key>.+)/shard_(?P<place>\d+(?:\.\d+)*)_\d+(?:\.\d+)*", re.DOTALL)
_MODULES = re.compile(
    r"(embedding|output_layer|decoder\.final_layernorm|decoder\.layers\.\d{1,6}\.).*", re.DOTALL
)


class ObjectName(NamedTuple):
    """An object's key, and its place as megatron-core writes it: numbers with points between."""

    key: str
    place: str


_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\..*", re.DOTALL)
"""Where a run has several optimizers, each has a prefix of its own."""


def is_of_optimizer(name: str) -> bool:
    """Whether an array or object is an optimizer's."""
    return _OPTIMIZER.fullmatch(name) is not None


def unread_state(folder: Path, name: str) -> UsageError:
    """Return the refusal of an optimizer's state that is of no kind that is read."""
    what = "optimizer state of a kind that is not read"
    if name.startswith("chained_"):
        what = "one of several optimizers, which are not read"
    return UsageError(
        what,
        "only Adam's state for all parameters is understood; " + WITHOUT_OPTIMIZER,
        where=(folder, name),
    )


def parse_name(name: str) -> ObjectName:
    """Return the parts of an object's name; one of another form is all key."""
    match = _OBJECT.fullmatch(name)
    return ObjectName(match["key"], match["place"]) if match else ObjectName(name, "")


def extra_state_key(name: str) -> str | None:
    """Return the key that an object has in the whole model, its layer's number in it; None if it is
    no ``_extra_state`` of a module that a dense GPT has.
    """
    key, place = parse_name(name)
    if not key.endswith(f".{EXTRA_STATE}") or not place.isdecimal():
        return None
    number, _, rest = key.removeprefix(LAYERS).partition(".")
    if key.startswith(LAYERS) and not (number.isdecimal() and rest):
        key, place = f"{LAYERS}{int(place)}.{key.removeprefix(LAYERS)}", "0"
    return key if int(place) == 0 and _MODULES.fullmatch(key) else None


def left_out(names: Collection[str], vouched: Vouched) -> dict[str, str]:
    """Return the objects among ``names`` that are not carried on, by kind, in words.

    Objects that nobody knows are left out if the user vouches for their keys.
    """
    found: dict[str, str] = {}
    for key in dict.fromkeys(parse_name(name).key for name in names):
        if key in PER_RANK:
            found[PER_RANK[key]] = KINDS[PER_RANK[key]]
        elif vouched.covers(key):
            found[key] = f"the object {key}"
    return found
