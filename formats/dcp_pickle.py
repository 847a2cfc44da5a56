"""A DCP ``.metadata`` is one large pickle, and torch itself runs whatever such a pickle names.

It can hold hundreds of thousands of small records, for which :mod:`flmgrow.formats.inert_pickle` is
too slow; so Python's own unpickler, which is written in C, builds them here. Two things make that
safe, and bounded by the size of the file:

* Names are not imported: each must be one of the few of ``_KNOWN``, and gets a class of this module
  that only keeps what it is given. Any other name ends the reading.
* The instructions are checked before the first is carried out: only those that torch's metadata
  has, no reference beyond what the file can hold, no length beyond its end. And dicts become lists
  (of key, value, key, value, ...), so that nothing out of the file is ever hashed or compared: to
  hash tuples nested a million deep would end the process.

What can exist while the pickle is read is thus None, booleans, numbers, strings, tuples, lists and
the classes below, and nothing that could be called does more than make one of them.
"""

import gc
import io
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.inert_calls import describe
from flmgrow.formats.inert_values import ITEMSIZES

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_PLANNER = "torch.distributed.checkpoint.planner"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"

BYTES_PER_CONTAINER = 4
"""A file may make at most one list, dict or tuple in so many bytes; torch's make one in 12."""


def _damaged(found: str) -> NoReturn:
    raise BadCheckpointError(found, "the file is damaged or hostile: use another copy")


# --- what may exist


class Record:
    """An object of the file: its attributes come as a list of names and values."""

    __slots__ = ("state",)
    state: object

    def __setstate__(self, state: object) -> None:
        self.state = state


class Metadata(Record):
    """The whole: what is in the checkpoint (state_dict_metadata), and where (storage_data)."""

    __slots__ = ()


class TensorMetadata(Record):
    """A tensor: its properties, its size and its chunks."""

    __slots__ = ()


class BytesMetadata(Record):
    """Something that is no tensor; nothing is said of it."""

    __slots__ = ()


class ChunkMetadata(Record):
    """The offsets and the sizes of a chunk of a tensor."""

    __slots__ = ()


class Properties(Record):
    """What a tensor's elements are: a tuple, whose first member is the dtype."""

    __slots__ = ()


class Index(Record):
    """Names a chunk (fqn, offset) or an object (fqn)."""

    __slots__ = ()


class StorageInfo(Record):
    """Where an item lies: relative_path, offset, length."""

    __slots__ = ()


class Unused(Record):
    """Something the metadata has that reading does not need: enums, paths, plans of the writer."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        pass


class Dtype:
    """The name of a dtype. It cannot be called."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        _damaged("broken pickle: sets the state of a dtype")


class Size:
    """A call of torch.Size: its argument, as it is (what it is must be checked by who uses it)."""

    __slots__ = ()

    def __new__(cls, sizes: object) -> object:  # type: ignore[misc]
        """Return ``sizes``: one object less for each of many thousands."""
        return sizes

    def __setstate__(self, _: object) -> None:
        _damaged("broken pickle: sets the state of a size")


_KNOWN: dict[tuple[str, str], object] = {
    (METADATA, "Metadata"): Metadata,
    (METADATA, "TensorStorageMetadata"): TensorMetadata,
    (METADATA, "BytesStorageMetadata"): BytesMetadata,
    (METADATA, "ChunkStorageMetadata"): ChunkMetadata,
    (METADATA, "TensorProperties"): Properties,
    (METADATA, "MetadataIndex"): Index,
    (FILESYSTEM, "_StorageInfo"): StorageInfo,
    ("torch", "Size"): Size,
    **{("torch", name): Dtype(name) for name in ITEMSIZES},
    **dict.fromkeys(
        [
            (METADATA, "_MEM_FORMAT_ENCODING"),
            (METADATA, "StorageMeta"),
            (FILESYSTEM, "_StoragePrefix"),
            ("torch.distributed.checkpoint._extension", "StreamTransformExtension"),
            ("torch.serialization", "_get_layout"),
            ("torch", "strided"),
            # Megatron keeps the plans of all ranks in the metadata, to plan the next save faster.
            *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType")),
            *((_PLANNER, name) for name in ("TensorWriteData", "BytesIOWriteData")),
            *((_MEGATRON, name) for name in ("MCoreMetadata", "MCoreSavePlan")),
            *(
                (module, name)
                for module in ("pathlib", "pathlib._local")
                for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
            ),
        ],
        Unused,
    ),
}
"""What stands for each name that a DCP metadata can have."""


