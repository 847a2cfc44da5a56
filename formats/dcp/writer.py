"""Writing the shards and the ``.metadata`` of a DCP folder.

A DCP folder must be written without holding it, and its size known before the first byte is. A
shard is planned first: :class:`DcpFilePlan` knows where each item will lie, and so what the
metadata will say, before there is data. Its :meth:`~DcpFilePlan.writer` then takes the items' bytes
in order, a piece at a time. :func:`metadata_bytes` makes ``.metadata``, which must be written last:
with it the folder is a checkpoint. The same arguments give the same bytes.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flmgrow.formats.dcp.metadata import DcpChunk, DcpObject, DcpTensor
from flmgrow.formats.dcp.records import FILESYSTEM, METADATA
from flmgrow.formats.dcp.tiling import tiling_fault
from flmgrow.formats.torch_file.file import source_chunks
from flmgrow.formats.torch_file.file_writer import TorchFileWriter, new_tensor
from flmgrow.formats.torch_file.values import Storage
from flmgrow.storage.crc import Bytes
from flmgrow.text import Text

DCP_VERSION = "1.0.0"


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A box of tensor ``name`` that is to be written; ``dtype`` is torch's name."""

    name: str
    dtype: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NewObject:
    """Something that is no tensor and is to be written; ``root`` is made of inert values."""

    name: str
    root: object


class DcpFilePlan:
    """The shard called ``file``, of these ``items`` one after the other.

    ``total_size`` is its size in bytes. ``placed`` says where each item will lie, in their order.

    Raises:
        ValueError: If torch has no such dtype.
    """

    total_size: int
    placed: list[DcpChunk | DcpObject]

    def __init__(self, file: str, items: Sequence[NewChunk | NewObject]) -> None:
        self.file = file
        self.items = items
        self.placed = []
        lengths: dict[tuple[str, tuple[int, ...]], int] = {}
        position = 0
        for item in items:
            if isinstance(item, NewChunk):
                key = (item.dtype, item.sizes)
                length = lengths.get(key)
                if length is None:
                    length = lengths[key] = _item_writer(item, _nowhere).total_size
                self.placed.append(DcpChunk(item.offsets, item.sizes, file, position, length))
            else:
                length = _item_writer(item, _nowhere).total_size
                self.placed.append(DcpObject(item.name, file, position, length))
            position += length
        self.total_size = position

    def writer(self, write: Callable[[Bytes], object]) -> "DcpFileWriter":
        """Return what writes the shard, from front to back, through ``write``."""
        return DcpFileWriter(self.items, write)


def _nowhere(data: Bytes) -> None:
    """Write nothing: only the size is wanted."""


def _item_writer(item: NewChunk | NewObject, write: Callable[[Bytes], object]) -> TorchFileWriter:
    root = new_tensor(item.dtype, item.sizes) if isinstance(item, NewChunk) else item.root
    return TorchFileWriter(root, write)


class DcpFileWriter:
    """The bytes of a shard, item by item. ``write`` must take all it is given."""

    def __init__(
        self, items: Sequence[NewChunk | NewObject], write: Callable[[Bytes], object]
    ) -> None:
        self._items = items
        self._write = write
        self._written = 0

    def write_chunk(self, item: NewChunk, chunks: Iterable[Bytes]) -> None:
        """Write the next item, whose elements, in the order of the axes, ``chunks`` together are.

        Raises:
            ValueError: If it is not the turn of ``item``, or if the chunks are more or fewer bytes.
        """
        writer = self._next(item)
        writer.write_storage(writer.storages[0], chunks)
        writer.finish()

    def write_object(
        self,
        item: NewObject,
        chunks_of: Callable[[Storage], Iterable[Bytes]] = source_chunks,
    ) -> None:
        """Write the next item, an object; ``chunks_of`` gives the bytes of each storage in it.

        Raises:
            ValueError: As :meth:`write_chunk` does.
        """
        writer = self._next(item)
        for storage in writer.storages:
            writer.write_storage(storage, chunks_of(storage))
        writer.finish()

    def finish(self) -> None:
        """Check that all items are written (ValueError); nothing follows them in the shard."""
        if self._written != len(self._items):
            raise ValueError(f"item {self._written} of {len(self._items)} is not written")

    def _next(self, item: NewChunk | NewObject) -> TorchFileWriter:
        if self._written == len(self._items) or self._items[self._written] is not item:
            raise ValueError(f"item {self._written} of {len(self._items)} comes next")
        self._written += 1
        return _item_writer(item, self._write)


def metadata_bytes(tensors: Iterable[DcpTensor], objects: Iterable[DcpObject]) -> bytes:
    """Return the content of ``.metadata`` for a folder that holds these.

    It is the pickle (protocol 2) of torch's ``Metadata``, without the plans that Megatron adds.

    Raises:
        ValueError: If the chunks of a tensor do not cover it exactly once.
    """
    tensors = list(tensors)
    for tensor in tensors:
        fault = tiling_fault(
            tensor.shape, [(chunk.offsets, chunk.sizes) for chunk in tensor.chunks]
        )
        if fault:
            raise ValueError(Text(f"{tensor.name}: ", fault))
    pickler = _Pickler()
    pickler.metadata(tensors, list(objects))
    return bytes(pickler.output)


