"""Reading a pickle as inert values, without calling or importing anything.

A pickle is a program that calls what it names; here it is read as data, and nothing is called.
:func:`unpickle` runs the instructions that torch and Megatron write (protocols 2 to 5) on a machine
that can only build the values of :mod:`flmgrow.formats.torch_file.values`: it has no way to import,
and an instruction that is not in its table is refused. What it builds is bounded by what it read.
:func:`to_pickle`, its inverse, is in :mod:`flmgrow.formats.torch_file.pickler`. Both work without
recursion, however deep the data.
"""

import pickle
import struct
from collections.abc import Callable, Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.calls import CALLS, Budget, KeyCheck, checked_set, describe, refuse
from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.values import (
    Global,
    Opaque,
    OrderedMap,
    Storage,
    StoredBytes,
    TensorRecord,
)
from flmgrow.garbage import no_garbage_collection

__all__ = ["to_pickle", "unpickle"]

MAX_INSTRUCTIONS = 1 << 24
"""Some 35 are needed for a tensor: this is a shard of half a million."""
MAX_WEIGHT = 768 << 20
"""Bytes of memory that the values of one pickle may take: one instruction can make a set."""
MAX_INTEGER_BYTES = 1 << 16
MAX_NAME_BYTES = 1 << 12


def unpickle(data: bytes, where: str, storages_by_key: Mapping[str, StoredBytes]) -> object:
    """Return what the pickle ``data`` describes, as inert values.

    ``where`` names the file and record in messages; ``storages_by_key`` says where the bytes of the
    storages lie that tensors refer to.

    Raises BadCheckpointError if the pickle is damaged, is not of the kind torch writes, or
    describes tensors that do not fit their bytes.
    """
    try:
        with no_garbage_collection():
            return _Machine(data, storages_by_key).run()
    except BadCheckpointError as error:
        raise error.at(where) from None


