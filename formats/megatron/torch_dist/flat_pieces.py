"""Arrays that are kept flat: a parameter's elements one after the other, cut anywhere.

A distributed optimizer cuts its states wherever a data-parallel rank's share ends: in the middle of
a row, or of several parameters. Put side by side again, the chunks are a line of elements, and a
parameter is a range of it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import DcpChunk
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.megatron.torch_dist.item_pieces import ItemPiece
from flmgrow.formats.pieces import DTYPES
from flmgrow.text import Found, Text

Numbers = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FlatPiece:
    """A parameter that lies flat: ``chunks`` are all that it lies in, in order, each with the place
    of its first element on the line.

    ``start`` is the place of the parameter's own first element.
    """

    placement: Placement
    chunks: tuple[tuple[int, ItemPiece], ...]
    start: int = 0

    @property
    def dtype(self) -> str:
        """The dtype of the array, by torch's name."""
        return self.chunks[0][1].dtype

    @property
    def name(self) -> str:
        """The name of the tensor that it lies in."""
        return self.chunks[0][1].name

    def __str__(self) -> str:
        return f"{self.chunks[0][1]}: {self.placement.key}"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""
        width = DTYPES[self.dtype].itemsize
        begin = self.start * width + offset
        end = begin + len(target)
        for place, piece in self.chunks:
            first = place * width
            low, high = max(begin, first), min(end, first + piece.count * width)
            if low < high:
                piece.read_into(low - first, target[low - begin : high - begin])

    def checksum(self) -> int | None:
        """Return None: the sum of a chunk is no parameter's alone."""
        return None


class Line:
    """All chunks of an array of this ``shape``, side by side.

    Raises:
        BadCheckpointError: For a chunk that is no unbroken range of the line; the message lacks the
            name of the file.
    """

    def __init__(self, chunks: Sequence[DcpChunk], shape: Numbers) -> None:
        self.chunks = sorted(
            ((_place(chunk, shape), chunk) for chunk in chunks), key=lambda pair: pair[0]
        )

    @cached_property
    def _places(self) -> list[int]:
        return [place for place, _ in self.chunks]

    def covering(self, start: int, stop: int) -> list[tuple[int, DcpChunk]]:
        """Return the chunks that the elements from ``start`` to ``stop`` lie in, with their
        places.
        """
        first, last = bisect_right(self._places, start), bisect_right(self._places, stop - 1)
        return self.chunks[first - 1 : last]


def _place(chunk: DcpChunk, shape: Numbers) -> int:
    """Return where a chunk's first element is among all elements of the array."""
    split = next((axis for axis, size in enumerate(chunk.sizes) if size > 1), len(shape))
    if chunk.sizes[split + 1 :] != shape[split + 1 :]:
        raise BadCheckpointError(
            Text("found a chunk of sizes ", Found(list(chunk.sizes))),
            wanted=f"an unbroken range of {list(shape)}",
        )
    place = 0
    for offset, size in zip(chunk.offsets, shape, strict=True):
        place = place * size + offset
    return place
