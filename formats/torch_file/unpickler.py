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
from collections.abc import Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.bounds import checked_set
from flmgrow.formats.torch_file.machine import Instruction, Machine
from flmgrow.formats.torch_file.values import StoredBytes
from flmgrow.garbage import no_garbage_collection


def unpickle(data: bytes, where: str, storages_by_key: Mapping[str, StoredBytes]) -> object:
    """Return what the pickle ``data`` describes, as inert values.

    ``where`` names the file and record in messages; ``storages_by_key`` says where the bytes of the
    storages lie that tensors refer to.

    Raises:
        BadCheckpointError: If the pickle is damaged, is not of the kind torch writes, or describes
            tensors that do not fit their bytes.
    """
    try:
        with no_garbage_collection():
            return Machine(data, storages_by_key).run(_INSTRUCTIONS)
    except BadCheckpointError as error:
        raise error.at(where) from None


_CONSTANTS: dict[bytes, Instruction] = {
    pickle.NONE: (0, lambda m: m.push(None)),
    pickle.NEWTRUE: (0, lambda m: m.push(True)),
    pickle.NEWFALSE: (0, lambda m: m.push(False)),
    pickle.BININT: (0, lambda m: m.push(m.integer(4))),
    pickle.BININT1: (1, Machine.push),
    pickle.BININT2: (2, Machine.push),
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

_CONTAINERS: dict[bytes, Instruction] = {
    pickle.MARK: (0, Machine.mark),
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

_REFERENCES: dict[bytes, Instruction] = {
    pickle.BINPUT: (1, Machine.remember),
    pickle.LONG_BINPUT: (4, Machine.remember),
    pickle.MEMOIZE: (0, lambda m: m.remember(len(m.memo))),
    pickle.BINGET: (1, Machine.recall),
    pickle.LONG_BINGET: (4, Machine.recall),
    pickle.POP: (0, Machine.drop),
    pickle.POP_MARK: (0, lambda m: m.pop_to_mark().clear()),
    pickle.FRAME: (8, Machine.frame),
}

_OBJECTS: dict[bytes, Instruction] = {
    pickle.GLOBAL: (0, lambda m: m.named(m.line(), m.line())),
    pickle.STACK_GLOBAL: (0, lambda m: m.named(*m.pop_many(2))),
    pickle.REDUCE: (0, lambda m: m.call("reduce")),
    pickle.NEWOBJ: (0, lambda m: m.call("newobj")),
    pickle.BUILD: (0, Machine.build),
    pickle.BINPERSID: (0, Machine.storage),
}

_INSTRUCTIONS = _CONSTANTS | _CONTAINERS | _REFERENCES | _OBJECTS
"""Everything the machine can do. What it has no instruction for cannot happen."""
