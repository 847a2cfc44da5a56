"""A disk that is full from some moment on: whatever takes space then fails, and removing does not.

The moment is a number of calls that take space below a folder, so that each of them can be the
first to fail; but what is written to one file in a row counts once.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flmgrow.storage import durable


class Disk:
    """How many calls have taken space below ``folder``; those behind the first ``room`` fail."""

    def __init__(self, folder: Path, room: int) -> None:
        self._below, self._room = f"{folder}/", room
        self.calls = 0
        self._last = ("", "")

    @property
    def met(self) -> bool:
        """Whether a call has failed."""
        return self.calls > self._room

    def take(self, call: str, where: object) -> None:
        """Count a call on a path or a descriptor. Raises OSError if the disk is full."""
        path = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else where
        if str(path).startswith(self._below):
            self.calls += (call, str(path)) != self._last
            self._last = (call, str(path))
            if self.met:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk(folder: Path, room: int) -> Iterator[Disk]:
    """Let the disk below ``folder`` be full after so many calls that take space there."""
    disk = Disk(folder, room)

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def one(where: object, *rest: Any, **named: Any) -> Any:
            disk.take(name, where)
            return call(where, *rest, **named)

        return one

    def opened(path: object, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            disk.take("open", path)
        return own_open(path, flags, *rest, **named)  # type: ignore[arg-type]

    def called(name: str, *arguments: Any) -> None:
        where = arguments[0] if name == "fallocate" else os.fsdecode(arguments[3])
        disk.take(name, where)
        own_call(name, *arguments)

    own_open, own_call = os.open, durable._call_libc
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pwrite", "fsync", "mkdir", "rename", "replace"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(os, "open", opened)
        patch.setattr(durable, "_call_libc", called)
        yield disk
