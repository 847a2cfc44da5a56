"""Reading files in byte ranges from many threads, with a bound on open descriptors.

A checkpoint is read in byte ranges, by many threads, out of hundreds of large files. This module
holds the one way in which input files are opened and read. It promises that

* nothing but a regular file is opened (a FIFO would hang, a device might do anything);
* a range is read whole or refused: a short read never passes for data;
* at most ``MAX_OPEN_FILES`` descriptors are open at once, however many files a checkpoint has;
* a file that changes while it is in use is noticed.

Every failure names the file. What the file system itself reports (input/output errors, too many
open files) is a :class:`StorageError`; everything else is wrong with the input.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from flmgrow.errors import BadCheckpointError, FlmgrowError, StorageError
from flmgrow.storage.file_states import Fingerprint, fingerprint_of, state_of
from flmgrow.storage.open_files import OpenFiles
from flmgrow.storage.remote.path import RemotePath
from flmgrow.text import Found, Text

MAX_OPEN_FILES = 64
PIECE = 1 << 20
"""Bytes read at a time when a range is streamed: small enough to stay in the processor's cache."""

_MISSING_OR_UNFIT = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist: a part of its path is not a folder",
    errno.ELOOP: "is a loop of symbolic links",
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
    errno.ENAMETOOLONG: "has a name that is too long for the file system",
    errno.ENXIO: "is not a regular file",
    errno.ENODEV: "is not a regular file",
}

