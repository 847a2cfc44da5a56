"""What is to be written, described before any value is computed.

A file has buffers whose bytes do not come from the source. They are
filled by arrays: mostly one each; but a flat format puts many into one buffer, with gaps between
them, which is then written from front to back like any other. A file may also be made of
the sums of others, taken while these were written: none is read again for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.torch_file.file import source_chunks
from flmgrow.formats.torch_file.file_writer import TorchFileWriter
from flmgrow.model.states import State
from flmgrow.storage.crc import Bytes


class Buffer(Protocol):
    """A run of bytes in a file to be written, known by its identity."""

    @property
    def nbytes(self) -> int:
        """The size in bytes."""


@dataclass(frozen=True, eq=False)
class OwnBuffer:
    """A buffer that is one array and nothing else."""

    nbytes: int


@dataclass(frozen=True, eq=False)
class TargetArray:
    """An array to be produced: where it belongs, its dtype, and where in which buffer it begins.

    ``start`` counts elements. What no array of a buffer fills is zero.
    """

    placement: Placement
    dtype: str
    buffer: Buffer
    state: State = State.WEIGHT
    start: int = 0

    @classmethod
    def alone(cls, placement: Placement, dtype: str, state: State = State.WEIGHT) -> "TargetArray":
        """Return an array with a buffer of its own."""
        nbytes = prod(placement.shape) * DTYPES[dtype].itemsize
        return cls(placement, dtype, OwnBuffer(nbytes), state)

    @property
    def stop(self) -> int:
        """The element behind the last one."""
        return self.start + prod(self.placement.shape)


FillBuffer = Callable[[Buffer, Sequence[TargetArray]], Iterator[Bytes]]
"""Produces the bytes of a buffer from the arrays that lie in it."""

Sums = Mapping[str, str]
"""The SHA-256 sums of files, in hex, by path."""


@dataclass(frozen=True, eq=False)
class TargetFile:
    """A file to be written: its path below the output folder, its content, its arrays.

    Arrays that share a buffer come in the order in which they lie there.
    """

    path: str
    root: object
    arrays: tuple[TargetArray, ...]
    sums_of: ClassVar[Sequence[str]] = ()
    names_damage: ClassVar[bool] = True

    def by_buffer(self) -> Mapping[int, list[TargetArray]]:
        """Return the arrays of every buffer, by the identity of the buffer."""
        result: dict[int, list[TargetArray]] = {}
        for array in self.arrays:
            result.setdefault(id(array.buffer), []).append(array)
        return result

    @property
    def total_size(self) -> int:
        """The size of the file in bytes, known before there is any value."""
        return TorchFileWriter(self.root, lambda _: None).total_size

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Write it from front to back; ``fill`` gives the bytes of a buffer from its arrays."""
        writer = TorchFileWriter(self.root, write)
        filling = self.by_buffer()
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
    names_damage: ClassVar[bool] = True

    @property
    def total_size(self) -> int:
        """The size in bytes."""
        return len(self.data)

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
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
    names_damage: ClassVar[bool] = True

    @property
    def total_size(self) -> int:
        """The size in bytes."""
        return len(self.encode(dict.fromkeys(self.sums_of, "0" * 64)))

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Write it."""
        write(self.encode(sums))


class PlannedFile(Protocol):
    """A file to be written, of whatever kind."""

    @property
    def path(self) -> str:
        """The path of the file below the output folder."""

    @property
    def arrays(self) -> Sequence[TargetArray]:
        """The arrays in it."""

    @property
    def sums_of(self) -> Sequence[str]:
        """The paths of the files, all before it, whose sums it holds."""

    @property
    def names_damage(self) -> bool:
        """Whether it keeps sums of its tensors, as torch's files do, so that damage has a name."""

    @property
    def total_size(self) -> int:
        """The size of the file in bytes, known before there is any value."""

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Write it from front to back; ``fill`` gives the bytes of a buffer from its arrays.

        ``sums`` are those of the files it holds the sums of.
        """