class _Machine:
    """The pickle machine: instructions push values, and join the values above the last mark."""

    def __init__(self, data: bytes, storages_by_key: Mapping[str, StoredBytes]) -> None:
        self.data = data
        self.position = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        # Never a list: an index of two billion must not ask for two billion entries.
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.storages: dict[str, Storage] = {}
        self.storages_by_key = storages_by_key
        self.budget = Budget(len(data))
        self.weight = 0
        self.check_key = KeyCheck()

    def run(self) -> object:
        if self.take(1) != pickle.PROTO or not 2 <= self.take(1)[0] <= 5:
            refuse("not a pickle of protocol 2 to 5")
        left = MAX_INSTRUCTIONS
        while (code := self.take(1)) != pickle.STOP:
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                refuse(f"broken pickle: instruction {code!r} is not one torch writes")
            instruction(self)
            left -= 1
            if not left:
                refuse(f"a pickle of more than {MAX_INSTRUCTIONS} instructions")
        value = self.pop()
        if self.stack or self.marks or self.position != len(self.data):
            refuse("broken pickle: something is left over at its end")
        return value

    # --- the bytes of the program

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            refuse(f"broken pickle: ends {end - len(self.data)} bytes early")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME_BYTES)
        if end < 0:
            refuse("broken pickle: a name without end")
        text = self.text(end - self.position)
        self.position += 1
        return text

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            refuse("broken pickle: a text that is not utf-8")

    def integer(self, count: int) -> int:
        if count > MAX_INTEGER_BYTES:
            refuse(f"an integer of {count} bytes, wanted at most {MAX_INTEGER_BYTES}")
        return int.from_bytes(self.take(count), "little", signed=True)

    def frame(self) -> None:
        """Skip the length of a frame, which serves readers of streams; all data is here."""
        if self.number(8) > len(self.data) - self.position:
            refuse("broken pickle: ends before its frame")

    # --- the stack

    def push(self, value: object) -> None:
        """Put a new value on the stack; it is the machine that makes it, so it takes memory."""
        self.weight += _WEIGHTS.get(type(value), 0)
        if self.weight > MAX_WEIGHT:
            refuse(f"a pickle that takes more than {MAX_WEIGHT >> 20} MiB of memory")
        self.stack.append(value)

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            refuse("broken pickle: a value is missing")
        return self.stack[-1]

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            refuse("broken pickle: a mark is missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_many(self, count: int) -> list[object]:
        return [self.pop() for _ in range(count)][::-1]

    def remember(self, index: int) -> None:
        self.weight += _WEIGHT_OF_MEMORY
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            refuse(f"broken pickle: refers to value {index}, which was not kept")
        self.stack.append(self.memo[index])

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    # --- names, calls and storages

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            refuse(f"a name of {describe(module)} and {describe(name)}")
        value = self.globals.get((module, name))
        if value is None:
            value = self.globals[module, name] = Global(module, name)
        self.push(value)

    def call(self, how: str) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            refuse(f"broken pickle: calls {describe(function)} with {describe(arguments)}")
        known = CALLS.get(function) if how == "reduce" or function == calls.ORDERED_DICT else None
        value = known(arguments, self.budget) if known is not None else None
        self.push(Opaque(how, function, arguments) if value is None else value)

    def storage(self) -> None:
        self.push(calls.storage_of(self.pop(), self.storages, self.storages_by_key))

    # --- filling what is on the stack

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Opaque | OrderedMap) or target.state is not None:
            refuse(f"broken pickle: sets the state of {describe(target)}")
        target.state = state

    def append(self, values: list[object]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            target.items.extend(values)
        else:
            refuse(f"broken pickle: appends to {describe(target)}")

    def add(self, values: list[object]) -> None:
        target = self.top()
        if not isinstance(target, set):
            refuse(f"broken pickle: adds to {describe(target)}")
        for value in values:
            self.check_key(value, target)
            target.add(value)

    def set_items(self, values: list[object]) -> None:
        target = self.top()
        if len(values) % 2:
            refuse("broken pickle: a key without value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, Opaque):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                self.check_key(key, target)
                if key in target:
                    refuse(f"key {describe(key)} appears twice in a dict")
                target[key] = value
        else:
            refuse(f"broken pickle: sets items of {describe(target)}")


_WEIGHTS: dict[type, int] = {
    dict: 64, list: 56, set: 216, frozenset: 216, tuple: 56, int: 32, float: 24, str: 56,
    bytes: 40, bytearray: 64, OrderedMap: 128, Opaque: 256, TensorRecord: 160,
}  # fmt: skip
"""Bytes that a value of each type takes, beside those that were read for it (CPython 3.11)."""
_WEIGHT_OF_MEMORY = 100

_Instruction = Callable[[_Machine], None]

_CONSTANTS: dict[bytes, _Instruction] = {
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.integer(4)),
    pickle.BININT1: lambda m: m.push(m.number(1)),
    pickle.BININT2: lambda m: m.push(m.number(2)),
    pickle.LONG1: lambda m: m.push(m.integer(m.number(1))),
    pickle.LONG4: lambda m: m.push(m.integer(m.number(4))),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number(1))),
    pickle.BINUNICODE: lambda m: m.push(m.text(m.number(4))),
    pickle.BINUNICODE8: lambda m: m.push(m.text(m.number(8))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number(1))),
    pickle.BINBYTES: lambda m: m.push(m.take(m.number(4))),
    pickle.BINBYTES8: lambda m: m.push(m.take(m.number(8))),
    pickle.BYTEARRAY8: lambda m: m.push(bytearray(m.take(m.number(8)))),
}

_CONTAINERS: dict[bytes, _Instruction] = {
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.pop_many(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.pop_many(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.pop_many(3))),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.pop_many(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.ADDITEMS: lambda m: m.add(m.pop_to_mark()),
    pickle.FROZENSET: lambda m: m.push(frozenset(checked_set(m.pop_to_mark()))),
}

_REFERENCES: dict[bytes, _Instruction] = {
    pickle.BINPUT: lambda m: m.remember(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number(4)),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: lambda m: m.recall(m.number(1)),
    pickle.LONG_BINGET: lambda m: m.recall(m.number(4)),
    pickle.POP: lambda m: m.drop(),
    pickle.POP_MARK: lambda m: m.pop_to_mark().clear(),
    pickle.FRAME: lambda m: m.frame(),
}

_OBJECTS: dict[bytes, _Instruction] = {
    pickle.GLOBAL: lambda m: m.named(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.named(*m.pop_many(2)),
    pickle.REDUCE: lambda m: m.call("reduce"),
    pickle.NEWOBJ: lambda m: m.call("newobj"),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.storage(),
}

_INSTRUCTIONS = _CONSTANTS | _CONTAINERS | _REFERENCES | _OBJECTS
"""Everything the machine can do. What it has no instruction for cannot happen."""