_LOOK = "check that the path is right and the checkpoint complete"


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first ``count`` bytes of a small file, or all it has.

    Raises:
        OSError: The file system failed.
    """
    with path.open("rb", buffering=0) as file:
        return file.read(count)


_open_files = OpenFiles(MAX_OPEN_FILES)


class ReadOnlyFile:
    """A regular file, read in byte ranges from any number of threads.

    The descriptor may be closed behind the scenes and opened again when it is next needed; a file
    that was replaced in between is refused, as its ranges would no longer mean the same.

    Raises:
        BadCheckpointError: If ``path`` does not exist, may not be read or is not a regular file.
        StorageError: If the file system failed.
    """

    path: Path
    size: int
    fingerprint: Fingerprint

    def __new__(cls, *arguments: object) -> Self:
        """Make what reads the file, wherever it lies."""
        remote = cls is ReadOnlyFile and isinstance(arguments[0], RemotePath)
        return object.__new__(RemoteFile if remote else cls)  # type: ignore[return-value]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._opened_before = False
        with _open_files.borrow(self):
            pass

    def open_descriptor(self) -> int:
        """Open the file and return its descriptor; check that it is (still) the file wanted."""
        with self._refusals():
            # Without O_NONBLOCK, opening a FIFO waits for a writer that may never come.
            number = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with self._refusals():
                status = os.fstat(number)
            self._accept(status)
        except BaseException:
            os.close(number)
            raise
        return number

    def _accept(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._not_a_file(
                "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            )
        found = fingerprint_of(status)
        if not self._opened_before:
            self.fingerprint = found
            self.size = found.size
            self._opened_before = True
        elif found != self.fingerprint:
            raise self._changed_error()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what the operating system says into a refusal that names the file."""
        try:
            yield
        except OSError as error:
            raise self._refusal(error) from None
        except ValueError:  # a NUL character in the path
            raise BadCheckpointError(
                "is not a possible file name", "correct the path", where=self.path
            ) from None

    def _refusal(self, error: OSError) -> FlmgrowError:
        found = _MISSING_OR_UNFIT.get(error.errno or 0)
        if found is not None:
            return BadCheckpointError(found, _LOOK, where=self.path)
        hint = "check the disk or the mount, then run the same command again"
        return StorageError(f"cannot be read: {error.strerror}", hint, where=self.path)

    def _not_a_file(self, kind: str) -> BadCheckpointError:
        return BadCheckpointError(Text("is ", Found(kind)), _LOOK, where=self.path, wanted="a file")

    def _changed_error(self) -> BadCheckpointError:
        return BadCheckpointError(
            "changed while it was being read",
            "wait until nothing writes to the checkpoint, then run the command again",
            where=self.path,
        )

    def read(self, offset: int, count: int) -> bytes:
        """Return the ``count`` bytes at ``offset``.

        Raises:
            BadCheckpointError: If the file ends before.
            StorageError: If the file system failed.
        """
        self._check_range(offset, count)  # before memory for a hostile count is asked for
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``; errors are those of :meth:`read`."""
        target = target.cast("B")
        self._check_range(offset, target.nbytes)
        done = 0
        with _open_files.borrow(self) as number:
            while done < target.nbytes:  # a read may legally return less than it was asked for
                try:
                    got = os.preadv(number, [target[done:]], offset + done)
                except OSError as error:
                    raise self._refusal(error) from None
                if not got:
                    raise self._truncated(offset, target.nbytes, offset + done)
                done += got

    def chunks(self, offset: int, count: int, piece: int = PIECE) -> Iterator[memoryview]:
        """Stream ``count`` bytes at ``offset`` in pieces of at most ``piece`` bytes.

        All pieces lie in one buffer: each is valid until the next one is asked for.
        """
        self._check_range(offset, count)
        buffer = memoryview(bytearray(min(piece, count)))
        for start in range(0, count, piece):
            part = buffer[: min(piece, count - start)]
            self.read_into(offset + start, part)
            yield part

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError when the file at this path is not as it was when opened."""
        with self._refusals():
            found = fingerprint_of(self.path.stat())
        if found != self.fingerprint:
            raise self._changed_error()

    def close(self) -> None:
        """Give the descriptor back. A later read opens the file again."""
        _open_files.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_range(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self._truncated(offset, count, self.size)

    def _truncated(self, offset: int, count: int, end: int) -> BadCheckpointError:
        return BadCheckpointError(
            f"truncated: wanted {count} bytes at {offset}, but the file ends at {end}",
            "copy the file again from where it was complete",
            where=self.path,
        )


def read_if_there(path: Path, most: int) -> bytes | None:
    """Return what a small file holds, None if there is nothing of that name.

    Raises:
        BadCheckpointError: If there is something, but no file of at most ``most`` bytes: a link to
            nothing is no reason to go on as if nothing had been said.
    """
    if not os.path.lexists(path):
        return None
    with ReadOnlyFile(path) as file:
        if file.size > most:
            what = Text("has ", Found(file.size), " bytes")
            hint = "restore it from a copy"
            raise BadCheckpointError(what, hint, where=path, wanted=f"at most {most}")
        return file.read(0, file.size)


class RemoteFile(ReadOnlyFile):
    """An object in an object store, read as a file is: each range is one of the object as it was
    listed, or refused.
    """

    path: RemotePath

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        with self._refusals():
            try:
                self._ranges = path.ranges
            except IsADirectoryError:
                raise self._not_a_file("a folder") from None
        self.size = self._ranges.found.size

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``; errors are those of a file."""
        target = target.cast("B")
        self._check_range(offset, target.nbytes)
        self._ranges.read_into(offset, target)

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError when the object is not as it was listed."""
        if state_of(self.path) != self._ranges.found:
            raise self._changed_error()

    def close(self) -> None:
        """Keep none of its bytes."""
        self._ranges.close()


class MemoryFile(ReadOnlyFile):
    """Bytes in memory, read as a file is; ``name`` stands for it in messages."""

    def __init__(self, data: bytes, name: str) -> None:
        self.path = Path(name)
        self.size = len(data)
        self._data = memoryview(data)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``; errors are those of a file."""
        target = target.cast("B")
        self._check_range(offset, target.nbytes)
        target[:] = self._data[offset : offset + target.nbytes]

    def check_unchanged(self) -> None:
        """Do nothing: nobody else has them."""

    def close(self) -> None:
        """Do nothing."""
