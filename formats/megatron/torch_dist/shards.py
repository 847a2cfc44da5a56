"""Shards of a distributed checkpoint that are to be written, and the list of what is in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from flmgrow.formats.dcp.metadata import DcpChunk, DcpObject, DcpTensor
from flmgrow.formats.dcp.writer import DcpFilePlan, NewChunk, NewObject, metadata_bytes
from flmgrow.formats.targets import FillBuffer, Sums, TargetArray
from flmgrow.storage.crc import Bytes

Entry = tuple[NewObject, None] | tuple[NewChunk, TargetArray | bytes]
"""An item of a shard, and for a chunk the array that it is, or its bytes where they are known."""


@dataclass(frozen=True, eq=False)
class DcpShard:
    """A shard to be written: its path, and its items in order, each with what is behind it."""

    path: str
    entries: tuple[Entry, ...]
    sums_of: ClassVar[Sequence[str]] = ()
    names_damage: ClassVar[bool] = True

    @cached_property
    def arrays(self) -> tuple[TargetArray, ...]:
        """The arrays in it, in order."""
        return tuple(behind for _, behind in self.entries if isinstance(behind, TargetArray))

    @cached_property
    def plan(self) -> DcpFilePlan:
        """Where each item will lie."""
        return DcpFilePlan(self.path.rpartition("/")[2], [item for item, _ in self.entries])

    @property
    def total_size(self) -> int:
        """The size of the file in bytes."""
        return self.plan.total_size

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Write it from front to back."""
        writer = self.plan.writer(write)
        for item, behind in self.entries:
            if isinstance(item, NewObject):
                writer.write_object(item)
            elif isinstance(behind, TargetArray):
                writer.write_chunk(item, fill(behind.buffer, [behind]))
            elif behind is not None:
                writer.write_chunk(item, [behind])
        writer.finish()


def listed_items(shards: Sequence[DcpShard], shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return ``.metadata``: every tensor, of these ``shapes`` by name, with its chunks, and every
    object with its place.
    """
    chunks: dict[str, list[DcpChunk]] = {name: [] for name in shapes}
    dtypes: dict[str, str] = {}
    objects = []
    for shard in shards:
        for (item, _), placed in zip(shard.entries, shard.plan.placed, strict=True):
            if isinstance(item, NewChunk) and isinstance(placed, DcpChunk):
                chunks[item.name].append(placed)
                dtypes[item.name] = item.dtype
            elif isinstance(placed, DcpObject):
                objects.append(placed)
    tensors = [DcpTensor(n, dtypes[n], shapes[n], tuple(own)) for n, own in chunks.items()]
    return metadata_bytes(tensors, objects)
