"""Inert stand-ins for the classes in a DCP folder's metadata.

Torch's metadata is made of a few classes that exist only to hold what they are told. Here they are
again as classes that hold it and do nothing else, so that a metadata can be read without torch:
:mod:`flmgrow.formats.dcp.unpickler` builds these in their place. ``KNOWN`` lists every name that a
metadata can have; :func:`attributes` and :func:`pairs` say what was in them.
"""

import itertools
from collections.abc import Iterable, Iterator

from flmgrow.formats.torch_file.bounds import describe, refuse
from flmgrow.formats.torch_file.values import ITEMSIZES
from flmgrow.text import Found, Text

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_PLANNER = "torch.distributed.checkpoint.planner"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"


class DcpRecord:
    """An object of the file: its attributes come as a list of names and values."""

    __slots__ = ("state",)
    state: object

    def __setstate__(self, state: object) -> None:
        self.state = state


class Metadata(DcpRecord):
    """The whole: what is in the checkpoint (state_dict_metadata), and where (storage_data).

    Megatron-core 0.15 has a class of its own for it, with notes on tensors (mcore_data) besides.
    """

    __slots__ = ()


class TensorMetadata(DcpRecord):
    """A tensor: its properties, its size and its chunks."""

    __slots__ = ()


class BytesMetadata(DcpRecord):
    """Something that is no tensor; nothing is said of it."""

    __slots__ = ()


class ChunkMetadata(DcpRecord):
    """The offsets and the sizes of a chunk of a tensor."""

    __slots__ = ()


class Properties(DcpRecord):
    """What a tensor's elements are: a tuple, whose first member is the dtype."""

    __slots__ = ()


class Index(DcpRecord):
    """Names a chunk (fqn, offset) or an object (fqn)."""

    __slots__ = ()


class StorageInfo(DcpRecord):
    """Where an item lies: relative_path, offset, length."""

    __slots__ = ()


class Unused(DcpRecord):
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
        refuse("broken pickle: sets the state of a dtype")


class Size:
    """A call of torch.Size: its argument, as it is (what it is must be checked by who uses it)."""

    __slots__ = ()

    def __new__(cls, sizes: object) -> object:  # type: ignore[misc]
        """Return ``sizes``: one object less for each of many thousands."""
        return sizes

    def __setstate__(self, _: object) -> None:
        refuse("broken pickle: sets the state of a size")


KNOWN: dict[tuple[str, str], object] = {
    (METADATA, "Metadata"): Metadata,
    (_MEGATRON, "MCoreMetadata"): Metadata,
    (METADATA, "TensorStorageMetadata"): TensorMetadata,
    (METADATA, "BytesStorageMetadata"): BytesMetadata,
    (METADATA, "ChunkStorageMetadata"): ChunkMetadata,
    (METADATA, "TensorProperties"): Properties,
    (METADATA, "MetadataIndex"): Index,
    (FILESYSTEM, "_StorageInfo"): StorageInfo,
    ("torch", "Size"): Size,
    **{("torch", name): Dtype(name) for name in ITEMSIZES},
    **{
        (module, name): type(name, (Unused,), {"__slots__": ()})
        for module, name in [
            (METADATA, "_MEM_FORMAT_ENCODING"),
            (METADATA, "StorageMeta"),
            (FILESYSTEM, "_StoragePrefix"),
            ("torch.distributed.checkpoint._extension", "StreamTransformExtension"),
            ("torch.serialization", "_get_layout"),
            ("torch", "strided"),
            # Megatron keeps the plans of all ranks in the metadata, to plan the next save faster.
            *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType")),
            *((_PLANNER, name) for name in ("TensorWriteData", "BytesIOWriteData")),
            (_MEGATRON, "MCoreSavePlan"),
            *(
                (module, name)
                for module in ("pathlib", "pathlib._local")
                for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
            ),
        ]
    },
}
"""What stands for each name that a DCP metadata can have."""


def pairs(value: object, what: str) -> Iterable[tuple[object, object]]:
    """Return the keys and values of what was a dict in the file; ``what`` it is, for messages.

    Raises:
        BadCheckpointError: If it was no dict.
    """
    if type(value) is not list:
        refuse(Text(f"{what}: found ", Found(describe(value))), wanted="a dict")
    if tuple in set(map(type, value[::2])):  # pairs that were set one at a time are tuples
        value = list(_flat(value))
    if len(value) % 2:
        refuse(Text(f"{what}: found ", Found("a key without value")), wanted="a dict")
    return zip(value[::2], value[1::2], strict=True)


def _flat(value: list[object]) -> Iterator[object]:
    items = iter(value)
    for key in items:
        if type(key) is tuple:
            yield from key
        else:
            yield key
            yield from itertools.islice(items, 1)


def attributes(value: object, kind: type[DcpRecord], what: str) -> dict[str, object]:
    """Return the attributes of ``value``, which must be a ``kind``; ``what`` it is, for messages.

    Raises:
        BadCheckpointError: If it is something else, or broken.
    """
    if type(value) is not kind:
        refuse(Text(f"{what}: found ", Found(describe(value))), wanted=kind.__name__)
    state = getattr(value, "state", None)
    if type(state) is not list or len(state) % 2 or set(map(type, state[::2])) != {str}:
        state = [part for pair in pairs(state, what) for part in pair]
        if set(map(type, state[::2])) != {str}:  # before anything is hashed
            refuse(Text(f"{what}: found ", Found("attributes without a name")), wanted="names")
    found = dict(zip(state[::2], state[1::2], strict=True))
    if len(found) * 2 != len(state):
        refuse(Text(f"{what}: found ", Found("an attribute twice")), wanted="each once")
    return found
