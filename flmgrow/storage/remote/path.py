"""Paths that stand for objects, so that code made for folders reads an object store unchanged.

Formats walk folders: they list them, look for names, go up to a parent. An object store has no
folders, only keys. So what it was found to hold is laid out as a likeness on the disk, of folders
and empty files, and a :class:`RemotePath` leads the operating system there; but its text is the
address, its size and time are the object's, and its bytes come from the store alone. Code that
opened a file of the likeness by itself would find it empty, and say so; it could not take anything
else for what is in the store.
"""

import contextlib
import errno
import io
import os
import posixpath
from collections.abc import Callable, Generator, Iterable
from pathlib import Path, PosixPath
from typing import Any, Self

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.storage.remote import marker, store, writing
from flmgrow.storage.remote.addresses import Address, address_of, is_remote
from flmgrow.storage.remote.likeness import Likeness, address_text
from flmgrow.storage.remote.ranges import ObjectRanges
from flmgrow.storage.remote.store import FoundObject

_likeness = Likeness()


class RemotePath(PosixPath):
    """A path to an object, or to a folder of objects, in an object store; it can only be read."""

    def __str__(self) -> str:
        return address_text(self) if is_remote(self) else self._name

    def __fspath__(self) -> str:
        if not is_remote(self):
            return self._name
        _likeness.list_what_leads_to(self.parent)
        return str(_likeness.place(self))

    @property
    def _name(self) -> str:
        """The text of a path that is relative to one in a store."""
        return "/".join(self.parts) or "."

    @property
    def found(self) -> FoundObject | None:
        """What was found there, if it is an object."""
        path = self.resolve()
        _likeness.list_what_leads_to(path.parent)
        return _likeness.objects.get(str(path))

    def look(self) -> FoundObject | None:
        """Return what is there now, if it is an object.

        Raises:
            StorageError: The store failed, or does not answer.
        """
        return store.look(address_of(self.resolve()))

    @property
    def ranges(self) -> ObjectRanges:
        """The object's bytes.

        Raises:
            FileNotFoundError: There is nothing.
            IsADirectoryError: It is a folder.
        """
        if (found := self.found) is None:
            self.stat()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        return ObjectRanges(address_of(self.resolve()), found)

    def replace_object(self, data: bytes) -> None:
        """Put a small object in the place of the one that was found here, if any, and know it.

        Raises:
            BadCheckpointError: If that is another one now.
            StorageError: The store failed, or does not answer.
        """
        address = address_of(self.resolve())
        known, now = self.found, store.look(address)
        if known != now:
            raise store.changed_error(address)
        writing.put_small(address, data, now)
        if (found := store.look(address)) is not None:
            _likeness.add(address, {address.key: found})

    def resolve(self, strict: bool = False) -> Self:
        """Return this path without ``..``; there are no links."""
        return type(self)(posixpath.normpath("/".join(self.parts)))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and time of an object; what else there is, is the likeness's.

        Raises:
            OSError: The file system failed.
        """
        status = super().stat(follow_symlinks=follow_symlinks)
        if (found := self.found) is None:
            return status
        seconds = found.modified.timestamp()
        values = [*status[:6], found.size, int(seconds), int(seconds), int(seconds)]
        exact = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), seconds)
        nanoseconds = {f"{name}_ns": int(seconds * 1e9) for name in exact}
        return os.stat_result(values, {**exact, **nanoseconds})

    def open(self, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        """Open an object to be read, from front to back as a rule.

        Raises:
            OSError: The file system failed.
            FlmgrowError: What the store raises.
        """
        if set(mode) & set("wax+"):
            raise io.UnsupportedOperation(f"{self}: is in an object store, and is not opened so")
        stream = io.BufferedReader(_Stream(self.ranges))
        return stream if "b" in mode else io.TextIOWrapper(stream, *text, **more)

    def iterdir(self) -> Generator[Self, None, None]:
        """Yield what is in a folder.

        Raises:
            OSError: The file system failed.
        """
        _likeness.list_what_leads_to(self)
        return (self / name for name in os.listdir(self))  # noqa: PTH208

    def glob(self, pattern: str) -> Generator[Self, None, None]:
        """Yield what fits ``pattern`` below a folder."""
        return self._mapped(lambda here: here.glob(pattern))

    def rglob(self, pattern: str) -> Generator[Self, None, None]:
        """Yield what fits ``pattern`` anywhere below a folder."""
        return self._mapped(lambda here: here.rglob(pattern))

    def _mapped(self, find: Callable[[Path], Iterable[Path]]) -> Generator[Self, None, None]:
        _likeness.list_all_in(self)
        here = Path(os.fspath(self))
        return (self / path.relative_to(here) for path in find(here))


class _Stream(io.RawIOBase):
    """An object from front to back, or from where one seeks to."""

    def __init__(self, ranges: ObjectRanges) -> None:
        self._ranges = ranges
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = self._ranges.found.size
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        count = max(0, min(view.nbytes, self._ranges.found.size - self._position))
        self._ranges.read_into(self._position, view[:count])
        self._position += count
        return count


def remote_path(path: Path) -> RemotePath:
    """Return ``path``, an address, as one; nothing is looked for.

    Raises:
        UsageError: What was asked for cannot be.
    """
    return RemotePath(str(address_of(path)))


def open_folder(path: Path) -> RemotePath:
    """Return ``path``, an address, as a path to what is there now.

    What lies right beside it is known as well, if it may be listed: a checkpoint's parts may be
    told from that.

    Raises:
        BadCheckpointError: If there is nothing, or a folder that is still being written.
        StorageError: The store failed, or does not answer.
        UsageError: What was asked for cannot be.
    """
    address = address_of(path)
    folders, objects = store.list_beside(address)
    if not folders and not objects and not address.is_bucket:
        alone = store.look(address)
        objects = {} if alone is None else {address.key: alone}
    if not folders and not objects:
        raise BadCheckpointError(
            "does not exist: no key begins so",
            "check bucket and key, and the endpoint if one is set",
            where=address,
        )
    _likeness.forget(address)
    _know(address, folders, objects)
    if not address.is_bucket:
        with contextlib.suppress(StorageError):  # it may be allowed to list below its key alone
            folders, objects = store.list_beside(address.parent)
            _know(address.parent, folders, objects)
    return remote_path(path)


def _know(address: Address, folders: list[str], objects: dict[str, FoundObject]) -> None:
    """Know what lies right in ``address``, which must not be half done."""
    mark = address.below(marker.FOLDER)
    if mark.key in folders:
        marker.refuse_incomplete(address, store.list_below(mark))
    _likeness.add(address, objects, [folder for folder in folders if folder != mark.key])
