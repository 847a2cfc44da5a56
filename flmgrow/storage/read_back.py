"""Flushing a new file, and reading it back, while the rest of it is still being written.

What is written is in memory at first, and a file is finished when the disk has all of it. To flush
it at the end leaves the disk idle before and the processor afterwards. Worse, a disk may say that
it has put bytes away and give others back, so an output is read once more before it appears, which
takes as long as writing it did. Here a thread follows the writer instead, some ``WINDOW`` bytes
behind: it sends what was written to the disk (fdatasync), lets the memory of it go, and sums what
the disk gives back. At the end the last window alone is left.

The thread has descriptors of its own, so a run that gives up need not wait for it.
"""

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import xxhash

from flmgrow.errors import StorageError
from flmgrow.storage.checksums import READ_SIZE, FileRecord, is_intact
from flmgrow.storage.durable import RESUME, NewFile, close_quietly, storage_errors

WINDOW = 64 << 20
"""Bytes that are flushed and read at once: long beside a flush, short beside a file."""


class FlushedFile(NewFile):
    """A new file that is flushed while it is written."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, path)
        self._follower: _Follower | None = None
        self._asked = 0

    def write(self, data: memoryview) -> None:
        """Append all of ``data`` (flat bytes).

        Raises:
            StorageError: The file system failed, at these bytes or those before.
        """
        super().write(data)
        if self.position - self._asked >= WINDOW:
            if self._follower is None:
                self._follower = _Follower(self._descriptor, self._path, self._flushed)
            self._follower.follow(self.position)
            self._asked = self.position

    def _flushed(self, position: int) -> None:
        """Do what can be done when the disk has the bytes before ``position``."""

    def finish(self) -> None:
        """Put the bytes on the disk and close.

        Raises:
            StorageError: The file system failed.
        """
        if self._follower is not None:
            self._follower.catch_up()
        super().finish()

    def abandon(self) -> None:
        """Close, if it is not closed yet, what will not be finished."""
        if self._follower is not None:
            self._follower.leave()
        super().abandon()


class ReadBackFile(FlushedFile):
    """A new file that is flushed and read back while it is written.

    Once it is finished, ``read_back`` is the XXH3 (128 bits, in hex) of what the disk holds.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, path)
        self._sum = xxhash.xxh3_128()
        self._summed = 0
        self._buffer = memoryview(bytearray(READ_SIZE))

    def _flushed(self, position: int) -> None:
        """Sum what the disk has, but for the page that the writer is in now."""
        self._read_to(position // mmap.PAGESIZE * mmap.PAGESIZE)

    def finish(self) -> None:
        """Put the bytes on the disk, read what was not read yet, and close.

        Raises:
            StorageError: The file system failed.
        """
        super().finish()
        self._read_to(self.position)
        self.read_back = self._sum.hexdigest()

    def _read_to(self, end: int) -> None:
        with storage_errors(self._path, "reading"), self._path.open("rb", buffering=0) as file:
            # What the disk holds is to be checked, not what memory remembers of writing it.
            place = file.seek(self._summed)
            os.posix_fadvise(file.fileno(), place, end - place, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(self._buffer[: end - self._summed]):
                self._sum.update(self._buffer[:count])
                self._summed += count


class SeenFiles:
    """Files that this process has read from the disk, and how they looked then.

    They need not be read again before they change. ``report`` is told of what is read.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._seen: dict[Path, object] = {}

    def note(self, path: Path) -> None:
        """Remember a file that was just read back."""
        self._seen[path] = _looks_of(path)

    def is_intact(self, folder: Path, record: FileRecord) -> bool:
        """Return whether a file in ``folder`` is as it was written, reading it where need be."""
        path = folder / record.path
        now = _looks_of(path)
        if now is not None and now == self._seen.get(path):
            return True
        intact = is_intact(folder, record, self._report)
        if intact and now is not None:
            self._seen[path] = now
        return intact


def changed(path: Path) -> StorageError:
    """Return the error for a file that is not what was written."""
    what = "is not what was written there: the disk or a program changed it"
    return StorageError(what if path.exists() else "vanished", hint=RESUME, where=path)


def _looks_of(path: Path) -> object:
    """Return what tells a file from another, or the same one after it was changed; None if there
    is none.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Follower:
    """The thread behind a writer."""

    def __init__(self, descriptor: int, path: Path, flushed: Callable[[int], None]) -> None:
        self._path = path
        self._flushed = flushed
        self._written: SimpleQueue[int | None] = SimpleQueue()
        self._failed: BaseException | None = None
        self._left = False
        with storage_errors(path, "opening it once more"):
            own = os.dup(descriptor)
        self._thread = threading.Thread(target=self._run, args=(own,), daemon=True)
        self._thread.start()

    def follow(self, position: int) -> None:
        """Let it come up to ``position``.

        Raises:
            StorageError: If it failed.
        """
        self._written.put(position)
        self._check()

    def catch_up(self) -> None:
        """Wait until it has come as far as it was let.

        Raises:
            StorageError: If it failed.
        """
        self._written.put(None)
        self._thread.join()
        self._check()

    def leave(self) -> None:
        """Let it end by itself, soon."""
        self._left = True
        self._written.put(None)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self, descriptor: int) -> None:
        try:
            while (position := self._written.get()) is not None and not self._left:
                with storage_errors(self._path, "fdatasync"):
                    os.fdatasync(descriptor)
                self._flushed(position)
        except BaseException as error:
            self._failed = error
        finally:
            close_quietly(descriptor)
