"""Finding pickles that hide in the bytes of a value.

A pickle may hide in bytes, for whoever unpickles those next. Transformer Engine keeps each layer's
``_extra_state`` so: pickled, or saved by ``torch.save``, into bytes, a BytesIO or a tensor, and
loads it again with its layer (2.x and older; of a tensor of any dtype and strides it takes
``numpy().tobytes()``). Stock torch does not look into them, a trainer does. So what may be a pickle
is read here, as data.
"""

import pickletools
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
from numpy.lib.stride_tricks import as_strided

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.file import TorchFile, source_chunks
from flmgrow.formats.torch_file.trusted_names import members_of, refuse_programs
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.formats.torch_file.values import Global, Opaque, TensorRecord
from flmgrow.storage.files import MemoryFile
from flmgrow.text import Found, Text

MOST = 4 << 20
"""Bytes of one state: of the widest layer there is, it has some ten thousand."""

_LAYERS = 8
"""So many times the bytes of the largest state are looked at: one pickle may lie in another."""

_BY_CODE = {code.code: code for code in pickletools.opcodes}
_NAMING = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
_LINES = {"GLOBAL": 2, "INST": 2}
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Bytes of the number before an argument that says how long it is."""

_BYTES_IO = {Global("_io", "BytesIO"), Global("io", "BytesIO")}
_MAKES_TENSORS = ("torch._utils", "torch._tensor")


def refuse_hidden_programs(state: object, where: str) -> None:
    """Raise BadCheckpointError if bytes in ``state``, found at ``where``, hold a program, or a
    tensor in it is of a kind whose bytes cannot be told.
    """
    todo = [state]
    seen: dict[int, object] = {}  # and held, so that no new object gets the identity of one gone
    left = _LAYERS * MOST
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, TensorRecord):
            value = _bytes_of(value, where)
        if isinstance(value, bytes | bytearray):
            _check_size(len(value), where)
            left -= len(value)
            if left < 0:
                _refuse(f"{where}: has bytes in bytes in bytes, more than {_LAYERS * MOST} in all")
            todo.extend(_loaded(bytes(value), where))
        elif not isinstance(value, Opaque):
            todo.extend(members_of(value))
        elif value.function in _BYTES_IO:
            todo.extend([*members_of(value), *_from_position(value)])
        elif value.function.module in _MAKES_TENSORS:
            _refuse(
                Text(f"{where}: has a tensor made by ", Found(value.function)), wanted="a plain one"
            )


def _refuse(what: str, wanted: object = "") -> NoReturn:
    hint = "it is no state of a layer: find out what put it there"
    raise BadCheckpointError(what, hint, wanted=wanted)


def _check_size(count: int, where: str) -> None:
    if count > MOST:
        _refuse(Text(f"{where}: has ", Found(count), " bytes"), wanted=f"at most {MOST}")


def _bytes_of(record: TensorRecord, where: str) -> bytes:
    """Return the elements of a tensor in the order of its axes."""
    _check_size(max(record.storage.nbytes, record.nbytes), where)
    data = b"".join(bytes(piece) for piece in source_chunks(record.storage))[record.offset :]
    if not record.count:
        return b""
    size = record.itemsize
    elements = np.frombuffer(data, f"V{size}", len(data) // size)
    strides = tuple(step * size for step in record.stride)
    return as_strided(elements, record.shape, strides).tobytes()


def _from_position(file: Opaque) -> Iterator[bytes]:
    """Yield what a BytesIO has from its position on, where it would be read from."""
    match file.state:
        case (bytes(data), int(position), *_) if 0 < position < len(data):
            yield data[position:]


def _loaded(data: bytes, where: str) -> Iterator[object]:
    """Yield what whoever loads ``data`` would get, if it is a pickle or a file of ``torch.save``.

    Raises:
        BadCheckpointError: If that would run something, or cannot be told.
    """
    if data[:4] == b"PK\3\4":
        with TorchFile(MemoryFile(data, where)) as file:
            refuse_programs(file.root, where)
            yield file.root
        return
    for program in _programs(data):
        root = unpickle(program, where, {})
        refuse_programs(root, where)
        yield root


def _programs(data: bytes) -> Iterator[bytes]:
    """Yield each pickle at the beginning of ``data`` that names something.

    One after the other, as torch wrote them before 1.6. Other bytes do nothing when they are
    unpickled, but fail.
    """
    begin = 0
    while begin < len(data):
        names, end = False, begin
        for name, after in _instructions(data, begin):
            names |= name in _NAMING
            end = after
            if name == "STOP":
                break
        else:
            if names:  # cut off, perhaps behind a call
                yield data[begin:]
            return
        if names:
            yield data[begin:end]
        begin = end


def _instructions(data: bytes, position: int) -> Iterator[tuple[str, int]]:
    """Yield the name and the end of each instruction from ``position`` on, as far as they are any.

    Arguments are stepped over, not read: ``pickletools.genops`` gives up at numbers and texts that
    the unpickler accepts, and what comes after them would not be seen.
    """
    while position < len(data):
        code = _BY_CODE.get(chr(data[position]))
        if code is None:
            return
        position += 1
        if code.arg is None:
            pass
        elif code.arg.n == pickletools.UP_TO_NEWLINE:
            for _ in range(_LINES.get(code.name, 1)):
                position = data.find(b"\n", position) + 1
                if not position:
                    return
        elif code.arg.n in _COUNTED:
            width = _COUNTED[code.arg.n]
            position += width + int.from_bytes(data[position : position + width], "little")
        else:
            position += code.arg.n
        if position > len(data):
            return
        yield code.name, position
