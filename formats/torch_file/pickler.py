"""Writing inert values as a pickle that torch can read.

Inert values must go back into a pickle that torch, plain or with ``weights_only``, can read.
:func:`to_pickle` writes what :func:`flmgrow.formats.torch_file.unpickler.unpickle` reads. What was
shared stays shared, what was opaque is written as it was read, and the same data gives the same
bytes. A plan needs the size of every file, and nearly all of a pickle is plain tensors: these are
written in one go, and only what may hold anything waits in a list of what is still to be written.
"""

import pickle
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.pickle_steps import (
    InstructionStep,
    TensorArguments,
    bytearray_steps,
    bytes_steps,
    dict_steps,
    list_steps,
    opaque_steps,
    ordered_map_steps,
    set_steps,
    size_steps,
    tensor_steps,
    tuple_codes,
    tuple_steps,
)
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

    Raises:
        TypeError: If ``obj`` holds something that is not an inert value.
    """
    writer = _Writer()
    writer.write(obj)
    return bytes(writer.output), list(writer.storages)


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

    def code(self, step: InstructionStep) -> None:
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
        begin, end = tuple_codes(len(values))
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
    InstructionStep: _Writer.code,
    TensorArguments: lambda writer, step: writer.arguments(step.tensor),
    type(None): _write_none,
    bool: _write_bool,
    int: _write_integer,
    float: _write_float,
    str: _Writer.shared,
    Global: _Writer.shared,
    Storage: _Writer.storage,
    bytes: _by_identity(bytes_steps),
    bytearray: _by_identity(bytearray_steps),
    tuple: _by_identity(tuple_steps),
    list: _by_identity(list_steps),
    dict: _by_identity(dict_steps),
    set: _by_identity(set_steps),
    frozenset: _by_identity(set_steps),
    OrderedMap: _by_identity(ordered_map_steps),
    SizeTuple: _by_identity(size_steps),
    Opaque: _by_identity(opaque_steps),
    TensorRecord: _by_identity(tensor_steps),
}
"""How each type of inert value is written, and each step."""
