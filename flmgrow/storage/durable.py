"""Files written to the disk for certain, with failures as StorageError.

What a program wrote is not yet on the disk, and every call that puts it there may fail half way.

A process may be killed between any two calls, a disk may be full at any write, and a power cut
forgets whatever was not fsynced: the bytes of a file, and also its very name in the folder. The
helpers here and in ``folders.py`` alone change the disk for an output folder, and keep to rules:

1. A new file is written as ``NAME.part``: its space is reserved, the bytes are written to the last
   one, fsynced, and only then renamed to ``NAME``; then the folder is fsynced too.
2. An fsync that failed is final. The kernel has already dropped the pages it could not write, so a
   second fsync of the same file would succeed and lie. The file is written anew by the next run.
3. A folder is renamed only onto a name that does not exist.
4. Every failure of the file system is a :class:`StorageError` that names the file.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from flmgrow.errors import StorageError
from flmgrow.storage.remote.path import RemotePath

PART = ".part"
AN_HOUR = 3600.0  # in seconds
RESUME = "run the same command again: it resumes"
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EIO: "check the disk and the system log",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOTDIR: "name another place: a file lies where a folder is wanted",
    errno.EISDIR: "name another place: a folder lies where a file is wanted",
    errno.ENAMETOOLONG: "give a shorter name",
}
NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR}
NO_RENAME = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMFILE, errno.EXDEV}
"""What mounts of object stores answer that cannot rename a file or a folder."""
NO_FLAGGED_RENAME = {errno.ENOSYS, errno.EINVAL}
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
AT_FDCWD = -100
RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "")
        raise StorageError(
            f"{doing} failed: {error.strerror or error}",
            hint=f"{remedy}, then {RESUME}" if remedy else RESUME,
            where=path,
        ) from error


class NewFile:
    """A file being written from its first byte to its last; made by :func:`new_file`."""

    read_back = ""  # the sum of what the disk gave back, if it was asked: read_back.py

    def __init__(self, descriptor: int, path: Path) -> None:
        self.position = 0
        self._descriptor = descriptor
        self._path = path

    def write(self, data: memoryview) -> None:
        """Append all of ``data`` (flat bytes).

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._path, f"writing at byte {self.position}"):
            write_all(self._descriptor, data, self.position)
        self.position += data.nbytes

    def finish(self) -> None:
        """Put the bytes on the disk and close.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._path, "fsync"):
            os.fsync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, -1
        with storage_errors(self._path, "closing"):
            os.close(descriptor)

    def abandon(self) -> None:
        """Close, if it is not closed yet, what will not be finished."""
        if self._descriptor >= 0:
            close_quietly(self._descriptor)
        self._descriptor = -1


@contextlib.contextmanager
def new_file(
    path: Path, size: int, in_place: bool = False, kind: type[NewFile] = NewFile
) -> Iterator[NewFile]:
    """Give a file of ``size`` bytes to write; after the block it is on the disk under ``path``.

    If the block or anything else fails, ``path`` is as it was; but ``in_place``, it is gone or not
    whole.

    Raises:
        StorageError: The file system failed.
    """
    part = path if in_place else path.with_name(path.name + PART)
    with storage_errors(part, "creating"):
        part.unlink(missing_ok=True)  # never reuse one whose fsync may have failed
    with _written(part, path, size, kind) as file:
        yield file


@contextlib.contextmanager
def _written(part: Path, path: Path, size: int, kind: type[NewFile] = NewFile) -> Iterator[NewFile]:
    """Give the new file ``part`` to write, which becomes ``path`` after the block."""
    with storage_errors(part, "creating"):
        descriptor = os.open(part, NEW_FILE, 0o666)
    file = kind(descriptor, part)
    try:
        reserve(descriptor, part, size)
        yield file
        file.finish()
    finally:
        file.abandon()
    if part != path:
        with storage_errors(part, "renaming"):
            _rename(part, path)
    sync_folder(path.parent)


def _rename(part: Path, path: Path) -> None:
    """Rename a file, or copy it where the file system cannot.

    Raises:
        OSError: The file system failed.
    """
    try:
        part.rename(path)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        path.unlink(missing_ok=True)
        shutil.copyfile(part, path)
        _sync(path, os.O_WRONLY | os.O_NOFOLLOW)
        part.unlink()


def _sync(path: Path, flags: int) -> None:
    """Put what is at ``path`` on the disk.

    Raises:
        OSError: The file system failed.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def write_small(path: Path, data: bytes) -> None:
    """Write a small file whole, or leave ``path`` as it was.

    Several processes may write it at once: each has a part of its own, and the last one counts.
    Parts that somebody left here who was killed are removed once they are an hour old, by the
    clock of the file system: that of another machine may be wrong.

    Raises:
        StorageError: The file system failed.
        BadCheckpointError: If an object is another one now.
    """
    if isinstance(path, RemotePath):
        path.replace_object(data)
        return
    part = path.with_name(f"{path.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        with _written(part, path, len(data), NewFile) as file:
            file.write(memoryview(data))
            _remove_old_parts(path, part)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _remove_old_parts(path: Path, new: Path) -> None:
    """Remove parts of ``path`` that are much older than the part ``new``."""
    own = re.compile(rf"{re.escape(path.name[:200])}\.\d+-[0-9a-f]{{8}}{re.escape(PART)}")
    parts: list[Path] = []
    now = 0.0
    with contextlib.suppress(OSError):  # nothing that must be done
        now = new.stat().st_mtime
        parts = [each for each in path.parent.iterdir() if own.fullmatch(each.name)]
    for part in parts:
        with contextlib.suppress(OSError):  # its writer may be done with it by now
            if now - part.stat().st_mtime > AN_HOUR:
                part.unlink()


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of ``data`` at ``position``, however little each call takes.

    Raises:
        OSError: The file system failed.
    """
    while data.nbytes:
        try:
            written = os.pwrite(descriptor, data, position)
        except InterruptedError:
            continue
        if written == 0:
            raise OSError(errno.EIO, "the file system took no bytes")
        data = data[written:]
        position += written


def reserve(descriptor: int, path: Path, size: int) -> None:
    """Reserve ``size`` bytes, so that a full disk is found before the work and not after it.

    This is fallocate(2) and not posix_fallocate, which writes the whole file once where the file
    system cannot reserve; there it is left out.

    Raises:
        StorageError: The file system failed.
    """
    if size == 0:
        return
    with storage_errors(path, f"reserving {size} bytes"):
        try:
            _call_libc("fallocate", descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size))
        except OSError as error:
            if error.errno not in NO_RESERVATION:
                raise


def rename_to_new(source: Path, target: Path) -> bool:
    """Rename ``source`` to ``target``; return False if ``target`` exists.

    Where the file system knows no RENAME_NOREPLACE the name is looked up first; the caller's lock
    then keeps other runs of this tool away, but not other programs.

    Raises:
        StorageError: The file system failed.
    """
    with storage_errors(source, f"renaming to {target}"):
        try:
            old, new = os.fsencode(source), os.fsencode(target)
            _call_libc("renameat2", AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            if error.errno not in NO_FLAGGED_RENAME:
                raise
            if os.path.lexists(target):
                return False
            source.rename(target)
    return True


def _call_libc(name: str, *arguments: object) -> None:
    """Call a function of the C library that Python does not offer.

    Raises:
        OSError: The file system failed.
    """
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk.

    Raises:
        StorageError: The file system failed.
    """
    with storage_errors(folder, "fsync"):
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def close_quietly(descriptor: int) -> None:
    """Close where a failure loses nothing: nothing was written, or it is dropped, or fsynced."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
