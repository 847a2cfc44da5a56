"""Reading boxes of logical tensors, wherever their pieces lie.

A logical tensor is scattered over files in segments, each a box that lies contiguously in some
stored array. The reader indexes the segments by tensor and layer, and puts any wanted box together
from the segments that intersect it. Nothing but the wanted rows is read, in pieces of a few MiB.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.inert_values import TensorRecord
from flmgrow.formats.layout import Placement
from flmgrow.formats.torch_zip import TorchFile
from flmgrow.model.axes import Box, Sizes, intersect
from flmgrow.model.tensors import LogicalTensor

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes of weights, by torch's name."""

PIECE_BYTES = 4 << 20


def as_bytes(array: Array) -> memoryview:
    """Return the bytes of a contiguous array; extension dtypes have no buffer of their own."""
    return array.reshape(-1).view(np.uint8).data


class Piece(Protocol):
    """A placement that was found in a file: an array whose bytes can be read."""

    @property
    def placement(self) -> Placement:
        """Which boxes of which tensors it holds."""

    @property
    def dtype(self) -> str:
        """Its dtype, by torch's name."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""

    def checksum(self) -> int | None:
        """Return the CRC32 of its bytes if that is written down, else None."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A piece that is one tensor record of a torch file."""

    placement: Placement
    file: TorchFile
    record: TensorRecord

    def __str__(self) -> str:
        return f"{self.file.file.path}: {self.placement.key}"

    @property
    def dtype(self) -> str:
        """Its dtype, by torch's name."""
        return self.record.dtype

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""
        try:
            self.file.read_into(self.record.storage, self.record.offset + offset, target)
        except BadCheckpointError as error:
            what = f"{error.message} (it holds {self.placement.key})"
            raise BadCheckpointError(what, error.hint) from None

    def checksum(self) -> int | None:
        """Return the CRC32 of its bytes: that of its record, if it fills one."""
        storage = self.record.storage
        return storage.crc if self.record.nbytes == storage.nbytes else None


def read_whole(piece: Piece) -> Array:
    """Return all values of a piece, in its stored shape."""
    values = np.empty(piece.placement.shape, DTYPES[piece.dtype])
    piece.read_into(0, as_bytes(values))
    return values


@dataclass(frozen=True, slots=True)
class _Located:
    """A segment's box, and where its bytes begin inside the piece."""

    box: Box
    piece: Piece
    offset: int


