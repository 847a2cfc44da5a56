"""Reading a DCP folder's ``.metadata``: which file holds which chunk of which tensor.

What lies where in a ``torch.distributed.checkpoint`` (DCP) folder is said by one file in it. Such a
folder (Megatron calls its kind ``torch_dist``) holds ``__RANK_WRITER.distcp`` files, each many
items one after the other, and ``.metadata``, written last, which lists every tensor with its
chunks, and for each chunk the file and the bytes. torch believes it: it leaves holes between chunks
uninitialised, lets the last of two overlapping chunks win and follows a name out of the folder.
:func:`read_metadata` checks all that, before a byte of any item is read, and imports and runs
nothing. What the tensors mean is none of its business.
"""

import errno
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp import records as raw
from flmgrow.formats.dcp.tiling import tiling_fault
from flmgrow.formats.dcp.unpickler import load
from flmgrow.formats.torch_file.bounds import KeyCheck, describe, refuse
from flmgrow.formats.torch_file.values import MAX_BYTES, MAX_DIMENSIONS
from flmgrow.garbage import no_garbage_collection
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

METADATA_FILE = ".metadata"
MAX_METADATA_BYTES = 1 << 29
"""Two million chunks."""


@dataclass(frozen=True, slots=True)
class DcpChunk:
    """A box of a tensor, and where it lies: ``length`` bytes at ``offset`` of ``file``.

    ``offsets`` and ``sizes`` count elements, one number per dimension. The bytes are a whole file
    of ``torch.save``.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A tensor, in chunks that cover it exactly once. (Chunks without elements are left out.)"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[DcpChunk, ...]


@dataclass(frozen=True, slots=True)
class DcpObject:
    """Something that is no tensor, as a whole file of ``torch.save``: see :class:`DcpChunk`."""

    name: str
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpMetadata:
    """What a folder holds, by name, in the order of the file."""

    tensors: Mapping[str, DcpTensor]
    objects: Mapping[str, DcpObject]


def read_metadata(folder: Path) -> DcpMetadata:
    """Return what the DCP folder holds. The items themselves are not looked at.

    The format is that of torch's ``FileSystemWriter`` (``torch/distributed/checkpoint``).

    Raises:
        BadCheckpointError: If the folder is no finished checkpoint, if ``.metadata`` is damaged,
            hostile or contradicts itself, or if files it lists are missing, too short or outside
            the folder.
        StorageError: If the file system failed.
    """
    path = folder / METADATA_FILE
    if os.path.lexists(path.with_name(f"{path.name}.tmp")):
        raise BadCheckpointError(
            Text("found ", Found(f"{METADATA_FILE}.tmp"), " beside it: saving was interrupted"),
            "use the checkpoint before this one, or save it again",
            where=path,
            wanted="a finished checkpoint",
        )
    if not os.path.lexists(path):
        raise BadCheckpointError(
            "does not exist",
            "check that the path is right and the checkpoint complete",
            where=path,
            wanted="a finished checkpoint, into which it is written last",
        )
    with ReadOnlyFile(path) as file:
        if not 0 < file.size <= MAX_METADATA_BYTES:
            raise BadCheckpointError(
                Text("found ", Found(file.size), " bytes"),
                "copy the file again from where it was complete",
                where=path,
                wanted=f"1 to {MAX_METADATA_BYTES}",
            )
        data = bytearray(file.size)
        file.read_into(0, memoryview(data))
    try:
        with no_garbage_collection():
            return _understand(load(data), folder)
    except BadCheckpointError as error:
        raise error.at(path) from None


def is_inside(name: str) -> bool:
    """Return whether a name found in a file can only be that of a file in the same folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


class _Place(NamedTuple):
    """Where an item lies."""

    file: str
    offset: int
    length: int


_Key = tuple[str, tuple[int, ...] | None]
"""The name of an item, and of a chunk its offsets."""


def _understand(root: raw.Metadata, folder: Path) -> DcpMetadata:
    parts = raw.attributes(root, raw.Metadata, "metadata")
    places = _places(parts.get("storage_data"))
    sizes = _file_sizes({place.file for place in places.values()}, folder)

    def locate(key: _Key) -> _Place:
        place = places.get(key)
        if place is None:
            refuse(
                Text(f"{_text(key)}: found ", Found("no entry that says where it lies")),
                wanted="one",
            )
        if place.offset + place.length > sizes[place.file]:
            refuse(
                f"{_text(key)}: found at bytes {place.offset} to {place.offset + place.length} of "
                f"{place.file}, which has {sizes[place.file]}: truncated or damaged"
            )
        return place

    tensors: dict[str, DcpTensor] = {}
    objects: dict[str, DcpObject] = {}
    for name, entry in raw.pairs(parts.get("state_dict_metadata"), "state_dict_metadata"):
        if type(name) is not str or name in tensors or name in objects:
            refuse(f"{describe(name)}: found it twice, or not named by a string")
        if type(entry) is raw.TensorMetadata:
            tensors[name] = _tensor(name, entry, locate)
        elif type(entry) is raw.BytesMetadata:
            objects[name] = DcpObject(name, *locate((name, None)))
        else:
            refuse(Text(f"{name}: found ", Found(describe(entry))), wanted="a tensor or bytes")
    return DcpMetadata(tensors, objects)


