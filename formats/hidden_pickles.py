"""A pickle may hide in bytes, for whoever unpickles those next.

Transformer Engine keeps each layer's ``_extra_state`` so: pickled, or saved by ``torch.save``, into
bytes, a BytesIO or a tensor of bytes, and loads it again with its layer (2.x and older). Stock
torch does not look into them, a trainer does. So what may be a pickle is read here, as data.
"""

import pickletools
from collections.abc import Iterator

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.files import MemoryFile
from flmgrow.formats.inert_pickle import unpickle
from flmgrow.formats.inert_values import Global, Opaque, TensorRecord
from flmgrow.formats.torch_zip import TorchFile, source_chunks
from flmgrow.formats.trusted_names import members_of, refuse_programs

MOST = 4 << 20
"""Bytes of one state: of the widest layer there is, it has some ten thousand."""

_NAMING = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
_BYTES_IO = {Global("_io", "BytesIO"), Global("io", "BytesIO")}


def refuse_hidden_programs(state: object, where: str) -> None:
    """Raise BadCheckpointError if bytes in ``state``, found at ``where``, hold a program."""
    todo, seen = [state], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, bytes | bytearray):
            todo.extend(_loaded(bytes(value), where))
        elif isinstance(value, TensorRecord):
            if value.dtype in ("uint8", "int8"):
                todo.extend(_loaded(_bytes_of(value, where), where))
        elif id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, Opaque) or value.function in _BYTES_IO:
                todo.extend(members_of(value))


def _bytes_of(record: TensorRecord, where: str) -> bytes:
    if record.storage.nbytes > MOST:
        raise BadCheckpointError(
            f"{where}: has {record.storage.nbytes} bytes, wanted at most {MOST}",
            "it is no state of a layer: find out what put it there",
        )
    data = b"".join(bytes(piece) for piece in source_chunks(record.storage))
    return data[record.offset : record.offset + record.nbytes]


def _loaded(data: bytes, where: str) -> Iterator[object]:
    """Yield what whoever loads ``data`` would get, if it is a pickle or a file of ``torch.save``.

    Raises BadCheckpointError if that would run something, or cannot be told.
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
    while data:
        names, length = False, 0
        try:
            for code, _, position in pickletools.genops(data):
                names |= code.name in _NAMING
                length = (position or 0) + 1
        except (ValueError, OverflowError, IndexError):
            length = 0
        if names:
            yield data[:length] if length else data
        if not length:
            return
        data = data[length:]
