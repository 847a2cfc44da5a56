"""Reading one ``.pt`` file, in byte ranges and with every checksum.

One ``.pt`` file can be larger than memory, and torch neither checks nor bounds what it reads.
:class:`TorchFile` opens what ``torch.save`` wrote without torch: the objects as inert values at
once, the tensors' bytes in ranges when they are asked for, each record checked against its CRC32
(which every such file has, and which torch never looks at) before the first of its bytes is handed
out.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, Self

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.formats.torch_file.values import (
    Storage,
    StoredBytes,
    TensorRecord,
)
from flmgrow.formats.torch_file.zip_reader import ZipRecord, read_directory
from flmgrow.storage.crc import crc32
from flmgrow.storage.files import PIECE, ReadOnlyFile
from flmgrow.text import Found, Text

MAX_PICKLE_BYTES = 128 << 20
MOST_NAMED = 3
"""Tensors of one damaged record that are named."""


class TorchFile:
    """A file that ``torch.save`` wrote, or such a file inside a file: bytes [base, base + length).

    Several may share one :class:`ReadOnlyFile`, which is then given in place of the path.
    ``root`` is the saved object as inert values (see :mod:`flmgrow.formats.torch_file.values`),
    ``records`` the archive's records by name, ``file`` the file they lie in. Any number of threads
    may read at once.

    Raises:
        BadCheckpointError: If the file is missing, damaged, hostile or of another kind.
        StorageError: If the file system failed.
    """

    root: object
    file: ReadOnlyFile
    records: dict[str, ZipRecord]

    def __init__(
        self,
        path: str | os.PathLike[str] | ReadOnlyFile,
        *,
        base: int = 0,
        length: int | None = None,
    ) -> None:
        self.file = path if isinstance(path, ReadOnlyFile) else ReadOnlyFile(path)
        self._lock = threading.Lock()
        self._checks: dict[str, _Check] = {}
        try:
            self.records = read_directory(self.file, base, length)
            # torch.serialization.set_crc32_options(False) leaves out all sums, never some.
            self.has_checksums = any(record.crc for record in self.records.values())
            self._prefix = self._find_prefix()
            self._check_kind()
            self.root = self._unpickle()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file's descriptor back. Its storages can still be read: that opens it again."""
        self.file.close()

    def read(self, storage: Storage, offset: int, count: int) -> bytes:
        """Return ``count`` bytes of ``storage`` from its byte ``offset``.

        The first read of a storage checks the whole of it.

        Raises:
            BadCheckpointError: If the storage's bytes are not those that were saved, or are fewer.
            StorageError: If the file system failed.
        """
        self._check_range(storage, offset, count)
        return self.file.read(storage.offset + offset, count)

    def read_into(self, storage: Storage, offset: int, target: memoryview) -> None:
        """Fill ``target`` with bytes of ``storage`` from its byte ``offset``, as :meth:`read`."""
        self._check_range(storage, offset, target.nbytes)
        self.file.read_into(storage.offset + offset, target)

    def verify(self, progress: Callable[[int], object] | None = None) -> int:
        """Check every record and return the number of bytes that were checked.

        It is 0 for a file that was saved without checksums. ``progress`` is called with the bytes
        of each piece.

        Raises:
            BadCheckpointError: If a record is not as it was saved; the message names the tensors in
                it.
            StorageError: If the file system failed.
        """
        if not self.has_checksums:
            return 0
        for record in self.records.values():
            try:
                for piece in checked_chunks(self._place(record)):
                    if progress is not None:
                        progress(piece.nbytes)
            except BadCheckpointError as error:
                raise error.with_more(self._holding(record)) from None
        return sum(record.nbytes for record in self.records.values())

    def _holding(self, record: ZipRecord) -> str:
        """Return what tensors lie in a record, by the keys that lead to them."""
        found = [path for path, each in walk_tensors(self.root) if each.storage.name == record.name]
        names = [": ".join(map(str, path)) for path in found if path]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return f" (it holds {', '.join(names[:MOST_NAMED])}{more})" if names else ""

    def _check_range(self, storage: Storage, offset: int, count: int) -> None:
        if storage.file is not self.file:
            raise ValueError(f"storage {storage.name!r} is not of {self.file.path}")
        if offset < 0 or count < 0 or offset + count > storage.nbytes:
            self._refuse(
                Text(f"{storage.name}: has ", Found(storage.nbytes), " bytes"),
                wanted=f"{count} from byte {offset}",
            )
        with self._lock:
            check = self._checks.setdefault(storage.name, _Check())
        check.run_once(self._place(self.records[storage.name]))

    def _place(self, record: ZipRecord) -> StoredBytes:
        crc = record.crc if self.has_checksums else None
        return StoredBytes(self.file, record.name, record.offset, record.nbytes, crc)

    def _refuse(self, what: str, wanted: object = "") -> NoReturn:
        hint = "give a checkpoint that torch.save wrote, or another copy"
        raise BadCheckpointError(what, hint, where=self.file.path, wanted=wanted)

    def _find_prefix(self) -> str:
        """Return the folder inside the archive that holds everything."""
        found = [
            name.removesuffix("/data.pkl")
            for name in self.records
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(found) != 1:
            self._refuse(
                Text("holds ", Found(len(found)), " data.pkl records"),
                wanted="one: not of torch.save",
            )
        return found[0]

    def _check_kind(self) -> None:
        if f"{self._prefix}/constants.pkl" in self.records:
            self._refuse(
                Text("is ", Found("a TorchScript archive (a program)")), wanted="a checkpoint"
            )
        order = self.records.get(f"{self._prefix}/byteorder")
        if order is not None and (order.nbytes != 6 or self._read_whole(order) != b"little"):
            self._refuse(
                Text("byteorder: found ", Found("big-endian or damaged")),
                wanted="little-endian data",
            )

    def _unpickle(self) -> object:
        record = self.records[f"{self._prefix}/data.pkl"]
        self.pickle_bytes = record.nbytes
        if record.nbytes > MAX_PICKLE_BYTES:
            self._refuse(
                Text("data.pkl: has ", Found(record.nbytes), " bytes"),
                wanted=f"at most {MAX_PICKLE_BYTES}",
            )
        folder = f"{self._prefix}/data/"
        places = {
            name.removeprefix(folder): self._place(record)
            for name, record in self.records.items()
            if name.startswith(folder)
        }
        return unpickle(self._read_whole(record), f"{self.file.path}: data.pkl", places)

    def _read_whole(self, record: ZipRecord) -> bytes:
        data, at = bytearray(record.nbytes), 0
        for piece in checked_chunks(self._place(record)):
            data[at : at + piece.nbytes] = piece
            at += piece.nbytes
        return bytes(data)


class _Check:
    """The check of one storage, which is made once, however many threads ask for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.passed = False

    def run_once(self, place: StoredBytes) -> None:
        with self.lock:
            if not self.passed:
                for _ in checked_chunks(place):
                    pass
                self.passed = True


def checked_chunks(place: StoredBytes) -> Iterator[memoryview]:
    """Stream the bytes at ``place`` in pieces, each valid until the next one.

    Raises:
        BadCheckpointError: After the last piece, if the bytes do not have the CRC32 they should.
        StorageError: If the file system failed.
    """
    found = 0
    for piece in place.file.chunks(place.offset, place.nbytes, PIECE):
        if place.crc is not None:
            found = crc32(piece, found)
        yield piece
    if place.crc is not None and found != place.crc:
        raise BadCheckpointError(
            Text("damaged: its bytes have CRC32 ", Found(f"{found:08x}")),
            "copy the file again from where it was complete",
            where=(place.file.path, place.name),
            wanted=f"{place.crc:08x}",
        )


def source_chunks(storage: Storage) -> Iterator[memoryview]:
    """Stream the bytes of a storage out of its file, or what it has; as :func:`checked_chunks`."""
    if storage.data is not None:
        return iter([memoryview(storage.data)])
    if storage.file is None:
        raise ValueError("the storage is new: its bytes are in no file yet")
    return checked_chunks(
        StoredBytes(storage.file, storage.name, storage.offset, storage.nbytes, storage.crc)
    )


def scalar(record: TensorRecord) -> float:
    """Return the value of a float32 tensor of one element; any other is a BadCheckpointError."""
    if record.dtype != "float32" or record.count != 1:
        raise BadCheckpointError(
            Text(f"a tensor {record.dtype} ", Found(list(record.shape))), wanted="one number"
        )
    data = bytearray()
    at = 0
    for piece in source_chunks(record.storage):  # of any size: all of it is checked
        low, high = (
            min(max(end - at, 0), piece.nbytes) for end in (record.offset, record.offset + 4)
        )
        data += piece[low:high]
        at += piece.nbytes
    value: float = struct.unpack("<f", data)[0]
    return value


def check_records(file: TorchFile, progress: Callable[[int], object]) -> tuple[str, ...]:
    """Check the CRC32 of every record of a file; it may have been saved without."""
    file.verify(progress)
    return ("CRC32",) if file.has_checksums else ()
