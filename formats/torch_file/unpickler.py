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
from io import BytesIO
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.calls import (
    CALLS,
    Budget,
    Call,
    KeyCheck,
    checked_set,
    describe,
    refuse,
)
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
from flmgrow.text import Found, Text

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
        self.stream = BytesIO(data)
        self.read = self.stream.read
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.bottom = 0
        """Where the values above the last mark begin."""
        # Never a list: an index of two billion must not ask for two billion entries.
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.known: dict[int, Call] = {}
        """What the call of a name of ``globals`` makes, by its identity, where that is known."""
        self.storages: dict[str, Storage] = {}
        self.storages_by_key = storages_by_key
        self.budget = Budget(len(data))
        self.weight = 0
        self.check_key = KeyCheck()

    def run(self) -> object:
        if self.take(1) != pickle.PROTO or not 2 <= self.take(1)[0] <= 5:
            refuse("not a pickle of protocol 2 to 5")
        read, instructions, number = self.read, _INSTRUCTIONS, int.from_bytes
        left = MAX_INSTRUCTIONS
        while (code := read(1)) != pickle.STOP:
            instruction = instructions.get(code)
            if instruction is None:
                self.refuse_instruction(code)
            width, do = instruction
            if not width:
                do(self)
            elif len(operand := read(width)) == width:
                do(self, number(operand, "little"))
            else:
                self.refuse_end(width - len(operand))
            left -= 1
            if not left:
                refuse(f"a pickle of more than {MAX_INSTRUCTIONS} instructions")
        value = self.pop()
        if self.stack or self.marks or self.left():
            refuse("broken pickle: something is left over at its end")
        return value

    def refuse_instruction(self, code: bytes) -> NoReturn:
        if not code:
            self.refuse_end(1)
        refuse(f"broken pickle: instruction {code!r} is not one torch writes")

    # --- the bytes of the program

    def left(self) -> int:
        """Return how many bytes have not been read."""
        return len(self.data) - self.stream.tell()

    def refuse_end(self, missing: int) -> NoReturn:
        refuse(f"broken pickle: ends {missing} bytes early")

    def take(self, count: int) -> bytes:
        missing = count - self.left()
        if missing > 0:
            self.refuse_end(missing)
        return self.read(count)

    def line(self) -> str:
        begin = self.stream.tell()
        end = self.data.find(b"\n", begin, begin + MAX_NAME_BYTES)
        if end < 0:
            refuse("broken pickle: a name without end")
        text = self.text(end - begin)
        self.take(1)
        return text

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            refuse("broken pickle: a text that is not utf-8")

    def integer(self, count: int) -> int:
        if count > MAX_INTEGER_BYTES:
            refuse(
                Text("an integer of ", Found(count), " bytes"),
                wanted=f"at most {MAX_INTEGER_BYTES}",
            )
        return int.from_bytes(self.take(count), "little", signed=True)

    def frame(self, length: int) -> None:
        """Skip the length of a frame, which serves readers of streams; all data is here."""
        if length > self.left():
            refuse("broken pickle: ends before its frame")

    # --- the stack

    def push(self, value: object) -> None:
        """Put a new value on the stack; it is the machine that makes it, so it takes memory."""
        self.weight += _WEIGHTS.get(type(value), 0)
        if self.weight > MAX_WEIGHT:
            refuse(f"a pickle that takes more than {MAX_WEIGHT >> 20} MiB of memory")
        self.stack.append(value)

    def pop(self) -> object:
        if len(self.stack) <= self.bottom:
            self.refuse_missing()
        return self.stack.pop()

    def top(self) -> object:
        if len(self.stack) <= self.bottom:
            self.refuse_missing()
        return self.stack[-1]

    def pop_many(self, count: int) -> list[object]:
        start = len(self.stack) - count
        if start < self.bottom:
            self.refuse_missing()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def refuse_missing(self) -> NoReturn:
        refuse("broken pickle: a value is missing")

    def mark(self) -> None:
        self.bottom = len(self.stack)
        self.marks.append(self.bottom)

    def drop_mark(self) -> int:
        """Drop the last mark and return where the values above it begin."""
        if not self.marks:
            refuse("broken pickle: a mark is missing")
        start = self.marks.pop()
        self.bottom = self.marks[-1] if self.marks else 0
        return start

    def pop_to_mark(self) -> list[object]:
        start = self.drop_mark()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def remember(self, index: int) -> None:
        self.weight += _WEIGHT_OF_MEMORY
        if len(self.stack) <= self.bottom:
            self.refuse_missing()
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            refuse(f"broken pickle: refers to value {index}, which was not kept")
        self.stack.append(self.memo[index])

    def drop(self) -> None:
        if self.marks and self.bottom == len(self.stack):
            self.drop_mark()
        else:
            self.pop()

    # --- names, calls and storages

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            refuse(f"a name of {describe(module)} and {describe(name)}")
        value = self.globals.get((module, name))
        if value is None:
            value = self.globals[module, name] = Global(module, name)
            if value in CALLS:
                self.known[id(value)] = CALLS[value]
        self.push(value)

    def call(self, how: str) -> None:
        function, arguments = self.pop_many(2)
        if type(function) is not Global or type(arguments) is not tuple:
            refuse(f"broken pickle: calls {describe(function)} with {describe(arguments)}")
        known = self.known.get(id(function))
        if how != "reduce" and function != calls.ORDERED_DICT:
            known = None
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

