"""A disk that can be cut off from its power: ext4 in a file, a copy of which is what it holds.

With ``commit=300`` nothing reaches the file but what an fsync sends, for as long as a run takes. A
copy of the file, taken when the run was killed, is then what a power cut would have left, and
mounting it is the power coming back. It takes root, and loop devices.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = "32M"


def _do(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def can_cut_power(folder: Path) -> bool:
    """Return whether such a disk can be made here."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        return False
    with suppress(subprocess.CalledProcessError, OSError):
        disk = Disk(folder)
        with disk.on():
            return True
    return False


class Disk:
    """A disk in ``folder``, mounted at ``live`` while it is on."""

    def __init__(self, folder: Path) -> None:
        self.live, self.after = folder / "live", folder / "after"
        self._blank, self._image, self._copy = (
            folder / name for name in ("blank", "image", "copy")
        )
        for each in (self.live, self.after):
            each.mkdir(exist_ok=True)
        if not self._blank.exists():
            _do("truncate", "-s", SIZE, self._blank)
            lazy = "lazy_itable_init=0,lazy_journal_init=0"
            _do("mkfs.ext4", "-q", "-E", lazy, self._blank)

    @contextmanager
    def on(self) -> Iterator[Path]:
        """Give a new, empty disk."""
        _do("cp", "--sparse=always", self._blank, self._image)
        _do("mount", "-o", "loop,commit=300", self._image, self.live)
        try:
            yield self.live
        finally:
            _do("umount", self.live)

    @contextmanager
    def cut(self) -> Iterator[Path]:
        """Give what is left of the disk that is on, were its power cut now."""
        _do("cp", "--sparse=always", self._image, self._copy)
        _do("mount", "-o", "loop", self._copy, self.after)
        try:
            yield self.after
        finally:
            _do("umount", self.after)
