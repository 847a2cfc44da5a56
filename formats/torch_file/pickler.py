"""Writing inert values as a pickle that torch can read.

Inert values must go back into a pickle that torch, plain or with ``weights_only``, can read.
:func:`to_pickle` writes what :func:`flmgrow.formats.torch_file.unpickler.unpickle` reads. What was
shared stays shared, what was opaque is written as it was read, and the same data gives the same
bytes. A plan needs the size of every file, and nearly all of a pickle is plain tensors: these are
written in one go, and only what may hold anything waits in a list of what is still to be written.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.objects import enum_value
from flmgrow.formats.torch_file.values import (
    UNTYPED,
    Global,
    Opaque,
    OrderedMap,
    SizeTuple,
    Storage,
    TensorRecord,
)


def to_pickle(obj: object) -> tuple[bytes, list[Storage]]:
    """Return the pickle (protocol 2) of ``obj`` and its storages in the order of first use.

    The storages are called '0', '1' and so on in the pickle, whatever they were called before.

    Raises TypeError if ``obj`` holds something that is not an inert value.
    """
    writer = _Writer()
    writer.write(obj)
    return bytes(writer.output), list(writer.storages)


@dataclass(frozen=True, slots=True)
class _Code:
    """A step: write an instruction. If it makes ``value``, keep that for later references, then
    fill it.
    """

    code: bytes
    value: object = None
    filling: Sequence[object] = ()


@dataclass(frozen=True, slots=True)
class _Arguments:
    """A step: write the arguments of the call that makes a tensor."""

    tensor: TensorRecord


class _Writer:
    def __init__(self) -> None:
        self.output = bytearray()
        self.storages: dict[Storage, str] = {}
        self.todo: list[object] = []
        """Values and steps that remain to be written, the next one last."""
        # Texts and names by value, other objects by identity (and held, so that no new object can
        # get the identity of one that has gone).
        self.kept: dict[object, int] = {}
        self.held: list[object] = []
        self.count = 0

    def write(self, root: object) -> None:
        self.output += pickle.PROTO + b"\x02"
        self.todo.append(root)
        while self.todo:
            value = self.todo.pop()
            write = _WRITE.get(type(value))
            if write is None:
                raise TypeError(f"{type(value).__name__} is not an inert value")
            write(self, value)
        self.output += pickle.STOP

    def next(self, steps: Sequence[object]) -> None:
        """Write these values and steps before all others that remain."""
        self.todo += reversed(steps)

    def refer_to(self, key: object) -> bool:
        """Write a reference to what is kept as ``key``; return whether something is."""
        index = self.kept.get(key)
        if index is None:
            return False
        if index < 256:
            self.output += _SHORT_GET[index]
        else:
            self.output += pickle.LONG_BINGET + index.to_bytes(4, "little")
        return True

    def keep(self, key: object = None) -> None:
        """Keep what now lies on the stack, as ``key`` if there may be references to it."""
        index = self.count
        self.count += 1
        if key is not None:
            self.kept[key] = index
        if index < 256:
            self.output += _SHORT_PUT[index]
        else:
            self.output += pickle.LONG_BINPUT + index.to_bytes(4, "little")

    def keep_object(self, value: object) -> None:
        self.held.append(value)
        self.keep(id(value))

    def shared(self, value: str | Global) -> None:
        """Write a text or a name, or a reference to it."""
        if self.refer_to(value):
            return
        if isinstance(value, Global):
            self.output += pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        else:
            data = value.encode("utf-8", "surrogatepass")
            self.output += pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        self.keep(value)

    def code(self, step: _Code) -> None:
        self.output += step.code
        if step.value is not None:
            if id(step.value) in self.kept:  # it holds itself, and was finished on the way
                self.output += pickle.POP
                self.refer_to(id(step.value))
                return
            self.keep_object(step.value)
        self.next(step.filling)

    def integers(self, values: tuple[int, ...]) -> None:
        """Write a tuple to which there will be no reference."""
        begin, end = _tuple_codes(len(values))
        self.output += begin + b"".join(map(_integer, values)) + end
        if values:
            self.keep()

    def storage(self, value: Storage) -> None:
        key = self.storages.setdefault(value, str(len(self.storages)))
        self.output += pickle.MARK
        self.shared("storage")
        self.shared(_kind(value.kind))
        self.shared(key)
        # Not where it was: torch.load would put it there again, on a machine that has no GPU, too.
        self.shared("cpu")
        self.output += _integer(value.count) + pickle.TUPLE + pickle.BINPERSID

    def arguments(self, value: TensorRecord) -> None:
        """Write what is needed to make a tensor; no two have the tuples of their sizes in
        common.
        """
        self.output += pickle.MARK
        self.storage(value.storage)
        self.output += _integer(value.start)
        self.integers(value.shape)
        self.integers(value.stride)
        requires_grad = value.requires_grad and not value.is_parameter
        self.output += pickle.NEWTRUE if requires_grad else pickle.NEWFALSE
        self.shared(calls.ORDERED_DICT)  # of hooks
        self.output += pickle.EMPTY_TUPLE + pickle.REDUCE
        self.keep()
        if value.storage.kind == UNTYPED:
            self.shared(Global("torch", value.dtype))
        self.output += pickle.TUPLE
        self.keep()


_SHORT_GET = [pickle.BINGET + bytes([index]) for index in range(256)]
_SHORT_PUT = [pickle.BINPUT + bytes([index]) for index in range(256)]


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return pickle.BININT1 + bytes([value])
    if 0 <= value < 1 << 16:
        return pickle.BININT2 + value.to_bytes(2, "little")
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + value.to_bytes(4, "little", signed=True)
    data = pickle.encode_long(value)
    if len(data) < 256:
        return pickle.LONG1 + bytes([len(data)]) + data
    return pickle.LONG4 + struct.pack("<i", len(data)) + data


@lru_cache
def _kind(kind: str) -> Global:
    return Global("torch.storage" if kind == UNTYPED else "torch", kind)


def _tuple_codes(size: int) -> tuple[bytes, bytes]:
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
    return [function, arguments, _Code(code, made, filling)]


def _appended(values: Sequence[object]) -> list[object]:
    return [_Code(pickle.MARK), *values, _Code(pickle.APPENDS)] if values else []


def _set_items(pairs: Iterable[tuple[object, object]]) -> list[object]:
    flat = [part for pair in pairs for part in pair]
    return [_Code(pickle.MARK), *flat, _Code(pickle.SETITEMS)] if flat else []


def _built(state: object) -> list[object]:
    return [] if state is None else [state, _Code(pickle.BUILD)]


def _tuple(value: tuple[object, ...]) -> list[object]:
    begin, end = _tuple_codes(len(value))
    return [_Code(begin), *value, _Code(end, value if value else None)]


def _list(value: list[object]) -> list[object]:
    return [_Code(pickle.EMPTY_LIST, value, _appended(value))]


def _dict(value: dict[object, object]) -> list[object]:
    return [_Code(pickle.EMPTY_DICT, value, _set_items(value.items()))]


def _ordered_map(value: OrderedMap) -> list[object]:
    filling = [*_set_items(value.items()), *_built(value.state)]
    return _call(value, calls.ORDERED_DICT, (), filling=filling)


def _bytes(value: bytes) -> list[object]:
    if not value:
        return _call(value, Global("__builtin__", "bytes"), ())
    return _call(value, calls.ENCODE, (value.decode("latin-1"), "latin1"))


def _bytearray(value: bytearray) -> list[object]:
    return _call(value, Global("__builtin__", "bytearray"), (bytes(value),) if value else ())


def _set(value: set[object] | frozenset[object]) -> list[object]:
    # Python would write the members in another order on each run.
    members = sorted(value, key=_rank)
    return _call(value, Global("__builtin__", type(value).__name__), (members,))


def _rank(member: object) -> tuple[str, str]:
    if isinstance(member, Opaque):
        return str(member.function), repr(enum_value(member))
    return type(member).__name__, repr(member)


def _size(value: SizeTuple) -> list[object]:
    return _call(value, calls.SIZE, (tuple(value),))


def _opaque(value: Opaque) -> list[object]:
    code = pickle.REDUCE if value.how == "reduce" else pickle.NEWOBJ
    filling = [*_appended(value.items), *_set_items(value.pairs), *_built(value.state)]
    return _call(value, value.function, value.arguments, code, filling)


def _tensor(value: TensorRecord) -> list[object]:
    """A tensor, inside the call that gives it attributes, or makes a parameter of it, or both."""
    arguments = _Arguments(value)
    function = calls.TENSOR_V3 if value.storage.kind == UNTYPED else calls.TENSOR_V2
    if value.is_parameter:
        rest: list[object] = [value.requires_grad, OrderedMap()]
        outer = calls.PARAMETER
        if value.attributes is not None:
            outer = calls.PARAMETER_WITH_ATTRIBUTES
            rest.append(value.attributes)
        data = [function, arguments, _Code(pickle.REDUCE)]
        return [
            outer,
            _Code(pickle.MARK),
            *data,
            *rest,
            _Code(pickle.TUPLE),
            _Code(pickle.REDUCE, value),
        ]
    if value.attributes is not None:
        whole = (function, calls.TENSOR, arguments, value.attributes)
        return _call(value, calls.TENSOR_WITH_ATTRIBUTES, whole)
    return _call(value, function, arguments)


def _by_identity(steps: Callable[[Any], Sequence[object]]) -> Callable[[_Writer, Any], None]:
    """Return how to write values that are shared: a reference, or else these ``steps``."""

    def write(writer: _Writer, value: object) -> None:
        if not writer.refer_to(id(value)):
            writer.next(steps(value))

    return write


def _write_integer(writer: _Writer, value: int) -> None:
    writer.output += _integer(value)


def _write_float(writer: _Writer, value: float) -> None:
    writer.output += pickle.BINFLOAT + struct.pack(">d", value)


def _write_none(writer: _Writer, _: None) -> None:
    writer.output += pickle.NONE


def _write_bool(writer: _Writer, value: bool) -> None:
    writer.output += pickle.NEWTRUE if value else pickle.NEWFALSE


_WRITE: dict[type, Callable[[_Writer, Any], None]] = {
    _Code: _Writer.code,
    _Arguments: lambda writer, step: writer.arguments(step.tensor),
    type(None): _write_none,
    bool: _write_bool,
    int: _write_integer,
    float: _write_float,
    str: _Writer.shared,
    Global: _Writer.shared,
    Storage: _Writer.storage,
    bytes: _by_identity(_bytes),
    bytearray: _by_identity(_bytearray),
    tuple: _by_identity(_tuple),
    list: _by_identity(_list),
    dict: _by_identity(_dict),
    set: _by_identity(_set),
    frozenset: _by_identity(_set),
    OrderedMap: _by_identity(_ordered_map),
    SizeTuple: _by_identity(_size),
    Opaque: _by_identity(_opaque),
    TensorRecord: _by_identity(_tensor),
}
"""How each type of inert value is written, and each step."""
