"""A chunk of a distributed tensor, or a part of one, as a piece of what is read."""

from dataclasses import dataclass, replace
from math import prod
from operator import mul

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpChunk
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.torch_file.strided import read_tensor


@dataclass(frozen=True)
class ChunkPart:
    """A box inside a chunk: its offsets there, and its sizes, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ItemPiece:
    """A piece that is one chunk of a distributed tensor, or a part of it.

    Its item is opened when it is read.
    """

    placement: Placement
    dtype: str
    name: str
    chunk: DcpChunk
    items: DcpItems
    part: ChunkPart | None = None

    def __str__(self) -> str:
        return f"{self.items.folder / self.chunk.file}: {self.name}: chunk {self.chunk.offsets}"

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.chunk.sizes if self.part is None else self.part.sizes)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the piece's bytes from byte ``offset`` on."""
        file, record = self.items.open_item(self.name, self.dtype, self.chunk)
        if self.part is not None:
            start = sum(map(mul, self.part.offsets, record.stride))
            record = replace(record, shape=self.part.sizes, start=record.start + start)
        try:
            read_tensor(file, record, offset, target)
        except BadCheckpointError as error:
            raise error.with_more(f" (it holds {self.name})") from None

    def checksum(self) -> int | None:
        """Chunks tile their array, so there is nothing to compare one with."""
        return None
