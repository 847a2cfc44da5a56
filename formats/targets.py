"""What is to be written, described before any value is computed.

A file is a tree of inert values. The storages in it whose bytes do not come from the source are
filled by arrays: mostly one each; but a flat format puts many into one storage, with gaps between
them, and its storage is then written from front to back like any other. A file may also be made of
the sums of others, taken while these were written: none is read again for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.torch_file.file import TorchFileWriter, source_chunks
from flmgrow.formats.torch_file.values import Storage
from flmgrow.model.states import State
from flmgrow.storage.files import Bytes


@dataclass(frozen=True, eq=False)
class TargetArray:
    """An array to be produced: where it belongs, its dtype, and where in which storage it begins.

    ``start`` counts elements. What no array of a storage fills is zero.
    """

    placement: Placement
    dtype: str
    storage: Storage
    state: State = State.WEIGHT
    start: int = 0

    @property
    def stop(self) -> int:
        """The element behind the last one."""
        return self.start + prod(self.placement.shape)


Fill = Callable[[Storage, Sequence[TargetArray]], Iterator[Bytes]]
"""Produces the bytes of a storage from the arrays that lie in it."""

Sums = Mapping[str, str]
"""The SHA-256 sums of files, in hex, by path."""


@dataclass(frozen=True, eq=False)
class TargetFile:
    """A file to be written: its path below the output folder, its content, its arrays.

    Arrays that share a storage come in the order in which they lie there.
    """

    path: str
    root: object
    arrays: tuple[TargetArray, ...]
    sums_of: ClassVar[Sequence[str]] = ()

    def by_storage(self) -> Mapping[int, list[TargetArray]]:
        """Return the arrays of every storage, by the identity of the storage."""
        result: dict[int, list[TargetArray]] = {}
        for array in self.arrays:
            result.setdefault(id(array.storage), []).append(array)
        return result

    @property
    def total_size(self) -> int:
        """Its size in bytes, known before there is any value."""
        return TorchFileWriter(self.root, lambda _: None).total_size

    def produce(self, write: Callable[[Bytes], object], fill: Fill, sums: Sums) -> None:
        """Write it from front to back; ``fill`` gives the bytes of a storage from its arrays."""
        writer = TorchFileWriter(self.root, write)
        filling = self.by_storage()
        for storage in writer.storages:
            arrays = filling.get(id(storage))
            chunks = source_chunks(storage) if arrays is None else fill(storage, arrays)
            writer.write_storage(storage, chunks)
        writer.finish()


@dataclass(frozen=True)
class TargetBytes:
    """A small file whose content is known."""

    path: str
    data: bytes
    arrays: tuple[TargetArray, ...] = ()
    sums_of: ClassVar[Sequence[str]] = ()

    @property
    def total_size(self) -> int:
        """Its size in bytes."""
        return len(self.data)

    def produce(self, write: Callable[[Bytes], object], fill: Fill, sums: Sums) -> None:
        """Write it."""
        write(self.data)


@dataclass(frozen=True)
class TargetSums:
    """A small file made of the sums of files before it; ``encode`` gives its content.

    It must be equally long for any sums: its size is planned before there are any.
    """

    path: str
    sums_of: tuple[str, ...]
    encode: Callable[[Sums], bytes]
    arrays: tuple[TargetArray, ...] = ()

    @property
    def total_size(self) -> int:
        """Its size in bytes."""
        return len(self.encode(dict.fromkeys(self.sums_of, "0" * 64)))

    def produce(self, write: Callable[[Bytes], object], fill: Fill, sums: Sums) -> None:
        """Write it."""
        write(self.encode(sums))


class NewFile(Protocol):
    """A file to be written, of whatever kind."""

    @property
    def path(self) -> str:
        """Its path below the output folder."""

    @property
    def arrays(self) -> Sequence[TargetArray]:
        """The arrays in it."""

    @property
    def sums_of(self) -> Sequence[str]:
        """The paths of the files, all before it, whose sums it holds."""

    @property
    def total_size(self) -> int:
        """Its size in bytes, known before there is any value."""

    def produce(self, write: Callable[[Bytes], object], fill: Fill, sums: Sums) -> None:
        """Write it from front to back; ``fill`` gives the bytes of a storage from its arrays.

        ``sums`` are those of the files it holds the sums of.
        """