class _InertUnpickler(pickle.Unpickler):
    """The C unpickler, without its way to import, on instructions that were checked."""

    def find_class(self, module: str, name: str) -> object:
        found = _KNOWN.get((module, name))
        if found is None:
            _damaged(
                f"names {module[:80]}.{name[:80]}, which no DCP metadata has; nothing was run"
            )
        return found

    def persistent_load(self, _: object) -> NoReturn:
        _damaged("broken pickle: refers to something outside the file")


# --- the check of the instructions


class _Grammar:
    """The instructions a metadata of ``size`` bytes may have.

    ``plain`` matches any number of those that need no attention; what follows is looked at.
    """

    _OPERATIONS: ClassVar[bytes] = b"".join(
        [pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_TUPLE]
        + [pickle.TUPLE, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD, pickle.MEMOIZE]
        + [pickle.APPEND, pickle.APPENDS, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3]
        + [pickle.STACK_GLOBAL, pickle.EMPTY_LIST]
    )

    def __init__(self, size: int) -> None:
        # Before a value is kept at some index, each lower index has taken two instructions or more.
        # The index is the size of an array, which a single hostile number must not make enormous.
        high = min(size // 6 >> 16, 0x7F)
        numbers = [rb"\x8a%c.{%d}" % (count, count) for count in range(1, 10)]
        self.plain = re.compile(
            rb"(?:[" + re.escape(self._OPERATIONS) + rb"]|[hKq].|M..|[jJ]....|"
            rb"r..[\x00-\x%02x]\x00|" % high + b"|".join(numbers) + rb")*+",
            re.DOTALL,
        )


def _checked(data: bytearray) -> None:
    """Check every instruction, and turn dicts into lists, in place.

    EMPTY_DICT becomes EMPTY_LIST, SETITEMS becomes APPENDS; SETITEM (one pair) becomes TUPLE2 and
    APPEND, which is a byte longer.
    """
    count = sum(map(data.count, (b"}", b"]", b"\x85", b"\x86", b"\x87")))
    if count > len(data) // BYTES_PER_CONTAINER + 4096:
        _damaged(f"{count} containers in {len(data)} bytes, more than any metadata has")
    if data[:1] != pickle.PROTO or data[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        _damaged("not a pickle of protocol 2 to 5")
    view_size = len(data)
    match_plain = _Grammar(view_size).plain.match
    single_pairs: list[int] = []
    position = 2
    while True:
        found = match_plain(data, position)
        assert found is not None  # it matches nothing, too
        position = found.end()
        if position >= view_size:
            _damaged("truncated: the pickle has no end")
        code = data[position]
        if code == 0x7D:  # EMPTY_DICT
            data[position] = 0x5D
            position += 1
        elif code == 0x75:  # SETITEMS
            data[position] = 0x65
            position += 1
        elif code == 0x8C:  # SHORT_BINUNICODE
            position += 2 + (data[position + 1] if position + 1 < view_size else 0)
        elif code == 0x58:  # BINUNICODE
            if position + 5 > view_size:
                _damaged("truncated: the pickle ends inside a string")
            position += 5 + int(struct.unpack_from("<I", data, position + 1)[0])
        elif code == 0x73:  # SETITEM
            single_pairs.append(position)
            position += 1
        elif code == 0x63:  # GLOBAL
            for _ in range(2):
                end = data.find(b"\n", position, position + 256)
                if end < 0:
                    _damaged("broken pickle: a name without end")
                position = end + 1
        elif code == 0x95:  # FRAME
            position += 9
        elif code == 0x2E:  # STOP
            break
        else:
            _damaged(f"broken pickle: instruction {bytes([code])!r} at byte {position}")
    if position + 1 != view_size:
        _damaged("broken pickle: something is left over at its end")
    for position in reversed(single_pairs):
        data[position : position + 1] = pickle.TUPLE2 + pickle.APPEND


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
