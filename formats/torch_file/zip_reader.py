"""Reading the directory of a ``.pt`` file's zip archive, and refusing what torch does not write.

A ``.pt`` file is a zip archive, and two readers of one archive can see different files in it. Zip
is loose: names may come twice, records may overlap, be compressed a thousandfold or hide between
others, and the two descriptions of each record may differ. :func:`read_directory` accepts only what
torch writes: every record stored as it is, described twice in the same way, one after the other
from the first byte to the directory, which is the last thing in the archive.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

MAX_RECORDS = 1_000_000
MAX_DIRECTORY_BYTES = 128 << 20
"""Of this and of each record as many bytes are in memory, several times over."""
MAX_NAME_BYTES = 4096

U16_MAX = 0xFFFF
U32_MAX = 0xFFFFFFFF
"""A 32-bit field with this value says that the number is in the zip64 field instead."""

LOCAL_HEADER = struct.Struct("<IHHHHHIIIHH")
LOCAL_SIGNATURE = 0x04034B50
DESCRIPTOR_SIGNATURE = 0x08074B50
ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")
ENTRY_SIGNATURE = 0x02014B50
END = struct.Struct("<IHHHHIIH")
END_SIGNATURE = 0x06054B50
END64 = struct.Struct("<IQHHIIQQQQ")
END64_SIGNATURE = 0x06064B50
LOCATOR64 = struct.Struct("<IIQI")
LOCATOR64_SIGNATURE = 0x07064B50
ZIP64_FIELD = 1
ENCRYPTED = 0x0001
HAS_DESCRIPTOR = 0x0008
MAX_DESCRIPTOR_BYTES = 24


class ZipRecord(NamedTuple):
    """A record of the archive: ``nbytes`` bytes at ``offset`` of the file, and their CRC32."""

    name: str
    offset: int
    nbytes: int
    crc: int


class _Entry(NamedTuple):
    """What the directory says of a record. ``header`` is where its local header begins."""

    name: str
    raw_name: bytes
    flags: int
    crc: int
    nbytes: int
    header: int


def read_directory(
    file: ReadOnlyFile, base: int = 0, length: int | None = None
) -> dict[str, ZipRecord]:
    """Return the records of the archive that is ``file``, or its ``length`` bytes from ``base``.

    They come in the order of the directory. No record has been read yet.

    Raises:
        BadCheckpointError: If it is not an archive of the kind torch writes, or is damaged.
        StorageError: If the file system failed.
    """
    length = file.size - base if length is None else length
    return _Archive(file, base, length).records()


class _Archive:
    """The archive in the bytes [base, base + length) of a file; offsets count from ``base``."""

    def __init__(self, file: ReadOnlyFile, base: int, length: int) -> None:
        self.file = file
        self.base = base
        self.length = length
        if base < 0 or length < 0 or base + length > file.size:
            self.refuse(f"truncated: wanted bytes {base} to {base + length} of {file.size}")

    def refuse(self, what: str, wanted: object = "") -> NoReturn:
        place = f"{self.file.path} from byte {self.base}" if self.base else f"{self.file.path}"
        raise BadCheckpointError(
            Text("not a torch file that can be trusted: ", what),
            "copy it again from where it was complete, or save it again with torch.save",
            where=place,
            wanted=wanted,
        )

    def unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        return layout.unpack(self.read(offset, layout.size))

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.length:
            self.refuse(f"truncated: wanted {count} bytes at {offset} of {self.length}")
        return self.file.read(self.base + offset, count)

    def records(self) -> dict[str, ZipRecord]:
        count, start, end = self.locate_directory()
        found: dict[str, ZipRecord] = {}
        names: set[str] = set()
        covered = 0
        entries = list(self.entries(count, self.read(start, end - start)))
        for entry in entries:
            name = entry.name.lower()  # some readers do not tell upper from lower case
            if name in names:
                self.refuse(f"two records are called {entry.name!r}")
            names.add(name)
        for entry in sorted(entries, key=lambda entry: entry.header):
            if entry.header < covered:
                self.refuse(f"record {entry.name!r} overlaps the one before it")
            self.check_gap(covered, entry.header)
            data = self.check_local_header(entry, start)
            found[entry.name] = ZipRecord(entry.name, self.base + data, entry.nbytes, entry.crc)
            covered = data + entry.nbytes
        self.check_gap(covered, start)
        return {entry.name: found[entry.name] for entry in entries}

    # --- the end of the archive, which says where the directory is

    def locate_directory(self) -> tuple[int, int, int]:
        """Return the number of entries of the directory and where it starts and ends."""
        if self.length < END.size:
            self.refuse(f"{self.length} bytes are too few")
        if self.read(0, 4) != LOCAL_SIGNATURE.to_bytes(4, "little"):
            self.refuse("no zip header at its start (files of torch before 1.6 are not supported)")
        end = self.length - END.size
        signature, *numbers, comment = self.unpack(END, end)
        if signature != END_SIGNATURE or comment:
            self.refuse("no end of the archive at its end: truncated or has trailing bytes")
        end64 = self.locate_end64(end)
        if end64 is not None:
            wide_numbers = self.read_end64(end64)
            limits = (U16_MAX, U16_MAX, U16_MAX, U16_MAX, U32_MAX, U32_MAX)
            for narrow, wide, limit in zip(numbers, wide_numbers, limits, strict=True):
                if narrow not in (wide, limit):
                    self.refuse("the zip and the zip64 end of the archive disagree")
            numbers = wide_numbers
            end = end64
        disk, first_disk, here, count, nbytes, start = numbers
        if disk or first_disk or here != count:
            self.refuse("an archive of several disks")
        if start + nbytes != end:
            self.refuse("the directory is not where the end of the archive says")
        most = min(MAX_DIRECTORY_BYTES, count * (ENTRY.size + MAX_NAME_BYTES + 64))
        if count > MAX_RECORDS or nbytes > most:
            self.refuse(f"{count} records in {nbytes} bytes of directory: over the limit")
        return count, start, end

    def locate_end64(self, end: int) -> int | None:
        """Return where the zip64 end of the archive is, or None if there is none before ``end``."""
        locator = end - LOCATOR64.size
        if locator < END64.size:
            return None
        signature, disk, end64, disks = self.unpack(LOCATOR64, locator)
        if signature != LOCATOR64_SIGNATURE:
            return None
        if disk or disks != 1 or end64 + END64.size != locator:
            self.refuse("the zip64 end of the archive is not where it should be")
        return end64

    def read_end64(self, end64: int) -> list[int]:
        signature, nbytes, _, _, *rest = self.unpack(END64, end64)
        if signature != END64_SIGNATURE or nbytes != END64.size - 12:
            self.refuse("the zip64 end of the archive is broken")
        return rest

    # --- the directory

    def entries(self, count: int, directory: bytes) -> Iterator[_Entry]:
        """Yield the ``count`` entries of the directory, which must fill it."""
        position = 0
        for _ in range(count):
            fixed = directory[position : position + ENTRY.size]
            if len(fixed) < ENTRY.size or fixed[:4] != ENTRY_SIGNATURE.to_bytes(4, "little"):
                self.refuse("a broken entry in the directory")
            fields = ENTRY.unpack(fixed)
            name_end = position + ENTRY.size + fields[10]
            extra_end = name_end + fields[11]
            name = directory[position + ENTRY.size : name_end]
            position = extra_end + fields[12]
            if position > len(directory):
                self.refuse("the directory ends inside an entry")
            yield self.entry(fields, name, directory[name_end:extra_end])
        if position != len(directory):
            self.refuse("bytes left over in the directory")

    def entry(self, fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> _Entry:
        _, _, _, flags, method, _, _, crc, packed, nbytes, _, _, _, disk, _, _, header = fields
        name = self.name(raw_name)
        if flags & ENCRYPTED:
            self.refuse(f"record {name!r} is encrypted")
        if method:
            self.refuse(f"record {name!r} is compressed; torch.save never does that")
        wide = self.zip64_numbers(name, extra)
        try:
            nbytes = next(wide) if nbytes == U32_MAX else nbytes
            packed = next(wide) if packed == U32_MAX else packed
            header = next(wide) if header == U32_MAX else header
        except StopIteration:
            self.refuse(f"record {name!r} has no zip64 sizes")
        if packed != nbytes or disk:
            self.refuse(
                Text(f"record {name!r} has ", Found(packed), " stored bytes"),
                wanted=f"{nbytes} on one disk",
            )
        return _Entry(name, raw_name, flags, crc, nbytes, header)

    def name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"a record name that is not utf-8: {raw[:40]!r}")
        unsafe = "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/")
        if unsafe or not name or len(raw) > MAX_NAME_BYTES:
            self.refuse(f"unsafe record name {name[:80]!r}")
        return name

    def zip64_numbers(self, name: str, extra: bytes) -> Iterator[int]:
        """Return the numbers of the zip64 field among the extra fields of an entry."""
        position = 0
        numbers: tuple[int, ...] = ()
        while position + 4 <= len(extra):
            kind, nbytes = struct.unpack_from("<HH", extra, position)
            field = extra[position + 4 : position + 4 + nbytes]
            if len(field) != nbytes or (kind == ZIP64_FIELD and numbers):
                self.refuse(f"record {name!r} has broken extra fields")
            if kind == ZIP64_FIELD:
                numbers = struct.unpack(f"<{nbytes // 8}Q", field[: nbytes // 8 * 8])
            position += 4 + nbytes
        return iter(numbers)

    # --- the records

    def check_local_header(self, entry: _Entry, limit: int) -> int:
        """Check that the header before the record agrees; return where the record's data begin."""
        name_at = entry.header + LOCAL_HEADER.size
        if name_at + len(entry.raw_name) > limit:
            self.refuse(f"record {entry.name!r} reaches outside the file")
        head = self.read(entry.header, LOCAL_HEADER.size + len(entry.raw_name))
        fields = LOCAL_HEADER.unpack(head[: LOCAL_HEADER.size])
        signature, _, flags, method, _, _, crc, packed, nbytes, name_bytes, extra_bytes = fields
        # With a descriptor after the data, the header was written before the numbers were known.
        unknown = {0, U32_MAX} if flags & HAS_DESCRIPTOR else {U32_MAX}
        agrees = (
            signature == LOCAL_SIGNATURE
            and not method
            and flags == entry.flags
            and name_bytes == len(entry.raw_name)
            and head[LOCAL_HEADER.size :] == entry.raw_name
            and (crc == entry.crc or (flags & HAS_DESCRIPTOR and not crc))
            and {packed, nbytes} <= {entry.nbytes, *unknown}
        )
        if not agrees:
            self.refuse(f"record {entry.name!r}: local header disagrees with the directory")
        data = name_at + int(name_bytes) + int(extra_bytes)
        if data + entry.nbytes > limit:
            self.refuse(f"record {entry.name!r} reaches outside the file")
        return data

    def check_gap(self, start: int, end: int) -> None:
        """Refuse bytes between records that are more than a descriptor: something is hidden."""
        if start != end and not (start and end - start <= MAX_DESCRIPTOR_BYTES):
            self.refuse(f"{end - start} bytes at {start} belong to no record")
