"""The machine that a pickle runs on here, which can build inert values and nothing else.

A pickle is a program. Its instructions push values and join those above the last mark; which of
them there are is said in :mod:`flmgrow.formats.torch_file.unpickler`. The machine has no way to
import or to call, works without recursion, and what it builds is bounded by what it read.
"""

import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import NoReturn

from flmgrow.formats.torch_file import calls
from flmgrow.formats.torch_file.bounds import Budget, KeyCheck, describe, refuse
from flmgrow.formats.torch_file.calls import CALLS, Call
from flmgrow.formats.torch_file.values import (
    Global,
    Opaque,
    OrderedMap,
    Storage,
    StoredBytes,
    TensorRecord,
)
from flmgrow.text import Found, Text

MAX_INSTRUCTIONS = 1 << 24
"""Some 35 are needed for a tensor: this is a shard of half a million."""
MAX_WEIGHT = 768 << 20
"""Bytes of memory that the values of one pickle may take: one instruction can make a set."""
MAX_INTEGER_BYTES = 1 << 16
MAX_NAME_BYTES = 1 << 12

Instruction = tuple[int, Callable[..., None]]
"""The bytes of the number that follows it, and what it does, with that number if it has one."""


class Machine:
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

    def run(self, instructions: Mapping[bytes, Instruction]) -> object:
        """Return what the program makes. What is none of ``instructions`` is refused."""
        if self.take(1) != pickle.PROTO or not 2 <= self.take(1)[0] <= 5:
            refuse("not a pickle of protocol 2 to 5")
        read, number = self.read, int.from_bytes
        left = MAX_INSTRUCTIONS
        while (code := read(1)) != pickle.STOP:
            instruction = instructions.get(code)
            if instruction is None:
                self._refuse_instruction(code)
            width, do = instruction
            if not width:
                do(self)
            elif len(operand := read(width)) == width:
                do(self, number(operand, "little"))
            else:
                self._refuse_end(width - len(operand))
            left -= 1
            if not left:
                refuse(f"a pickle of more than {MAX_INSTRUCTIONS} instructions")
        value = self.pop()
        if self.stack or self.marks or self.left():
            refuse("broken pickle: something is left over at its end")
        return value

    def _refuse_instruction(self, code: bytes) -> NoReturn:
        if not code:
            self._refuse_end(1)
        refuse(f"broken pickle: instruction {code!r} is not one torch writes")

    # --- the bytes of the program

    def left(self) -> int:
        """Return how many bytes have not been read."""
        return len(self.data) - self.stream.tell()

    def _refuse_end(self, missing: int) -> NoReturn:
        refuse(f"broken pickle: ends {missing} bytes early")

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes of the program."""
        missing = count - self.left()
        if missing > 0:
            self._refuse_end(missing)
        return self.read(count)

    def line(self) -> str:
        """Return the rest of a line, which holds a name."""
        begin = self.stream.tell()
        end = self.data.find(b"\n", begin, begin + MAX_NAME_BYTES)
        if end < 0:
            refuse("broken pickle: a name without end")
        text = self.text(end - begin)
        self.take(1)
        return text

    def text(self, count: int) -> str:
        """Return a text of so many bytes."""
        try:
            return self.take(count).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            refuse("broken pickle: a text that is not utf-8")

    def integer(self, count: int) -> int:
        """Return a signed integer of so many bytes."""
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
        """Take the value on top of the stack, above the last mark."""
        if len(self.stack) <= self.bottom:
            self._refuse_missing()
        return self.stack.pop()

    def top(self) -> object:
        """Return the value on top of the stack, above the last mark."""
        if len(self.stack) <= self.bottom:
            self._refuse_missing()
        return self.stack[-1]

    def pop_many(self, count: int) -> list[object]:
        """Take the last ``count`` values, which must lie above the last mark."""
        start = len(self.stack) - count
        if start < self.bottom:
            self._refuse_missing()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _refuse_missing(self) -> NoReturn:
        refuse("broken pickle: a value is missing")

    def mark(self) -> None:
        """Set a mark above all values."""
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
        """Take all values above the last mark, and the mark."""
        start = self.drop_mark()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def remember(self, index: int) -> None:
        """Keep the value on top as number ``index``."""
        self.weight += _WEIGHT_OF_MEMORY
        if len(self.stack) <= self.bottom:
            self._refuse_missing()
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push the value that was kept as number ``index``."""
        if index not in self.memo:
            refuse(f"broken pickle: refers to value {index}, which was not kept")
        self.stack.append(self.memo[index])

    def drop(self) -> None:
        """Drop the last mark if nothing lies above it, else the value on top."""
        if self.marks and self.bottom == len(self.stack):
            self.drop_mark()
        else:
            self.pop()

    # --- names, calls and storages

    def named(self, module: object, name: object) -> None:
        """Push a name, which stands for what is never imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            refuse(f"a name of {describe(module)} and {describe(name)}")
        value = self.globals.get((module, name))
        if value is None:
            value = self.globals[module, name] = Global(module, name)
            if value in CALLS:
                self.known[id(value)] = CALLS[value]
        self.push(value)

    def call(self, how: str) -> None:
        """Push what a call makes: inert data where it is known, else the call itself, opaque."""
        function, arguments = self.pop_many(2)
        if type(function) is not Global or type(arguments) is not tuple:
            refuse(f"broken pickle: calls {describe(function)} with {describe(arguments)}")
        known = self.known.get(id(function))
        if how != "reduce" and function != calls.ORDERED_DICT:
            known = None
        value = known(arguments, self.budget) if known is not None else None
        self.push(Opaque(how, function, arguments) if value is None else value)

    def storage(self) -> None:
        """Push the storage that a persistent id names."""
        self.push(calls.storage_of(self.pop(), self.storages, self.storages_by_key))

    # --- filling what is on the stack

    def build(self) -> None:
        """Set the state of the value on top."""
        state, target = self.pop(), self.top()
        if not isinstance(target, Opaque | OrderedMap) or target.state is not None:
            refuse(f"broken pickle: sets the state of {describe(target)}")
        target.state = state

    def append(self, values: list[object]) -> None:
        """Append values to the list on top."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            target.items.extend(values)
        else:
            refuse(f"broken pickle: appends to {describe(target)}")

    def add(self, values: list[object]) -> None:
        """Add members to the set on top."""
        target = self.top()
        if not isinstance(target, set):
            refuse(f"broken pickle: adds to {describe(target)}")
        for value in values:
            self.check_key(value, target)
            target.add(value)

    def set_items(self, values: list[object]) -> None:
        """Set keys and values, which alternate, of the dict on top."""
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
