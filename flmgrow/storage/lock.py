"""Locking a folder against a second run.

Two runs must not write one output. The lock is an advisory lock on a file: the kernel releases it
when its process dies, however it dies, so there are no stale locks. The file's text names the
process, for the message only. Some file systems of clusters know no locks: ``lease.py`` then.
"""

import errno
import fcntl
import os
import time
from pathlib import Path

from flmgrow.storage.durable import close_quietly, storage_errors, write_all

OWN_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
JUST_FINISHING = "just finishing"  # it has removed the lock, the last thing but one that it does


NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system answers that knows no locks, or whose server does not."""


class LockHeldError(Exception):
    """Another process holds the lock; ``str(error)`` says which, as far as is known."""


def try_lock(descriptor: int, shared: bool = False) -> bool | None:
    """Lock an open file; return whether nobody else has it, or None if there are no locks here.

    Raises:
        OSError: The file system failed.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def take_lock(path: Path) -> int:
    """Lock the file ``path`` and return its descriptor; closing that, or dying, releases it.

    Raises:
        LockHeldError: If another process has it.
        StorageError: If it cannot be locked at all: of an error in ``NO_LOCKS`` if nothing can be
            here.
    """
    with storage_errors(path, "locking"):
        try:
            descriptor = os.open(path, OWN_FILE, 0o600)
        except FileNotFoundError:
            raise LockHeldError(JUST_FINISHING) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, path):  # removed after we had opened it
                raise LockHeldError(JUST_FINISHING)
            owner = f"pid {os.getpid()} on {os.uname().nodename}\n".encode()
            write_all(descriptor, memoryview(owner), 0)
            os.ftruncate(descriptor, len(owner))
        except BlockingIOError:
            holder = _holder(descriptor)
            close_quietly(descriptor)
            raise LockHeldError(holder) from None
        except BaseException:
            close_quietly(descriptor)
            raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Return who holds the lock, waiting a moment for one that has only just taken it."""
    for _ in range(20):
        line, newline, _ = os.pread(descriptor, 200, 0).partition(b"\n")
        if newline:
            return line.decode(errors="replace")
        time.sleep(0.01)
    return "pid unknown"
