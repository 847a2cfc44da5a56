"""Writing a zip archive from front to back, in torch's own layout.

A zip archive larger than memory must be written from front to back, in torch's own layout. torch
aligns each record by padding its header, gives sizes and CRC32 only behind the data, and uses
64-bit fields where 32 bits do not suffice. Where everything lies follows from the names and the
sizes of the records, so the whole archive is laid out before the first byte of data is known.
"""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from flmgrow.formats.torch_file.zip_reader import (
    DESCRIPTOR_SIGNATURE,
    END,
    END64,
    END64_SIGNATURE,
    END_SIGNATURE,
    ENTRY,
    ENTRY_SIGNATURE,
    HAS_DESCRIPTOR,
    LOCAL_HEADER,
    LOCAL_SIGNATURE,
    LOCATOR64,
    LOCATOR64_SIGNATURE,
    U16_MAX,
    U32_MAX,
    ZIP64_FIELD,
)
from flmgrow.storage.crc import Bytes, crc32
from flmgrow.text import Found, Text, Wanted

NAME_IS_UTF8 = 0x0800
MADE_BY, NEEDED = 0x031E, 0x002D
"""The versions of zip that torch claims in the zip64 end of the archive."""


class _Slot(NamedTuple):
    """Where a record lies: its header and its data begin here, and the next header at ``end``."""

    name: bytes
    nbytes: int
    header: int
    data: int
    end: int
    zip64: bytes

    @property
    def flags(self) -> int:
        return NAME_IS_UTF8 | (HAS_DESCRIPTOR if self.nbytes else 0)


def _slot(name: str, nbytes: int, header: int, alignment: int) -> _Slot:
    """Lay out a record whose header is at ``header``."""
    raw_name = name.encode()
    zip64 = b""
    if nbytes >= U32_MAX:
        zip64 += struct.pack("<QQ", nbytes, nbytes)
    if header >= U32_MAX:
        zip64 += struct.pack("<Q", header)
    if zip64:
        zip64 = struct.pack("<HH", ZIP64_FIELD, len(zip64)) + zip64
    unpadded = header + LOCAL_HEADER.size + len(raw_name) + len(zip64) + 4
    data = unpadded + -unpadded % alignment
    descriptor = (24 if zip64 else 16) if nbytes else 0
    return _Slot(raw_name, nbytes, header, data, data + nbytes + descriptor, zip64)


class ZipWriter:
    """An archive with records of the given ``sizes`` (bytes by name), in this order.

    It goes out through ``write``. ``total_size`` is the size of all of it; ``crcs`` are the CRC32
    of the records written so far.
    """

    total_size: int
    crcs: list[int]

    def __init__(
        self, sizes: dict[str, int], write: Callable[[Bytes], object], alignment: int
    ) -> None:
        self._write = write
        self._slots: list[_Slot] = []
        self.crcs = []
        position = 0
        for name, nbytes in sizes.items():
            slot = _slot(name, nbytes, position, alignment)
            self._slots.append(slot)
            position = slot.end
        self._directory = position
        entries = sum(ENTRY.size + len(slot.name) + len(slot.zip64) for slot in self._slots)
        self.total_size = position + entries + END64.size + LOCATOR64.size + END.size

    def write_record(self, chunks: Iterable[Bytes]) -> None:
        """Write the next record; ValueError when the chunks are not as many bytes as announced."""
        slot = self._slots[len(self.crcs)]
        self._write(_local_header(slot))
        crc = written = 0
        for chunk in chunks:
            data = memoryview(chunk).cast("B")
            written += data.nbytes
            if written > slot.nbytes:
                break
            self._write(data)
            crc = crc32(data, crc)
        if written != slot.nbytes:
            count = "more" if written > slot.nbytes else str(written)
            got = Text(f"{slot.name.decode()}: got ", Found(count), " bytes")
            raise ValueError(Text(got, Wanted(slot.nbytes)))
        self.crcs.append(crc)
        if slot.nbytes:
            sizes = "<QQ" if slot.zip64 else "<II"
            self._write(
                struct.pack("<II", DESCRIPTOR_SIGNATURE, crc)
                + struct.pack(sizes, slot.nbytes, slot.nbytes)
            )

    def finish(self) -> None:
        """Write the directory and the end of the archive, after the last record."""
        slots = zip(self._slots, self.crcs, strict=True)
        directory = b"".join(_entry(slot, crc) for slot, crc in slots)
        self._write(directory)
        self._write(_end(len(self._slots), self._directory, len(directory)))


def _local_header(slot: _Slot) -> bytes:
    padding = slot.data - slot.header - LOCAL_HEADER.size - len(slot.name) - len(slot.zip64) - 4
    extra = slot.zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return (
        LOCAL_HEADER.pack(
            LOCAL_SIGNATURE, 0, slot.flags, 0, 0, 0, 0, 0, 0, len(slot.name), len(extra)
        )
        + slot.name
        + extra
    )


def _entry(slot: _Slot, crc: int) -> bytes:
    nbytes = min(slot.nbytes, U32_MAX)
    versions_flags_and_date = (0, 0, slot.flags, 0, 0, 0)
    lengths_and_kind = (len(slot.name), len(slot.zip64), 0, 0, 0, 0)
    fields = (*versions_flags_and_date, crc, nbytes, nbytes, *lengths_and_kind)
    header = min(slot.header, U32_MAX)
    return ENTRY.pack(ENTRY_SIGNATURE, *fields, header) + slot.name + slot.zip64


def _end(count: int, start: int, nbytes: int) -> bytes:
    """Return the end of the archive; torch always writes the zip64 form before the old one."""
    narrow_count = min(count, U16_MAX)
    narrow = (narrow_count, narrow_count, min(nbytes, U32_MAX), min(start, U32_MAX))
    return (
        END64.pack(
            END64_SIGNATURE, END64.size - 12, MADE_BY, NEEDED, 0, 0, count, count, nbytes, start
        )
        + LOCATOR64.pack(LOCATOR64_SIGNATURE, 0, start + nbytes, 1)
        + END.pack(END_SIGNATURE, 0, 0, *narrow, 0)
    )
