"""Evaluating the few calls in a checkpoint's pickle that make plain data.

Tensors, bytes and sets are written as calls. Each function of this module stands for a call that
torch or Python's own pickler writes, and returns the value it would make, or None when the call is
of a form whose meaning is not known here (it is then kept as an opaque value). Nothing is ever
called.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

from flmgrow.formats.torch_file.bounds import Budget, checked_set, describe, refuse
from flmgrow.formats.torch_file.values import (
    ITEMSIZES,
    MAX_BYTES,
    STORAGE_DTYPES,
    UNTYPED,
    Global,
    OrderedMap,
    SizeTuple,
    Storage,
    StoredBytes,
    TensorRecord,
    storage_itemsize,
)
from flmgrow.text import Found, Text

TENSOR = Global("torch", "Tensor")
TENSOR_V1 = Global("torch._utils", "_rebuild_tensor")
TENSOR_V2 = Global("torch._utils", "_rebuild_tensor_v2")
TENSOR_V3 = Global("torch._utils", "_rebuild_tensor_v3")
TENSOR_WITH_ATTRIBUTES = Global("torch._tensor", "_rebuild_from_type_v2")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
PARAMETER_WITH_ATTRIBUTES = Global("torch._utils", "_rebuild_parameter_with_state")
SIZE = Global("torch", "Size")
ORDERED_DICT = Global("collections", "OrderedDict")
ENCODE = Global("_codecs", "encode")

CallArguments = tuple[object, ...]


class Call(Protocol):
    """What the call of a known function makes of its arguments."""

    def __call__(self, arguments: CallArguments, budget: "Budget", /) -> object:
        """Return the value, or None if this is a form whose meaning is not known."""


def storage_of(
    identity: object, known: dict[str, Storage], places: Mapping[str, StoredBytes]
) -> Storage:
    """Return the storage a persistent id names, the same object whenever it is named.

    ``known`` collects the storages by key; ``places`` says where their bytes lie.
    """
    parts = identity if isinstance(identity, tuple | list) and len(identity) == 5 else [None] * 5
    word, name, key, location, count = parts
    if not (
        word == "storage"
        and isinstance(name, Global)
        and isinstance(key, str)
        and isinstance(location, str)
        and type(count) is int
    ):
        refuse(f"a persistent id that is no storage: {describe(identity)}")
    module, kind = name.module, name.name
    is_known = kind == UNTYPED or kind in STORAGE_DTYPES
    if not is_known or module not in ("torch", "torch.storage", "torch.cuda"):
        refuse(f"storage {key!r} is of the unknown kind {module}.{kind}")
    place = places.get(key)
    if place is None:
        refuse(f"storage {key!r} has no record data/{key} in the file")
    wanted = count * storage_itemsize(kind)
    if not 0 <= count <= MAX_BYTES or wanted != place.nbytes:
        refuse(f"storage {key!r}: record has {place.nbytes} bytes, {count} x {kind} needs {wanted}")
    storage = known.get(key)
    if storage is None:
        storage = known[key] = Storage(
            kind, count, location, place.file, place.name, place.offset, place.crc
        )
    elif storage.kind != kind:
        refuse(f"storage {key!r} is used as {storage.kind} and as {kind}")
    return storage


def _tensor(arguments: CallArguments, dtype: str | None = None) -> TensorRecord | None:
    """Make a tensor of (storage, start, shape, stride, requires_grad, hooks)."""
    storage, start, shape, stride, requires_grad, hooks = arguments
    if not (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and isinstance(requires_grad, bool)
    ):
        refuse("broken tensor: its arguments are " + ", ".join(map(describe, arguments)))
    dtype = dtype or STORAGE_DTYPES.get(storage.kind)
    if dtype is None or dtype.startswith("q") or hooks:
        return None
    # The record checks that these are numbers, and that the tensor lies inside its storage.
    return TensorRecord(
        storage, dtype, tuple(shape), tuple(stride), cast(int, start), requires_grad
    )


def _tensor_v1(arguments: CallArguments, _: Budget) -> object:
    if len(arguments) != 4:
        refuse(Text("broken tensor: ", Found(len(arguments)), " arguments"), wanted="4")
    return _tensor((*arguments, False, None))


def _tensor_v2(arguments: CallArguments, _: Budget) -> object:
    if len(arguments) not in (6, 7):
        refuse(Text("broken tensor: ", Found(len(arguments)), " arguments"), wanted="6 or 7")
    is_plain = not any(arguments[6:])  # a seventh says that the values are to be negated or so
    return _tensor(arguments[:6]) if is_plain else None


def _tensor_v3(arguments: CallArguments, _: Budget) -> object:
    if len(arguments) not in (7, 8):
        refuse(Text("broken tensor: ", Found(len(arguments)), " arguments"), wanted="7 or 8")
    storage, dtype = arguments[0], arguments[6]
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        refuse(f"broken tensor: {describe(storage)} of {describe(dtype)}")
    is_plain = dtype.module == "torch" and dtype.name in ITEMSIZES and not any(arguments[7:])
    return _tensor(arguments[:6], dtype.name) if is_plain and storage.kind == UNTYPED else None


def _tensor_with_attributes(arguments: CallArguments, budget: Budget) -> object:
    match arguments:
        case (Global() as function, Global() as kind, tuple() as inner, attributes) if (
            kind == TENSOR and function in (TENSOR_V2, TENSOR_V3)
        ):
            record = CALLS[function](inner, budget)
            if isinstance(record, TensorRecord):
                return replace(record, attributes=attributes)
    return None  # a subclass of Tensor


def _parameter(arguments: CallArguments, _: Budget) -> object:
    match arguments:
        case (TensorRecord(attributes=None) as data, bool(requires_grad), hooks) if not hooks:
            return replace(data, requires_grad=requires_grad, is_parameter=True)
    return None


def _parameter_with_attributes(arguments: CallArguments, budget: Budget) -> object:
    record = _parameter(arguments[:3], budget)
    if isinstance(record, TensorRecord) and len(arguments) == 4:
        return replace(record, attributes=arguments[3])
    return None


def _size(arguments: CallArguments, budget: Budget) -> object:
    match arguments:
        case (tuple() | list() as sizes,) if all(type(size) is int for size in sizes):
            budget.spend(len(sizes))
            return SizeTuple(sizes)
    return None


def _ordered_map(arguments: CallArguments, _: Budget) -> object:
    return None if arguments else OrderedMap()


def _encoded(arguments: CallArguments, budget: Budget) -> object:
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            budget.spend(len(text))
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                refuse("bytes written as a text that has more than bytes in it")
    return None


def _bytes(arguments: CallArguments, _: Budget) -> object:
    return None if arguments else b""


def _bytearray(arguments: CallArguments, budget: Budget) -> object:
    match arguments:
        case ():
            return bytearray()
        case (bytes() as data,):
            budget.spend(len(data))
            return bytearray(data)
        case (str(), str()):
            encoded = _encoded(arguments, budget)
            return bytearray(encoded) if isinstance(encoded, bytes) else None
    return None  # bytearray(a number) asks for that much memory


def _set(arguments: CallArguments, budget: Budget) -> object:
    match arguments:
        case (list(members),):
            budget.spend(len(members))
            return checked_set(members)
    return None


def _frozenset(arguments: CallArguments, budget: Budget) -> object:
    members = _set(arguments, budget)
    return frozenset(members) if isinstance(members, set) else None


CALLS: dict[Global, Call] = {
    TENSOR_V1: _tensor_v1,
    TENSOR_V2: _tensor_v2,
    TENSOR_V3: _tensor_v3,
    TENSOR_WITH_ATTRIBUTES: _tensor_with_attributes,
    PARAMETER: _parameter,
    PARAMETER_WITH_ATTRIBUTES: _parameter_with_attributes,
    SIZE: _size,
    ORDERED_DICT: _ordered_map,
    ENCODE: _encoded,
    Global("__builtin__", "bytes"): _bytes,
    Global("builtins", "bytes"): _bytes,
    Global("__builtin__", "bytearray"): _bytearray,
    Global("builtins", "bytearray"): _bytearray,
    Global("__builtin__", "set"): _set,
    Global("builtins", "set"): _set,
    Global("__builtin__", "frozenset"): _frozenset,
    Global("builtins", "frozenset"): _frozenset,
}
"""What each known function makes of its arguments."""
