"""The journal of an output folder: which files are finished, one checked line for each.

A run must know what an earlier one has finished.

1. The journal is a file of lines, each with its own checksum. A line counts once it was fsynced;
   a torn line and all that follows it is cut off on opening.
2. Each rank has a journal of its own. The first of the next launch, which may have another number
   of ranks, puts them all into one.
3. After a failed write or fsync the journal takes no more lines: what the disk holds is unknown.
"""

import contextlib
import errno
import json
import os
import threading
import zlib
from pathlib import Path

from flmgrow.storage.durable import close_quietly, storage_errors, sync_folder, write_all

OWN_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


NAME = "journal"


def name_of(rank: int) -> str:
    """Return the name of a rank's journal."""
    return f"{NAME}.{rank}" if rank else NAME


def has_lines(folder: Path) -> bool:
    """Return whether any rank's journal in ``folder`` lists anything.

    Raises:
        StorageError: The file system failed.
    """
    for path in (folder / NAME, *_of_others(folder)):
        with storage_errors(path, "looking up"):
            if path.exists() and path.stat().st_size > 0:
                return True
    return False


def merge(folder: Path) -> None:
    """Put what the journals of other ranks list into that of rank 0, and remove them.

    Nobody may be writing one.

    Raises:
        StorageError: The file system failed.
    """
    others = _of_others(folder)
    if not others:
        return
    with contextlib.closing(Journal(folder / NAME)) as journal:
        for path in others:
            with contextlib.closing(Journal(path)) as other:
                for record in other.records:
                    journal.append(record)
            with storage_errors(path, "removing"):
                path.unlink()


def _of_others(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{NAME}.*"))


class Journal:
    """A file of lines that are either on the disk whole or do not count; threads may share it.

    ``records`` holds what was found on opening.

    Raises:
        StorageError: The file system failed.
    """

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, object]] = []
        self._path = path
        self._lock = threading.Lock()
        self._broken = False
        self._end = 0
        with storage_errors(path, "opening"):
            self._descriptor = os.open(path, OWN_FILE, 0o600)
            try:
                self._read(path.read_bytes())
                os.ftruncate(self._descriptor, self._end)
                sync_folder(path.parent)
            except BaseException:
                self.close()
                raise

    def _read(self, content: bytes) -> None:
        for line in content.splitlines(keepends=True):
            record = record_in(line)
            if record is None:
                return
            self.records.append(record)
            self._end += len(line)

    def append(self, record: dict[str, object]) -> None:
        """Put one record on the disk; after a failure no more are taken.

        Raises:
            StorageError: The file system failed.
        """
        line = as_line(record)
        with self._lock, storage_errors(self._path, "adding a line"):
            if self._broken:
                raise OSError(errno.EIO, "an earlier fsync failed")
            self._broken = True
            write_all(self._descriptor, memoryview(line), self._end)
            os.fsync(self._descriptor)
            self._broken = False
            self._end += len(line)

    def close(self) -> None:
        """Close the file; what was appended is on the disk already, and no more is taken."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        close_quietly(descriptor)


def as_line(record: dict[str, object]) -> bytes:
    """Return a record as a line that carries its own checksum."""
    text = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def record_in(line: bytes) -> dict[str, object] | None:
    """Return the record in a line; None if the line is torn or damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, object] = json.loads(text)
    return record