def _read_rows(located: _Located, wanted: Box) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """Yield (where inside ``wanted``, values) in blocks of rows along the segment's first long
    axis.
    """
    piece, shape = located.piece, located.box.shape
    dtype = DTYPES[piece.dtype]
    cuts = wanted.relative_to(located.box)
    lead = next((i for i, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    row = prod(shape[lead + 1 :])
    step = max(1, PIECE_BYTES // (row * dtype.itemsize))
    for low in range(cuts[lead].start, cuts[lead].stop, step):
        high = min(low + step, cuts[lead].stop)
        values = np.empty((high - low, *shape[lead + 1 :]), dtype)
        piece.read_into(located.offset + low * row * dtype.itemsize, as_bytes(values))
        inside = values[(slice(None), *cuts[lead + 1 :])]
        rows = slice(low - cuts[lead].start, high - cuts[lead].start)
        yield (*(slice(None),) * lead, rows), inside.reshape((*(1,) * lead, *inside.shape))


class LogicalReader:
    """Reads boxes of the logical tensors that ``arrays`` hold.

    Of arrays that hold the same box (replicas on tensor ranks, the tied copy of the embedding), the
    first is read; ``replicas`` lists them for comparison.
    """

    def __init__(
        self, tensors: Mapping[str, LogicalTensor], sizes: Sizes, arrays: Iterable[Piece]
    ) -> None:
        self.tensors = tensors
        self._sizes = sizes
        self.arrays = tuple(arrays)
        self._located: dict[tuple[str, int], list[_Located]] = defaultdict(list)
        self._replicas: dict[tuple[str, Box], list[Piece]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        for array in self.arrays:
            self._index(array)

    def _index(self, array: Piece) -> None:
        dtype = DTYPES.get(array.dtype)
        if dtype is None:
            raise BadCheckpointError(
                f"{array}: dtype {array.dtype}, wanted one of {', '.join(DTYPES)}"
            )
        offset = 0
        for number, segment in enumerate(array.placement.segments()):
            if number == 0:
                same = self._replicas.setdefault((segment.tensor, segment.box), [])
                same.append(array)
                if len(same) > 1:
                    return
            if self._dtypes.setdefault(segment.tensor, dtype) != dtype:
                raise BadCheckpointError(
                    f"{array}: dtype {dtype}, elsewhere {self._dtypes[segment.tensor]}",
                    "ranks of one checkpoint must agree; this looks like two runs mixed up",
                )
            layer = self._layer(segment.tensor, segment.box)
            self._located[segment.tensor, layer].append(_Located(segment.box, array, offset))
            offset += segment.box.count * dtype.itemsize

    def _layer(self, name: str, box: Box) -> int:
        return box.ranges[0][0] if self.tensors[name].layered else -1

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype in which tensor ``name`` is stored."""
        return self._dtypes[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of tensor ``name``, the vocabulary with its padding."""
        return self.tensors[name].shape(self._sizes)

    def replicas(self) -> list[list[Piece]]:
        """Return the groups of two or more arrays that must hold the same values."""
        return [group for group in self._replicas.values() if len(group) > 1]

    def stored_elements(self) -> dict[str, int]:
        """Return how many elements of each tensor the checkpoint holds, replicas counted once."""
        totals = dict.fromkeys(self.tensors, 0)
        for (name, _), segments in self._located.items():
            totals[name] += sum(located.box.count for located in segments)
        return totals

    def read(self, name: str, box: Box) -> Array:
        """Return the values of ``box`` of tensor ``name``, in their stored dtype.

        Raises BadCheckpointError if the checkpoint does not hold all of it.
        """
        result = np.empty(box.shape, self._dtypes[name])
        missing = box.count
        layers = range(*box.ranges[0]) if self.tensors[name].layered else (-1,)
        for layer in layers:
            for located in self._located.get((name, layer), ()):
                common = intersect(located.box, box)
                if common is None:
                    continue
                target = result[common.relative_to(box)]
                for where, values in _read_rows(located, common):
                    target[where] = values
                missing -= common.count
        if missing:
            raise BadCheckpointError(f"{name}: {missing} of {box.count} elements are not stored")
        return result


def _covering(box: Box, start: int, stop: int) -> tuple[Box, int]:
    """Return the smallest contiguous box that holds elements ``start`` to ``stop`` of ``box``.

    Also return which element of it ``start`` is.
    """
    ranges = list(box.ranges)
    for axis, (base, _) in enumerate(box.ranges):
        row = prod(box.shape[axis + 1 :])
        low, high = start // row, -(-stop // row)
        ranges[axis] = (base + low, base + high)
        start, stop = start - low * row, stop - low * row
        if high - low > 1:
            break
    return Box(tuple(ranges)), start


@dataclass(frozen=True, eq=False)
class AssembledArray:
    """A piece of another layout than the stored one: ``reader`` puts its bytes together."""

    placement: Placement
    reader: LogicalReader

    def __str__(self) -> str:
        return self.placement.key

    @property
    def dtype(self) -> str:
        """Its dtype, by torch's name."""
        return self.reader.dtype(self.placement.parts[0].name).name

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on, whole elements of it."""
        width = DTYPES[self.dtype].itemsize
        begin, end = offset // width, (offset + len(target)) // width
        at = 0
        for segment in self.placement.segments():
            low, high = max(begin, at), min(end, at + segment.box.count)
            if low < high:
                box, skipped = _covering(segment.box, low - at, high - at)
                values = self.reader.read(segment.tensor, box).reshape(-1)
                data = as_bytes(values[skipped : skipped + high - low])
                target[(low - begin) * width : (high - begin) * width] = data
            at += segment.box.count

    def checksum(self) -> int | None:
        """None: it lies in no file as it is."""
        return None
