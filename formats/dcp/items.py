"""Opening the items in the shards of a DCP folder.

A shard of a DCP folder holds thousands of items; each is a file of ``torch.save`` of its own.
:class:`DcpItems` opens the items that :func:`flmgrow.formats.dcp.metadata.read_metadata` lists, one
by one, when they are wanted: the header of an item is read at its first use, and all items of a
shard share one descriptor. What an item says of itself must be what the metadata says of it.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import DcpChunk, DcpObject
from flmgrow.formats.torch_file.bounds import describe
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

KEPT_BYTES = 16 << 10
KEPT_ITEMS = 4096
"""Headers that are kept, a few kilobytes each: reading one again would check its sums again."""


class DcpItems:
    """The items in the shards of ``folder``. Any number of threads may use it at once.

    The methods raise BadCheckpointError if the item is missing, damaged or hostile, or not what it
    should be, and StorageError if the file system failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._shards: dict[str, ReadOnlyFile] = {}
        self._opened: OrderedDict[tuple[str, int, int], TorchFile] = OrderedDict()

    def open_item(self, name: str, dtype: str, chunk: DcpChunk) -> tuple[TorchFile, TensorRecord]:
        """Return the chunk of tensor ``name`` and the file to read its storage with.

        It has the ``dtype`` and the chunk's sizes; it need not be contiguous.
        """
        file = self._open(name, chunk.file, chunk.offset, chunk.length)
        record = file.root
        where = f"{file.file.path}: {name}: chunk {list(chunk.offsets)}"
        if not isinstance(record, TensorRecord):
            found = describe(record)
        elif (record.dtype, record.shape) != (dtype, chunk.sizes):
            found = f"{record.dtype} {list(record.shape)}"
        else:
            return file, record
        raise BadCheckpointError(
            Text("found ", Found(found)),
            "the checkpoint is damaged, or its files are of different saves: use another copy",
            where=where,
            wanted=f"{dtype} {list(chunk.sizes)} as the metadata says",
        )

    def open_object(self, item: DcpObject) -> TorchFile:
        """Return the object's file, whose ``root`` is inert data."""
        return self._open(item.name, item.file, item.offset, item.length)

    def close(self) -> None:
        """Give the descriptors back. What was opened can still be read: that opens them again."""
        with self._lock:
            for shard in self._shards.values():
                shard.close()

    def _open(self, name: str, shard: str, offset: int, length: int) -> TorchFile:
        key = (shard, offset, length)
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
            file = self._shards.get(shard)
            if file is None:
                file = self._shards[shard] = ReadOnlyFile(self.folder / shard)
        try:
            opened = TorchFile(file, base=offset, length=length)
        except BadCheckpointError as error:
            start = f" from byte {offset}"
            for place, item in ((f"{file.path}{start}", f"{name}{start}"), (file.path, name)):
                inner = error.relative_to(place)
                if inner is not error:
                    raise inner.at(file.path, item) from None
            raise
        with self._lock:
            if opened.pickle_bytes > KEPT_BYTES:
                return opened
            opened = self._opened.setdefault(key, opened)  # another thread's, if it was faster
            if len(self._opened) > KEPT_ITEMS:
                self._opened.popitem(last=False)
        return opened
