"""What outputs have in common, wherever they are: that they are begun and left, and their files.

A file is written from its first byte to its last, with its sums on the way.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import xxhash

from flmgrow.storage.checksums import FilePart, FileRecord


class Sink(Protocol):
    """Where the bytes go: to a disk, or to an object store."""

    @property
    def position(self) -> int:
        """How many have gone there."""

    def write(self, data: memoryview) -> None:
        """Append all of ``data`` (flat bytes).

        Raises:
            StorageError: The file system failed.
        """


class OutputFile:
    """One file being written in sequence; made by the output that it belongs to."""

    def __init__(self, file: Sink, size: int, sha256: bool, report: Callable[[int], None]) -> None:
        self._file = file
        self._size = size
        self._report = report
        self._hash = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None
        self._parts: list[FilePart] = []
        self._of_part: xxhash.xxh3_64 | None = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Let what is written in the block have a sum of its own, by which it can be told."""
        start, self._of_part = self._file.position, xxhash.xxh3_64()
        yield
        size, sum_ = self._file.position - start, self._of_part.hexdigest()
        self._parts.append(FilePart(name, start, size, sum_))
        self._of_part = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of ``data`` (C-contiguous).

        Raises:
            StorageError: The file system failed.
        """
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        if self._file.position + view.nbytes > self._size:
            raise ValueError(f"more than the planned {self._size} bytes were written")
        self._hash.update(view)
        if self._sha256 is not None:
            self._sha256.update(view)
        if self._of_part is not None:
            self._of_part.update(view)
        self._file.write(view)
        self._report(view.nbytes)

    def record(self, relative: str) -> FileRecord:
        """Return what is known of the file now that it is whole.

        Raises:
            ValueError: If it is not.
        """
        if self._file.position != self._size:
            raise ValueError(f"{self._file.position} bytes were written, {self._size} planned")
        sha256 = "" if self._sha256 is None else self._sha256.hexdigest()
        sum_ = self._hash.hexdigest()
        return FileRecord(relative, self._size, sum_, sha256, tuple(self._parts))


class BegunOutput:
    """An output that was begun or resumed, and is left at the end of a block.

    Making it sets ``_finished``, the files that are complete, and ``_open``, what leaving it does.
    """

    _finished: dict[str, FileRecord]
    _open: contextlib.ExitStack

    @property
    def finished(self) -> Mapping[str, FileRecord]:
        """Files that are complete, by relative path: earlier runs' at first, then this one's."""
        return MappingProxyType(self._finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