_Instruction = tuple[int, Callable[..., None]]
"""The bytes of the number that follows it, and what it does, with that number if it has one."""

_CONSTANTS: dict[bytes, _Instruction] = {
    pickle.NONE: (0, lambda m: m.push(None)),
    pickle.NEWTRUE: (0, lambda m: m.push(True)),
    pickle.NEWFALSE: (0, lambda m: m.push(False)),
    pickle.BININT: (0, lambda m: m.push(m.integer(4))),
    pickle.BININT1: (1, _Machine.push),
    pickle.BININT2: (2, _Machine.push),
    pickle.LONG1: (1, lambda m, size: m.push(m.integer(size))),
    pickle.LONG4: (4, lambda m, size: m.push(m.integer(size))),
    pickle.BINFLOAT: (0, lambda m: m.push(struct.unpack(">d", m.take(8))[0])),
    pickle.SHORT_BINUNICODE: (1, lambda m, size: m.push(m.text(size))),
    pickle.BINUNICODE: (4, lambda m, size: m.push(m.text(size))),
    pickle.BINUNICODE8: (8, lambda m, size: m.push(m.text(size))),
    pickle.SHORT_BINBYTES: (1, lambda m, size: m.push(m.take(size))),
    pickle.BINBYTES: (4, lambda m, size: m.push(m.take(size))),
    pickle.BINBYTES8: (8, lambda m, size: m.push(m.take(size))),
    pickle.BYTEARRAY8: (8, lambda m, size: m.push(bytearray(m.take(size)))),
}

_CONTAINERS: dict[bytes, _Instruction] = {
    pickle.MARK: (0, _Machine.mark),
    pickle.EMPTY_TUPLE: (0, lambda m: m.push(())),
    pickle.TUPLE1: (0, lambda m: m.push(tuple(m.pop_many(1)))),
    pickle.TUPLE2: (0, lambda m: m.push(tuple(m.pop_many(2)))),
    pickle.TUPLE3: (0, lambda m: m.push(tuple(m.pop_many(3)))),
    pickle.TUPLE: (0, lambda m: m.push(tuple(m.pop_to_mark()))),
    pickle.EMPTY_LIST: (0, lambda m: m.push([])),
    pickle.APPEND: (0, lambda m: m.append([m.pop()])),
    pickle.APPENDS: (0, lambda m: m.append(m.pop_to_mark())),
    pickle.EMPTY_DICT: (0, lambda m: m.push({})),
    pickle.SETITEM: (0, lambda m: m.set_items(m.pop_many(2))),
    pickle.SETITEMS: (0, lambda m: m.set_items(m.pop_to_mark())),
    pickle.EMPTY_SET: (0, lambda m: m.push(set())),
    pickle.ADDITEMS: (0, lambda m: m.add(m.pop_to_mark())),
    pickle.FROZENSET: (0, lambda m: m.push(frozenset(checked_set(m.pop_to_mark())))),
}

_REFERENCES: dict[bytes, _Instruction] = {
    pickle.BINPUT: (1, _Machine.remember),
    pickle.LONG_BINPUT: (4, _Machine.remember),
    pickle.MEMOIZE: (0, lambda m: m.remember(len(m.memo))),
    pickle.BINGET: (1, _Machine.recall),
    pickle.LONG_BINGET: (4, _Machine.recall),
    pickle.POP: (0, _Machine.drop),
    pickle.POP_MARK: (0, lambda m: m.pop_to_mark().clear()),
    pickle.FRAME: (8, _Machine.frame),
}

_OBJECTS: dict[bytes, _Instruction] = {
    pickle.GLOBAL: (0, lambda m: m.named(m.line(), m.line())),
    pickle.STACK_GLOBAL: (0, lambda m: m.named(*m.pop_many(2))),
    pickle.REDUCE: (0, lambda m: m.call("reduce")),
    pickle.NEWOBJ: (0, lambda m: m.call("newobj")),
    pickle.BUILD: (0, _Machine.build),
    pickle.BINPERSID: (0, _Machine.storage),
}

_INSTRUCTIONS = _CONSTANTS | _CONTAINERS | _REFERENCES | _OBJECTS
"""Everything the machine can do. What it has no instruction for cannot happen."""
