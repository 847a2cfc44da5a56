"""Writing inert values as a pickle that torch can read.

Inert values must go back into a pickle that torch, plain or with ``weights_only``, can read.
:func:`to_pickle` writes what :func:`flmgrow.formats.torch_file.unpickler.unpickle` reads. What was
shared stays shared, what was opaque is written as it was read, and the same data gives the same
bytes.
"""

import pickle
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.values import (
    UNTYPED,
    Global,
    Opaque,
    OrderedMap,
    SizeTuple,
    Storage,
    TensorRecord,
    enum_value,
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
class _Value:
    """A step: write this value."""

    value: object


@dataclass(frozen=True, slots=True)
class _Made:
    """A step: ``value`` now lies on the stack; keep it for later references, then fill it."""

    value: object
    filling: "list[_Step]"


_Step = bytes | _Value | _Made
"""What remains to be written. Bytes are instructions, and go out as they are."""


class _Writer:
    def __init__(self) -> None:
        self.output = bytearray()
        self.storages: dict[Storage, str] = {}
        # Texts and names by value, other objects by identity (and held, so that no new object can
        # get the identity of one that has gone).
        self.kept: dict[object, int] = {}
        self.held: list[object] = []

    def write(self, root: object) -> None:
        self.output += pickle.PROTO + b"\x02"
        todo: list[_Step] = [_Value(root)]
        while todo:
            step = todo.pop()
            if isinstance(step, bytes):
                self.output += step
            elif isinstance(step, _Made):
                todo.extend(reversed(self.keep(step)))
            elif not self.refer_to(step.value):
                todo.extend(reversed(self.steps(step.value)))
        self.output += pickle.STOP

    def refer_to(self, value: object) -> bool:
        """Write a reference to ``value`` if it was written before; return whether it was."""
        index = self.kept.get(_identity(value))
        if index is None:
            return False
        if index < 256:
            self.output += pickle.BINGET + bytes([index])
        else:
            self.output += pickle.LONG_BINGET + struct.pack("<I", index)
        return True

    def keep(self, made: _Made) -> list[_Step]:
        if _identity(made.value) in self.kept:  # it holds itself, and was finished on the way
            self.output += pickle.POP
            self.refer_to(made.value)
            return []
        index = len(self.kept)
        self.kept[_identity(made.value)] = index
        self.held.append(made.value)
        if index < 256:
            self.output += pickle.BINPUT + bytes([index])
        else:
            self.output += pickle.LONG_BINPUT + struct.pack("<I", index)
        return made.filling

    def steps(self, value: object) -> list[_Step]:
        """Return how to write a value that was not written before."""
        if isinstance(value, Storage):
            return self.storage(value)
        write = _STEPS.get(type(value))
        if write is None:
            raise TypeError(f"{type(value).__name__} is not an inert value")
        return write(value)

    def storage(self, value: Storage) -> list[_Step]:
        key = self.storages.setdefault(value, str(len(self.storages)))
        module = "torch.storage" if value.kind == UNTYPED else "torch"
        # Not where it was: torch.load would put it there again, on a machine that has no GPU, too.
        parts = ["storage", Global(module, value.kind), key, "cpu", value.count]
        return [pickle.MARK, *_values(parts), pickle.TUPLE, pickle.BINPERSID]


def _identity(value: object) -> object:
    return value if isinstance(value, str | Global) else id(value)


def _values(values: Iterable[object]) -> list[_Step]:
    return [_Value(value) for value in values]


def _call(
    function: Global, arguments: tuple[object, ...], code: bytes = pickle.REDUCE
) -> list[_Step]:
    return [_Value(function), _Value(arguments), code]


def _int(value: int) -> list[_Step]:
    if 0 <= value < 1 << 8:
        return [pickle.BININT1 + bytes([value])]
    if 0 <= value < 1 << 16:
        return [pickle.BININT2 + struct.pack("<H", value)]
    if -(1 << 31) <= value < 1 << 31:
        return [pickle.BININT + struct.pack("<i", value)]
    data = pickle.encode_long(value)
    if len(data) < 256:
        return [pickle.LONG1 + bytes([len(data)]) + data]
    return [pickle.LONG4 + struct.pack("<i", len(data)) + data]


def _str(value: str) -> list[_Step]:
    data = value.encode("utf-8", "surrogatepass")
    return [pickle.BINUNICODE + struct.pack("<I", len(data)) + data, _Made(value, [])]


def _global(value: Global) -> list[_Step]:
    line = f"{value.module}\n{value.name}\n".encode()
    return [pickle.GLOBAL + line, _Made(value, [])]


def _bytes(value: bytes) -> list[_Step]:
    if not value:
        return [*_call(Global("__builtin__", "bytes"), ()), _Made(value, [])]
    text = value.decode("latin-1")
    return [*_call(calls.ENCODE, (text, "latin1")), _Made(value, [])]


def _bytearray(value: bytearray) -> list[_Step]:
    data = (bytes(value),) if value else ()
    return [*_call(Global("__builtin__", "bytearray"), data), _Made(value, [])]


_SHORT_TUPLES = {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}


def _tuple(value: tuple[object, ...]) -> list[_Step]:
    if not value:
        return [pickle.EMPTY_TUPLE]
    if len(value) in _SHORT_TUPLES:
        return [*_values(value), _SHORT_TUPLES[len(value)], _Made(value, [])]
    return [pickle.MARK, *_values(value), pickle.TUPLE, _Made(value, [])]


def _appended(values: list[object]) -> list[_Step]:
    return [pickle.MARK, *_values(values), pickle.APPENDS] if values else []


def _set_items(pairs: Iterable[tuple[object, object]]) -> list[_Step]:
    flat = [part for pair in pairs for part in pair]
    return [pickle.MARK, *_values(flat), pickle.SETITEMS] if flat else []


def _built(state: object) -> list[_Step]:
    return [] if state is None else [_Value(state), pickle.BUILD]


def _list(value: list[object]) -> list[_Step]:
    return [pickle.EMPTY_LIST, _Made(value, _appended(value))]


def _dict(value: dict[object, object]) -> list[_Step]:
    return [pickle.EMPTY_DICT, _Made(value, _set_items(value.items()))]


def _ordered_map(value: OrderedMap) -> list[_Step]:
    filling = [*_set_items(value.items()), *_built(value.state)]
    return [*_call(calls.ORDERED_DICT, ()), _Made(value, filling)]


def _set(value: set[object] | frozenset[object]) -> list[_Step]:
    # Python would write the members in another order on each run.
    members = sorted(value, key=_rank)
    return [*_call(Global("__builtin__", type(value).__name__), (members,)), _Made(value, [])]


def _rank(member: object) -> tuple[str, str]:
    if isinstance(member, Opaque):
        return str(member.function), repr(enum_value(member))
    return type(member).__name__, repr(member)


def _size(value: SizeTuple) -> list[_Step]:
    return [*_call(calls.SIZE, (tuple(value),)), _Made(value, [])]


def _opaque(value: Opaque) -> list[_Step]:
    code = pickle.REDUCE if value.how == "reduce" else pickle.NEWOBJ
    filling = [*_appended(value.items), *_set_items(value.pairs), *_built(value.state)]
    return [*_call(value.function, value.arguments, code), _Made(value, filling)]


def _tensor(value: TensorRecord) -> list[_Step]:
    """A tensor, inside the call that gives it attributes, or makes a parameter of it, or both."""
    requires_grad = value.requires_grad and not value.is_parameter
    view = (value.storage, value.start, value.shape, value.stride)
    inner: tuple[object, ...] = (*view, requires_grad, OrderedMap())
    function = calls.TENSOR_V2
    if value.storage.kind == UNTYPED:
        function = calls.TENSOR_V3
        inner = (*inner, Global("torch", value.dtype))
    if value.is_parameter:
        steps = _parameter(value, [*_call(function, inner)])
    elif value.attributes is not None:
        outer = (function, calls.TENSOR, inner, value.attributes)
        steps = _call(calls.TENSOR_WITH_ATTRIBUTES, outer)
    else:
        steps = _call(function, inner)
    return [*steps, _Made(value, [])]


def _parameter(value: TensorRecord, data: list[_Step]) -> list[_Step]:
    """The call that makes a parameter of the tensor that the steps ``data`` make."""
    rest: list[object] = [value.requires_grad, OrderedMap()]
    function = calls.PARAMETER
    if value.attributes is not None:
        function = calls.PARAMETER_WITH_ATTRIBUTES
        rest.append(value.attributes)
    return [_Value(function), pickle.MARK, *data, *_values(rest), pickle.TUPLE, pickle.REDUCE]


_STEPS: dict[type, Callable[..., list[_Step]]] = {
    type(None): lambda _: [pickle.NONE],
    bool: lambda value: [pickle.NEWTRUE if value else pickle.NEWFALSE],
    int: _int,
    float: lambda value: [pickle.BINFLOAT + struct.pack(">d", value)],
    str: _str,
    bytes: _bytes,
    bytearray: _bytearray,
    tuple: _tuple,
    list: _list,
    dict: _dict,
    set: _set,
    frozenset: _set,
    Global: _global,
    OrderedMap: _ordered_map,
    SizeTuple: _size,
    Opaque: _opaque,
    TensorRecord: _tensor,
}
"""How each type of inert value is written."""
