"""Reading boxes of logical tensors, wherever their pieces lie.

A logical tensor is scattered over files in segments, each a box inside some stored array. The
reader indexes the segments by tensor and layer, and puts any wanted box together from the segments
that intersect it. Little but the wanted rows is read, in pieces of a few MiB.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.layout.segments import Segment
from flmgrow.formats.pieces import DTYPES, Piece, as_bytes, widest
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Box, Sizes, intersect
from flmgrow.model.tensors import LogicalTensor
from flmgrow.text import Found, Text

PIECE_BYTES = 4 << 20

_STRIP = 1 << 14
"""Elements that are put together at once."""

LONG_RUN = 256 << 10
"""Bytes from which on a run is read alone, and not together with what lies before the next one."""


@dataclass(frozen=True, slots=True)
class _Located:
    """A segment, and the piece that it lies in."""

    segment: Segment
    piece: Piece


Block = tuple[tuple[slice, ...], Array]
"""Where inside the wanted box, and the values there."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """An array of ``shape`` inside a piece, from element ``start`` on, in row-major order.

    Only the rows of its first long axis may lie apart, each ``stride`` elements from the next.
    """

    piece: Piece
    shape: tuple[int, ...]
    start: int
    stride: int | None = None

    @property
    def _lead(self) -> int:
        return next((i for i, extent in enumerate(self.shape) if extent > 1), len(self.shape) - 1)

    def read_whole_into(self, target: Array, cuts: tuple[slice, ...]) -> bool:
        """Fill ``target`` with what ``cuts`` cut out if it is one run of bytes in both; else return
        False.
        """
        dtype = DTYPES[self.piece.dtype]
        lead = self._lead
        row = prod(self.shape[lead + 1 :])
        inner = zip(cuts[lead + 1 :], self.shape[lead + 1 :], strict=True)
        if (
            target.dtype != dtype
            or not target.flags.c_contiguous
            or self.stride not in (None, row)
            or any(cut != slice(0, extent) for cut, extent in inner)
        ):
            return False
        begin = (self.start + cuts[lead].start * row) * dtype.itemsize
        self.piece.read_into(begin, as_bytes(target))
        return True

    def read(self, cuts: tuple[slice, ...]) -> Iterator[Block]:
        """Yield what ``cuts`` cut out, in blocks of rows."""
        dtype = DTYPES[self.piece.dtype]
        lead = self._lead
        row = prod(self.shape[lead + 1 :])
        stride = row if self.stride is None else self.stride
        if stride > row and row * dtype.itemsize >= LONG_RUN:
            yield from self._one_by_one(lead, stride, cuts)
            return
        step = max(1, PIECE_BYTES // (stride * dtype.itemsize))
        for low in range(cuts[lead].start, cuts[lead].stop, step):
            high = min(low + step, cuts[lead].stop)
            values = np.empty((high - low) * stride, dtype)
            count = (high - low - 1) * stride + row
            begin = (self.start + low * stride) * dtype.itemsize
            self.piece.read_into(begin, as_bytes(values[:count]))
            rows = values.reshape(high - low, stride)[:, :row]
            inside = rows.reshape(high - low, *self.shape[lead + 1 :])
            cut = inside[(slice(None), *cuts[lead + 1 :])]
            place = slice(low - cuts[lead].start, high - cuts[lead].start)
            yield (*(slice(None),) * lead, place), cut.reshape((*(1,) * lead, *cut.shape))

    def _one_by_one(self, lead: int, stride: int, cuts: tuple[slice, ...]) -> Iterator[Block]:
        """Long runs far apart: what lies between them is not read."""
        for index in range(cuts[lead].start, cuts[lead].stop):
            shape = (*self.shape[:lead], 1, *self.shape[lead + 1 :])
            one = _Rows(self.piece, shape, self.start + index * stride)
            place = index - cuts[lead].start
            for where, values in one.read((*cuts[:lead], slice(0, 1), *cuts[lead + 1 :])):
                inner = where[lead + 1 :]
                yield (*where[:lead], slice(place, place + 1), *inner), values


def _read_into(target: Array, located: _Located, wanted: Box) -> None:
    """Fill ``target`` with the box ``wanted`` of a segment."""
    segment = located.segment
    cuts = segment.stored(wanted).relative_to(segment.stored(segment.box))
    stride = None if segment.contiguous else segment.stride
    stored = target.transpose(segment.order)
    rows = _Rows(located.piece, segment.shape, segment.start, stride)
    if not rows.read_whole_into(stored, cuts):
        for where, values in rows.read(cuts):
            stored[where] = values


class LogicalReader:
    """Reads boxes of the logical tensors that ``arrays`` hold.

    Of arrays that hold the same box (replicas on tensor ranks, the tied copy of the embedding), the
    first is read; ``replicas`` lists them for comparison. All arrays of a tensor have one dtype,
    unless they may be ``mixed``: then each is read at its own, and the tensor has the one that
    holds them all. ``ways_out`` is a hint for copies of which none may be taken if they differ.
    """

    def __init__(
        self,
        tensors: Mapping[str, LogicalTensor],
        sizes: Sizes,
        arrays: Iterable[Piece],
        *,
        mixed: bool = False,
        ways_out: str = "",
    ) -> None:
        self._mixed = mixed
        self.ways_out = ways_out
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
                Text(f"{array}: dtype ", Found(array.dtype)), wanted=f"one of {', '.join(DTYPES)}"
            )
        for number, segment in enumerate(array.placement.segments):
            if number == 0:
                same = self._replicas.setdefault((segment.tensor, segment.box), [])
                same.append(array)
                if len(same) > 1:
                    return
            known = self._dtypes.setdefault(segment.tensor, dtype)
            if self._mixed:
                self._dtypes[segment.tensor] = DTYPES[widest([known.name, dtype.name])]
            elif known != dtype:
                raise BadCheckpointError(
                    f"{array}: dtype {dtype}, elsewhere {known}",
                    "ranks of one checkpoint must agree; this looks like two runs mixed up",
                )
            layer = self._layer(segment.tensor, segment.box)
            self._located[segment.tensor, layer].append(_Located(segment, array))

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
            totals[name] += sum(located.segment.box.count for located in segments)
        return totals

    def read(self, name: str, box: Box) -> Array:
        """Return the values of ``box`` of tensor ``name``, in its shape and their stored dtype.

        Raises:
            BadCheckpointError: If the checkpoint does not hold all of it.
        """
        result = np.empty(box.shape, self._dtypes[name])
        self.read_into(result, name, box)
        return result

    def read_into(self, target: Array, name: str, box: Box) -> None:
        """Fill ``target``, of the shape of ``box``, with its values of tensor ``name``, cast to its
        dtype.

        Raises:
            BadCheckpointError: If the checkpoint does not hold all of it.
        """
        missing = box.count
        layers = range(*box.ranges[0]) if self.tensors[name].layered else (-1,)
        for layer in layers:
            for located in self._located.get((name, layer), ()):
                common = intersect(located.segment.box, box)
                if common is not None:
                    _read_into(target[common.relative_to(box)], located, common)
                    missing -= common.count
        if missing:
            raise BadCheckpointError(f"{name}: {missing} of {box.count} elements are not stored")


@dataclass(frozen=True, eq=False)
class AssembledArray:
    """A piece of another layout than the stored one: ``reader`` puts its bytes together."""

    placement: Placement
    reader: LogicalReader

    def __str__(self) -> str:
        return self.placement.key

    @property
    def dtype(self) -> str:
        """The dtype of the array, by torch's name."""
        return self.reader.dtype(self.placement.parts[0].name).name

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on, whole elements of it."""
        width = DTYPES[self.dtype].itemsize
        begin, end = offset // width, (offset + len(target)) // width
        for at, values in self.stretches(begin, end):
            first = (at - begin) * width
            target[first : first + values.nbytes] = as_bytes(values)

    def stretches(self, start: int, stop: int, limit: int = _STRIP) -> Iterator[tuple[int, Array]]:
        """Yield its elements from ``start`` to ``stop``, front to back, flat (elements,), at most
        ``limit`` at once, each time with the place of the first.
        """
        at = 0
        for strip in self.placement.strips(limit):
            end = at + sum(box.count for box in strip.boxes)
            low, high = max(start, at), min(stop, end)
            if low < high:
                pairs = zip(strip.segments, strip.boxes, strict=True)
                values = strip.arrange([self.reader.read(s.tensor, box) for s, box in pairs])
                yield low, values.reshape(-1)[low - at : high - at]
            if end >= stop:
                break
            at = end

    def checksum(self) -> int | None:
        """Return None: the array lies in no file as it is."""
        return None
