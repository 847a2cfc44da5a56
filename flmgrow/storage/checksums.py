"""Checksums of files and of the records in them, computed and compared.

Disks lose bits and copies get cut short, and weights look no different for it. Each file of an
output is recorded with its size and a checksum (XXH3, 128 bits: as fast as memory, finds any
accident, but is no seal against forgery), and can be held against its record.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import xxhash

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.durable import storage_errors
from flmgrow.storage.strict_json import Json

READ_SIZE = 1 << 20  # stays in the cache between reading and hashing


@dataclass(frozen=True)
class FilePart:
    """A tensor's bytes in a file: their place, and their XXH3 (64 bits, in hex)."""

    name: str
    start: int
    size: int
    xxh3_64: str


@dataclass(frozen=True)
class FileRecord:
    """A finished file: ``path`` relative to the output folder, ``size`` in bytes, checksum.

    ``sha256`` is in hex, too; empty where nobody asked for it, as it costs thirty times as much.
    ``parts`` are its tensors, if its format keeps no sums that tell which of them was damaged.
    """

    path: str
    size: int
    xxh3_128: str
    sha256: str = ""
    parts: tuple[FilePart, ...] = ()

    def __post_init__(self) -> None:
        parts = (part if isinstance(part, FilePart) else FilePart(**part) for part in self.parts)
        object.__setattr__(self, "parts", tuple(parts))

    def to_json(self) -> Json:
        """Return it as plain data, without what nobody asked for."""
        return {name: value for name, value in asdict(self).items() if value not in ("", ())}


def verify_files(
    folder: Path,
    records: Iterable[FileRecord],
    progress: Callable[[int], None] | None = None,
    recorded_in: str = "manifest",
) -> None:
    """Check that each file is there with the size and checksum recorded; all sizes come first.

    ``progress`` gets the number of bytes read since its last call.

    Raises:
        BadCheckpointError: For the first file that differs.
        StorageError: If one cannot be read.
    """
    records = list(records)
    check_sizes(folder, records, recorded_in)
    for record in records:
        found = checksum_of(folder / record.path, progress)
        if found != record.xxh3_128:
            what = f"damaged: xxh3 {found}, {recorded_in} says {record.xxh3_128}"
            raise _damaged(folder, record, what + _damaged_part(folder / record.path, record.parts))


def check_sizes(folder: Path, records: Iterable[FileRecord], recorded_in: str = "manifest") -> None:
    """Raise BadCheckpointError for the first file that is not there with the size recorded."""
    for record in records:
        _check_size(folder, record, recorded_in)


def is_intact(
    folder: Path, record: FileRecord, progress: Callable[[int], None] | None = None
) -> bool:
    """Return whether a file is there with the size and checksum recorded, as the disk has it.

    ``progress`` is told bytes as they are read.

    Raises:
        StorageError: If it cannot be read.
    """
    path = folder / record.path
    with storage_errors(path, "looking up"):
        if not path.is_file() or path.stat().st_size != record.size:
            return False
    return checksum_of(path, progress) == record.xxh3_128


def _check_size(folder: Path, record: FileRecord, recorded_in: str) -> None:
    if not is_safe(record.path):
        raise _damaged(folder, record, f"the {recorded_in} names a file outside the folder")
    path = folder / record.path
    if not path.is_file():
        raise _damaged(folder, record, f"missing, {recorded_in} says {record.size} bytes")
    if (size := path.stat().st_size) != record.size:
        raise _damaged(folder, record, f"{size} bytes, {recorded_in} says {record.size}")


def _damaged(folder: Path, record: FileRecord, what: str) -> BadCheckpointError:
    return BadCheckpointError(
        what, hint="restore the folder from a copy, or make it again", where=folder / record.path
    )


def _damaged_part(path: Path, parts: Sequence[FilePart]) -> str:
    """Return which of the parts of a damaged file it is, as far as it can be told."""
    if not parts:
        return ""
    with storage_errors(path, "reading"), path.open("rb") as file:
        for part in parts:
            file.seek(part.start)
            checksum = xxhash.xxh3_64()
            for at in range(0, part.size, READ_SIZE):
                checksum.update(file.read(min(READ_SIZE, part.size - at)))
            if checksum.hexdigest() != part.xxh3_64:
                return f" (the first that differs is {part.name})"
    return " (none of its tensors differs)"


def checksum_of(
    path: Path, progress: Callable[[int], None] | None = None, *, cached: bool = False
) -> str:
    """Return the XXH3 sum (128 bits, in hex) of a file as the disk has it.

    Or, if it may be ``cached``, as memory remembers it: that of a file that is read anyway.

    Raises:
        StorageError: The file system failed.
    """
    checksum = xxhash.xxh3_128()
    buffer = memoryview(bytearray(READ_SIZE))
    with storage_errors(path, "reading"), path.open("rb", buffering=0) as file:
        # What the disk holds is to be checked, not what memory remembers of writing it.
        with contextlib.suppress(io.UnsupportedOperation):  # of an object, it remembers nothing
            if not cached:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
            if progress is not None:
                progress(count)
    return checksum.hexdigest()


def is_safe(relative: str) -> bool:
    """Return whether a path from a plan or a manifest stays below the folder it is relative to."""
    path = PurePosixPath(relative)
    plain = path.parts and ".." not in path.parts and "\0" not in relative
    return bool(plain) and not path.is_absolute() and str(path) == relative
