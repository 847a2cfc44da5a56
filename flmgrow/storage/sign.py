"""Small files in which ranks tell each other things: one line, replaced in place.

In place, and not by renaming: where a folder is mounted from elsewhere, what lies under a new name
may be seen late, while opening a file that was there before asks its server. A line carries its own
checksum, so that one that is half replaced is told from a whole one.
"""

import contextlib
import json
import os
import time
import zlib
from pathlib import Path

from flmgrow.storage.durable import close_quietly, storage_errors, write_all
from flmgrow.storage.lock import try_lock
from flmgrow.storage.strict_json import Json

OWN_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

BLINK = 5.0
"""Seconds between two looks that count as looking; ranks look every second or more often."""


class Sign:
    """A file that this process alone writes; it is locked until it is closed, where it can be.

    Raises:
        BlockingIOError: If another process has it.
        StorageError: The file system failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.ExitStack() as undo:
            undo.enter_context(storage_errors(path, "opening"))
            self._descriptor = os.open(path, OWN_FILE, 0o600)
            undo.callback(self.close)
            if try_lock(self._descriptor) is not False:
                os.ftruncate(self._descriptor, 0)  # nobody says any more what is there
                undo.pop_all()
                return
        raise BlockingIOError

    def show(self, content: Json) -> None:
        """Replace what the file says.

        Raises:
            StorageError: The file system failed.
        """
        text = json.dumps(content).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        with storage_errors(self.path, "writing"):
            write_all(self._descriptor, memoryview(line), 0)
            os.fsync(self._descriptor)  # to its server, if it has one

    @property
    def lost(self) -> bool:
        """Whether the file was removed, or another one put in its place."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return True

    def close(self) -> None:
        """Close the file, and unlock it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_quietly(descriptor)


def read_sign(path: Path) -> Json | None:
    """Return what a sign says; None if there is none, or it is being replaced just now."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    line, newline, _ = content.partition(b"\n")
    checksum, _, text = line.partition(b" ")
    if not newline or checksum != b"%08x" % zlib.crc32(text):
        return None
    found: Json = json.loads(text)
    return found


def is_held(path: Path) -> bool:
    """Whether a living process of this machine has the sign ``path``.

    Where there are no locks, it is the process that the sign names.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        free = try_lock(descriptor, shared=True)  # others may be looking just now
    except OSError:
        return True
    finally:
        close_quietly(descriptor)
    return _lives((read_sign(path) or {}).get("process")) if free is None else not free


def this_process() -> str:
    """Return a word for this process, and for its container if it has a numbering of its own."""
    with contextlib.suppress(OSError):
        return f"{os.getpid()} {Path('/proc/self/ns/pid').readlink()}"
    return f"{os.getpid()} "


def _lives(process: str | None) -> bool:
    """Whether a process may be alive: one of another container may always."""
    if process is None:
        return False
    number, _, numbering = process.partition(" ")
    same = numbering == this_process().partition(" ")[2]
    return not same or Path("/proc", number).exists()


def this_machine() -> str:
    """Return a word for this machine, another one after it was started anew."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{os.uname().nodename} {boot}"


class Other:
    """Another rank, as far as its sign tells.

    ``fresh``: it lives, or has lived since the first look. ``quiet``: for how many seconds this
    process has seen the same sign. While it did not look itself, as it was suspended or its disk
    did not answer, the others may have been no better off: of the time between two looks, no more
    than ``BLINK`` counts.
    """

    def __init__(self, path: Path) -> None:
        self.content: Json = {}
        self.fresh = False
        self.quiet = 0.0
        self._path = path
        self._looked = time.monotonic()

    def look(self) -> Json:
        """Return what its sign says; an empty one if there is none.

        Whoever takes the place of a process that has ended wipes off what that one said, but may
        not have come to it yet.
        """
        held = not self.fresh and is_held(self._path)
        found = read_sign(self._path)
        now = time.monotonic()
        self.quiet += min(now - self._looked, BLINK)
        self._looked = now
        if found is not None and found != self.content:
            here = held and found["host"] == this_machine() and _lives(found["process"])
            self.fresh = self.fresh or here or bool(self.content)
            self.content = found
            self.quiet = 0.0
        return self.content

    @property
    def died(self) -> bool:
        """Whether its process has ended, where that can be known."""
        return self.content.get("host") == this_machine() and not is_held(self._path)
