"""What tells one state of a file, or of an object in a store, from another."""

import os
from pathlib import Path
from typing import NamedTuple

from flmgrow.storage.remote.path import RemotePath
from flmgrow.storage.remote.store import FoundObject


class Fingerprint(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size: int
    mtime_ns: int
    ino: int
    dev: int


FileState = Fingerprint | FoundObject
"""The same of a file or an object."""


def known_state(path: Path) -> FileState:
    """Return the state that a file is in, or that an object was listed in.

    Raises:
        OSError: The file system failed.
    """
    return path.ranges.found if isinstance(path, RemotePath) else fingerprint_of(path.stat())


def state_of(path: Path) -> FileState | None:
    """Return the state that a file or an object is in now, None for an object that is gone.

    Raises:
        OSError: The file system failed.
        StorageError: The file system failed.
    """
    return path.look() if isinstance(path, RemotePath) else fingerprint_of(path.stat())


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint in what the file system says."""
    return Fingerprint(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