class _Pickler:
    """Writes the records of a metadata straight as instructions: there may be a million."""

    def __init__(self) -> None:
        self.output = bytearray(pickle.PROTO + b"\x02")
        self.kept: dict[str | tuple[str, str], bytes] = {}

    def metadata(self, tensors: list[DcpTensor], objects: list[DcpObject]) -> None:
        add = self.output.extend
        self.begin(METADATA, "Metadata")
        self.text("state_dict_metadata")
        add(pickle.EMPTY_DICT + pickle.MARK)
        for tensor in tensors:
            self.text(tensor.name)
            self.tensor(tensor)
        for item in objects:
            self.text(item.name)
            self.name(METADATA, "BytesStorageMetadata")
            add(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        add(pickle.SETITEMS)
        self.text("planner_data")
        add(pickle.NONE)
        self.text("storage_data")
        add(pickle.EMPTY_DICT + pickle.MARK)
        for tensor in tensors:
            for chunk in tensor.chunks:
                self.place(tensor.name, chunk.offsets, chunk)
        for item in objects:
            self.place(item.name, None, item)
        add(pickle.SETITEMS)
        self.text("storage_meta")
        add(pickle.NONE)
        self.text("version")
        self.text(DCP_VERSION)
        self.end()
        add(pickle.STOP)

    def tensor(self, tensor: DcpTensor) -> None:
        add = self.output.extend
        self.begin(METADATA, "TensorStorageMetadata")
        self.text("properties")
        self.properties(tensor.dtype)
        self.text("size")
        self.size(tensor.shape)
        self.text("chunks")
        add(pickle.EMPTY_LIST + pickle.MARK)
        for chunk in tensor.chunks:
            self.begin(METADATA, "ChunkStorageMetadata")
            self.text("offsets")
            self.size(chunk.offsets)
            self.text("sizes")
            self.size(chunk.sizes)
            self.end()
        add(pickle.APPENDS)
        self.end()

    def properties(self, dtype: str) -> None:
        """The dtype and what else torch keeps: strided, no gradient, contiguous, not pinned."""
        add = self.output.extend
        self.name(METADATA, "TensorProperties")
        add(pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.MARK)
        self.name("torch", dtype)
        self.name("torch.serialization", "_get_layout")
        self.text("torch.strided")
        add(pickle.TUPLE1 + pickle.REDUCE + pickle.NEWFALSE)
        self.name(METADATA, "_MEM_FORMAT_ENCODING")
        self.number(0)
        add(pickle.TUPLE1 + pickle.REDUCE + pickle.NEWFALSE + pickle.TUPLE + pickle.BUILD)

    def place(self, name: str, offsets: tuple[int, ...] | None, item: DcpChunk | DcpObject) -> None:
        """One item of storage_data: the index and, for it, the place."""
        self.begin(METADATA, "MetadataIndex")
        self.text("fqn")
        self.text(name)
        self.text("index")
        self.output += pickle.NONE
        if offsets is not None:
            self.text("offset")
            self.size(offsets)
        self.end()
        self.begin(FILESYSTEM, "_StorageInfo")
        self.text("relative_path")
        self.text(item.file)
        self.text("offset")
        self.number(item.offset)
        self.text("length")
        self.number(item.length)
        self.end()

    # --- the parts

    def begin(self, module: str, name: str) -> None:
        """Begin an object; its attributes follow."""
        self.name(module, name)
        self.output += pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.MARK

    def end(self) -> None:
        self.output += pickle.SETITEMS + pickle.BUILD

    def size(self, numbers: tuple[int, ...]) -> None:
        self.name("torch", "Size")
        self.output += pickle.MARK
        for number in numbers:
            self.number(number)
        self.output += pickle.TUPLE + pickle.TUPLE1 + pickle.REDUCE

    def number(self, value: int) -> None:
        if value < 1 << 8:
            self.output += pickle.BININT1 + bytes([value])
        elif value < 1 << 31:
            self.output += pickle.BININT + struct.pack("<i", value)
        else:
            data = pickle.encode_long(value)
            self.output += pickle.LONG1 + bytes([len(data)]) + data

    def text(self, value: str) -> None:
        if value not in self.kept:
            data = value.encode("utf-8", "surrogatepass")
            self.output += pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        self.keep(value)

    def name(self, module: str, name: str) -> None:
        if (module, name) not in self.kept:
            self.output += pickle.GLOBAL + f"{module}\n{name}\n".encode()
        self.keep((module, name))

    def keep(self, value: str | tuple[str, str]) -> None:
        """Refer to ``value``, or keep what was just written under the next number."""
        if value in self.kept:
            self.output += self.kept[value]
            return
        number = struct.pack("<I", len(self.kept))
        self.output += pickle.LONG_BINPUT + number
        self.kept[value] = pickle.LONG_BINGET + number
