"""The steps that write each kind of inert value: other values, and instructions between them.

:mod:`flmgrow.formats.torch_file.pickler` takes them one after the other, so that nothing recurses,
however deep the data.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.objects import enum_value
from flmgrow.formats.torch_file.values import (
    UNTYPED,
    Global,
    Opaque,
    OrderedMap,
    SizeTuple,
    TensorRecord,
)


@dataclass(frozen=True, slots=True)
class InstructionStep:
    """A step: write an instruction. If it makes ``value``, keep that for later references, then
    fill it.
    """

    code: bytes
    value: object = None
    filling: Sequence[object] = ()


@dataclass(frozen=True, slots=True)
class TensorArguments:
    """A step: write the arguments of the call that makes a tensor."""

    tensor: TensorRecord


def tuple_codes(size: int) -> tuple[bytes, bytes]:
    """Return the instructions before and after the values of a tuple."""
    short = (pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    return (b"", short[size]) if size < len(short) else (pickle.MARK, pickle.TUPLE)


def _call(
    made: object,
    function: Global,
    arguments: object,
    code: bytes = pickle.REDUCE,
    filling: Sequence[object] = (),
) -> list[object]:
    """Return the steps that make a value by a call."""
    return [function, arguments, InstructionStep(code, made, filling)]


def _appended(values: Sequence[object]) -> list[object]:
    return (
        [InstructionStep(pickle.MARK), *values, InstructionStep(pickle.APPENDS)] if values else []
    )


def _set_items(pairs: Iterable[tuple[object, object]]) -> list[object]:
    flat = [part for pair in pairs for part in pair]
    return [InstructionStep(pickle.MARK), *flat, InstructionStep(pickle.SETITEMS)] if flat else []


def _built(state: object) -> list[object]:
    return [] if state is None else [state, InstructionStep(pickle.BUILD)]


def tuple_steps(value: tuple[object, ...]) -> list[object]:
    """Return the steps that write a tuple."""
    begin, end = tuple_codes(len(value))
    return [InstructionStep(begin), *value, InstructionStep(end, value if value else None)]


def list_steps(value: list[object]) -> list[object]:
    """Return the steps that write a list."""
    return [InstructionStep(pickle.EMPTY_LIST, value, _appended(value))]


def dict_steps(value: dict[object, object]) -> list[object]:
    """Return the steps that write a dict."""
    return [InstructionStep(pickle.EMPTY_DICT, value, _set_items(value.items()))]


def ordered_map_steps(value: OrderedMap) -> list[object]:
    """Return the steps that write an ordered dict, and its state."""
    filling = [*_set_items(value.items()), *_built(value.state)]
    return _call(value, calls.ORDERED_DICT, (), filling=filling)


def bytes_steps(value: bytes) -> list[object]:
    """Return the steps that write bytes."""
    if not value:
        return _call(value, Global("__builtin__", "bytes"), ())
    return _call(value, calls.ENCODE, (value.decode("latin-1"), "latin1"))


def bytearray_steps(value: bytearray) -> list[object]:
    """Return the steps that write a bytearray."""
    return _call(value, Global("__builtin__", "bytearray"), (bytes(value),) if value else ())


def set_steps(value: set[object] | frozenset[object]) -> list[object]:
    """Return the steps that write a set, its members always in the same order."""
    # Python would write the members in another order on each run.
    members = sorted(value, key=_rank)
    return _call(value, Global("__builtin__", type(value).__name__), (members,))


def _rank(member: object) -> tuple[str, str]:
    if isinstance(member, Opaque):
        return str(member.function), repr(enum_value(member))
    return type(member).__name__, repr(member)


def size_steps(value: SizeTuple) -> list[object]:
    """Return the steps that write a tensor's sizes."""
    return _call(value, calls.SIZE, (tuple(value),))


def opaque_steps(value: Opaque) -> list[object]:
    """Return the steps that write an opaque value, as it was read."""
    code = pickle.REDUCE if value.how == "reduce" else pickle.NEWOBJ
    filling = [*_appended(value.items), *_set_items(value.pairs), *_built(value.state)]
    return _call(value, value.function, value.arguments, code, filling)


def tensor_steps(value: TensorRecord) -> list[object]:
    """Return the steps that write a tensor.

    They lie inside the call that gives it attributes, or makes a parameter of it, or both.
    """
    arguments = TensorArguments(value)
    function = calls.TENSOR_V3 if value.storage.kind == UNTYPED else calls.TENSOR_V2
    if value.is_parameter:
        rest: list[object] = [value.requires_grad, OrderedMap()]
        outer = calls.PARAMETER
        if value.attributes is not None:
            outer = calls.PARAMETER_WITH_ATTRIBUTES
            rest.append(value.attributes)
        data = [function, arguments, InstructionStep(pickle.REDUCE)]
        return [
            outer,
            InstructionStep(pickle.MARK),
            *data,
            *rest,
            InstructionStep(pickle.TUPLE),
            InstructionStep(pickle.REDUCE, value),
        ]
    if value.attributes is not None:
        whole = (function, calls.TENSOR, arguments, value.attributes)
        return _call(value, calls.TENSOR_WITH_ATTRIBUTES, whole)
    return _call(value, function, arguments)
