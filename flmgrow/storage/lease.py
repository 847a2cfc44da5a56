"""Keeping a second run away where the file system knows no locks.

Lustre mounted without ``flock``, NFS without its lock daemon and most mounts of object stores
refuse to lock a file. There a run shows that it lives instead, in a sign (``sign.py``) that changes
every second; one that does not is nobody's. That is weaker than a lock: of two runs that begin
in the same seconds, the one that showed itself last goes on and the other stops, but a run that
stood still for longer than the others look (``WATCH``) has lost its lease. It finds out with its
next beat, and whoever asks (:meth:`Lease.check`) is told.
"""

import contextlib
import secrets
import threading
import time
from pathlib import Path

from flmgrow.errors import StorageError
from flmgrow.storage.lock import LockHeldError
from flmgrow.storage.sign import Other, Sign, read_sign, this_machine, this_process

BEAT = 1.0
"""Seconds between two changes of the sign."""

WATCH = 3.5
"""Seconds in which a sign that belongs to a run changes."""


class Lease:
    """A sign at ``path`` that says whose the folder around it is, until :meth:`close`.

    Raises:
        LockHeldError: If another run shows that it lives.
        StorageError: The file system failed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._word = secrets.token_hex(8)
        self._beats = 0
        self._lost = False
        self._ending = threading.Event()
        self._watch_other()
        try:
            self._sign = Sign(path)
        except BlockingIOError:  # there are locks, and somebody has this one
            raise LockHeldError(_holder(read_sign(path) or {})) from None
        try:
            self._show()
            for _ in range(2):
                time.sleep(BEAT)
                self._confirm()
        except BaseException:
            self._sign.close()
            raise
        self._thread = threading.Thread(target=self._live, name="flmgrow lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LockHeldError if another run has taken the folder over."""
        if self._lost:
            raise LockHeldError(_holder(read_sign(self._path) or {}))

    def close(self) -> None:
        """Let others have it at once."""
        self._ending.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(StorageError):  # others wait a moment, then
                self._show(ended=True)
        self._sign.close()

    def _watch_other(self) -> None:
        """Wait until the sign that is there has been still for long enough."""
        other = Other(self._path)
        begun = time.monotonic()
        while other.look() and not other.content["ended"] and not other.died:
            if other.fresh and other.content["word"] != self._word:
                raise LockHeldError(_holder(other.content))
            if time.monotonic() - begun > WATCH:
                return
            time.sleep(BEAT / 4)

    def _show(self, ended: bool = False) -> None:
        self._beats += 1
        self._sign.show(
            {
                "word": self._word,
                "host": this_machine(),
                "process": this_process(),
                "beat": self._beats,
                "ended": ended,
            }
        )

    def _confirm(self) -> None:
        """Raise LockHeldError if another run has put its word there."""
        for _ in range(20):
            found = read_sign(self._path)
            if found is not None:
                if found["word"] == self._word:
                    return
                raise LockHeldError(_holder(found))
            time.sleep(BEAT / 20)  # it is being replaced
        raise LockHeldError("pid unknown")

    def _live(self) -> None:
        while not self._ending.wait(BEAT):
            try:
                self._confirm()
                self._show()
            except LockHeldError:
                self._lost = True
                return
            except StorageError:
                continue  # the disk may answer again


def _holder(content: dict[str, str]) -> str:
    process, host = (content.get(key, "").partition(" ")[0] for key in ("process", "host"))
    return f"pid {process or 'unknown'}" + (f" on {host}" if host else "")