# --- where items lie


def _places(value: object) -> dict[_Key, _Place]:
    places: dict[_Key, _Place] = {}
    check = KeyCheck()
    for index, info in raw.pairs(value, "storage_data"):
        key = _key(index)
        check(key, places)
        name = key[0]
        if key in places:
            refuse(Text(f"{_text(key)}: found ", Found("in two places")), wanted="one")
        places[key] = _place(name, info)
    return places


def _key(index: object) -> _Key:
    parts = raw.attributes(index, raw.Index, "storage_data")
    name, offsets = parts.get("fqn"), parts.get("offset")
    if type(name) is not str:
        refuse(Text("storage_data: found ", Found(describe(name)), " as a name"), wanted="a string")
    return name, None if offsets is None else _numbers(offsets, name, "offset")


def _place(name: str, info: object) -> _Place:
    parts = raw.attributes(info, raw.StorageInfo, name)
    file, offset, length = parts.get("relative_path"), parts.get("offset"), parts.get("length")
    if type(file) is not str:
        refuse(Text(f"{name}: found ", Found(describe(file)), " as its file"), wanted="a name")
    if parts.get("transform_descriptors"):
        refuse(
            Text(f"{name}: found ", Found("transformed (compressed) data")),
            wanted="plain: it is not supported",
        )
    return _Place(file, _number(offset, name, "offset"), _number(length, name, "length"))


def _file_sizes(names: set[str], folder: Path) -> dict[str, int]:
    """Return the bytes of each file, all of which must be there, in the folder itself."""
    sizes: dict[str, int] = {}
    missing: list[str] = []
    for name in sorted(names):
        if not is_inside(name):
            refuse(
                Text(f"{describe(name)}: found ", Found("a file outside the checkpoint")),
                wanted="one inside",
            )
        path = folder / name
        # os.path, as Path's own raise for an impossible name; a link to nothing is missing, too.
        if not os.path.exists(path) and not _loops(path):  # noqa: PTH110
            missing.append(name)
            continue
        with ReadOnlyFile(path) as file:
            sizes[name] = file.size
    if missing:
        raise BadCheckpointError(
            Text("found ", Found(len(names) - len(missing)), f" of {len(names)} files"),
            "the checkpoint is not complete: copy these files to it; where they are links, fetch "
            "what they point to (git annex get, dvc pull)",
            wanted=f"also {', '.join(missing)}",
        )
    return sizes


def _loops(path: Path) -> bool:
    """Whether a link leads back to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    except ValueError:
        return False
    return False


# --- tensors


def _tensor(name: str, entry: raw.TensorMetadata, locate: Callable[[_Key], _Place]) -> DcpTensor:
    parts = raw.attributes(entry, raw.TensorMetadata, name)
    properties = getattr(parts.get("properties"), "state", None)
    dtype = properties[0] if type(properties) is tuple and properties else None
    if type(parts.get("properties")) is not raw.Properties or type(dtype) is not raw.Dtype:
        refuse(
            Text(f"{name}: found ", Found(describe(dtype)), " as its dtype"),
            wanted="one of torch's",
        )
    shape = _numbers(parts.get("size"), name, "size")
    found = parts.get("chunks")
    if type(found) is not list:
        refuse(Text(f"{name}: found ", Found(describe(found))), wanted="a list of chunks")
    chunks: list[DcpChunk] = []
    for value in found:
        offsets, sizes = _box(value, name)
        if math.prod(sizes):
            place = locate((name, offsets))
            chunks.append(DcpChunk(offsets, sizes, *place))
    fault = tiling_fault(shape, [(chunk.offsets, chunk.sizes) for chunk in chunks])
    if fault:
        refuse(Text(f"{name}: ", fault))
    return DcpTensor(name, dtype.name, shape, tuple(chunks))


def _box(value: object, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts = raw.attributes(value, raw.ChunkMetadata, name)
    return (
        _numbers(parts.get("offsets"), name, "offsets"),
        _numbers(parts.get("sizes"), name, "sizes"),
    )


def _numbers(value: object, name: str, what: str) -> tuple[int, ...]:
    """Return the offsets or sizes that ``value`` is."""
    if type(value) is not tuple or len(value) > MAX_DIMENSIONS:
        refuse(
            Text(f"{name}: {what}: found ", Found(describe(value))),
            wanted=f"up to {MAX_DIMENSIONS} numbers",
        )
    for number in value:
        _number(number, name, what)
    return value


def _number(value: object, name: str, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        refuse(Text(f"{name}: {what}: found ", Found(describe(value))), wanted="a plausible number")
    return value


def _text(key: _Key) -> str:
    name, offsets = key
    return name if offsets is None else f"{name}: chunk {list(offsets)}"
