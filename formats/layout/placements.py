"""Which rank holds which box of which logical tensor: the only place that knows.

Tensor ranks split one axis of a row into equal parts; pipeline ranks own layers. With a virtual
pipeline, every pipeline rank holds several chunks, and chunk ``v`` of rank ``p`` comes at place ``v
* pp + p`` of the model. Layer numbers restart at 0 in every chunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from math import gcd, prod
from typing import Protocol

from flmgrow.errors import UsageError
from flmgrow.formats.layout.segments import Segment, Strip, segments_of, strips_of
from flmgrow.formats.tables.row import Home, Row
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.tensors import LogicalTensor
from flmgrow.text import Found, Setting, Text

Ranges = Mapping[Axis, tuple[int, int]]

Slice = tuple[str, int | None]
"""A logical tensor in one layer, or (None) one that has no layers."""

_MANY_RANKS = 1024
_MOST_RANKS = 1 << 16


@dataclass(frozen=True)
class Layout:
    """A model's tensor x pipeline x virtual pipeline layout.

    ``chunk_layers[v * pp + p]`` is the number of layers in chunk ``v`` of pipeline rank ``p``.
    """

    tp: int
    pp: int
    vpp: int
    chunk_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.tp, self.pp, self.vpp) < 1:
            raise UsageError(
                Text("layout ", Found(f"TP{self.tp} PP{self.pp} VPP{self.vpp}")),
                wanted="sizes of at least 1",
            )
        if max(self.tp, self.pp, self.vpp) > _MOST_RANKS:
            raise UsageError(
                f"layout TP{self.tp} PP{self.pp} VPP{self.vpp}, at most {_MOST_RANKS} each"
            )
        if self.vpp > 1 and self.pp == 1:
            raise UsageError(
                f"a virtual pipeline of {self.vpp} needs a pipeline, found PP1",
                Text("give ", Setting("pp", 2), " or more"),
            )
        if len(self.chunk_layers) != self.pp * self.vpp:
            raise UsageError(
                Text(Found(len(self.chunk_layers)), " layer counts given"),
                wanted=f"{self.pp * self.vpp} (PP{self.pp} x VPP{self.vpp})",
            )
        if min(self.chunk_layers) < 0:
            raise UsageError("a pipeline chunk cannot hold a negative number of layers")

    @property
    def layers(self) -> int:
        """The number of layers in the whole model."""
        return sum(self.chunk_layers)

    @property
    def ranks(self) -> list[tuple[int, int]]:
        """The pairs (tensor rank, pipeline rank) of all model ranks."""
        return list(product(range(self.tp), range(self.pp)))

    @property
    def even(self) -> bool:
        """Whether every chunk holds the same number of layers."""
        return len(set(self.chunk_layers)) == 1

    def chunk_range(self, pipeline: int, virtual: int) -> tuple[int, int]:
        """Return the (start, stop) of the global layers in one chunk."""
        place = virtual * self.pp + pipeline
        stops = list(accumulate(self.chunk_layers))
        return stops[place] - self.chunk_layers[place], stops[place]

    def __str__(self) -> str:
        text = f"TP{self.tp} x PP{self.pp}" + (f" x VPP{self.vpp}" if self.vpp > 1 else "")
        return text if self.even else f"{text} (layers {','.join(map(str, self.chunk_layers))})"


def make_layout(
    layers: int,
    tp: int = 1,
    pp: int = 1,
    vpp: int = 1,
    pipeline_layers: Sequence[int] | None = None,
) -> Layout:
    """Return a layout for ``layers`` layers, even unless ``pipeline_layers`` says otherwise.

    ``pipeline_layers`` gives a count for each pipeline rank (divided evenly over its chunks) or for
    each chunk in model order.

    Raises:
        UsageError: Where the counts do not fit.
    """
    if pipeline_layers is None:
        if layers % (pp * vpp):
            raise UsageError(
                f"{layers} layers cannot be spread evenly over PP{pp} x VPP{vpp}",
                Text(
                    "give ",
                    Setting("pipeline_layers"),
                    f" with {pp} numbers that add up to {layers}",
                ),
            )
        return Layout(tp, pp, vpp, (layers // (pp * vpp),) * (pp * vpp))
    counts = tuple(pipeline_layers)
    if len(counts) == pp and vpp > 1:
        if any(count % vpp for count in counts):
            raise UsageError(f"layers {counts} per pipeline rank do not divide by VPP{vpp}")
        counts = tuple(count // vpp for _ in range(vpp) for count in counts)
    layout = Layout(tp, pp, vpp, counts)
    if layout.layers != layers:
        raise UsageError(f"the pipeline holds {layout.layers} layers, the model has {layers}")
    return layout


def check_divisible(layout: Layout, sizes: Sizes) -> None:
    """Raise UsageError, naming the tensor-parallel sizes that would do, if an axis cannot be
    split.
    """
    split = (Axis.KV_GROUP, Axis.FFN)
    if bad := [f"{axis} {sizes[axis]}" for axis in split if sizes[axis] % layout.tp]:
        common = gcd(*(sizes[axis] for axis in split))
        possible = [str(tp) for tp in range(1, min(common, _MANY_RANKS) + 1) if common % tp == 0]
        raise UsageError(
            f"TP{layout.tp} cannot split {' and '.join(bad)} evenly",
            f"possible tensor-parallel sizes: {', '.join(possible)}",
        )


@dataclass(frozen=True)
class Placement:
    """One stored array: the row, the rank and chunk that hold it, its key there, and the ranges it
    covers.

    A plan asks again and again where its parts lie, so that is computed once.
    """

    row: Row
    key: str
    tensor_rank: int
    pipeline_rank: int
    chunk: int
    parts: tuple[LogicalTensor, ...]
    ranges: Ranges

    @property
    def rank(self) -> tuple[int, int]:
        """The tensor and the pipeline rank that hold it."""
        return self.tensor_rank, self.pipeline_rank

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The stored shape: (rows,) or (rows, columns)."""
        total = sum(prod(part.box(self.ranges).shape) for part in self.parts)
        if self.row.inputs:
            rows = self._extent(self.row.inputs)
            return rows, total // rows
        columns = self._extent(self.row.columns)
        return (total // columns, columns) if self.row.columns else (total,)

    def _extent(self, axes: tuple[Axis, ...]) -> int:
        return prod(self.ranges[axis][1] - self.ranges[axis][0] for axis in axes)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Where each part lies in the array."""
        boxes = [part.box(self.ranges) for part in self.parts]
        outer = self.row.outer if len(self.parts) > 1 else ()
        return tuple(segments_of(self.parts, boxes, (*self.row.inputs, *outer)))

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """What the array holds parts of, in the order of its parts."""
        layer = self.ranges[Axis.LAYER][0]
        return tuple((part.name, layer if part.layered else None) for part in self.parts)

    def strips(self, limit: int) -> Iterator[Strip]:
        """Cut the array, from front to back, into strips of at most ``limit`` elements."""
        return strips_of(self.segments, limit)


class Placed(Protocol):
    """Anything that has a placement."""

    @property
    def placement(self) -> Placement:
        """The row, rank and boxes that the array is stored under."""


def _rows_of(
    rows: Sequence[Row], tensors: Mapping[str, LogicalTensor]
) -> Iterator[tuple[Row, tuple[LogicalTensor, ...]]]:
    for row in rows:
        parts = tuple(tensors[name] for name in row.parts if name in tensors)
        if parts:
            yield row, parts


def _owned(
    present: Sequence[tuple[Row, tuple[LogicalTensor, ...]]], begins: bool, ends: bool, split: bool
) -> Iterator[tuple[Row, tuple[LogicalTensor, ...]]]:
    """Yield the rows one chunk owns, in model order.

    Of rows with one key, the first that exists wins.
    """
    wanted = {Home.FIRST: begins, Home.LAYER: True, Home.LAST: ends, Home.LAST_COPY: ends and split}
    taken: set[str] = set()
    for row, parts in present:
        if wanted[row.home] and row.key not in taken:
            taken.add(row.key)
            yield row, parts


def placements(
    rows: Sequence[Row],
    tensors: Mapping[str, LogicalTensor],
    sizes: Sizes,
    layout: Layout,
    fused: bool = False,
) -> list[Placement]:
    """Return every stored array of a model laid out over its ranks.

    ``sizes`` holds the padded vocabulary, since padding is stored. ``fused`` selects the
    Transformer Engine key names. Arrays of one rank come together, in the order of the model.

    Raises:
        UsageError: If tensor parallelism cannot split an axis evenly.
    """
    check_divisible(layout, sizes)
    present = list(_rows_of(rows, tensors))
    whole: Ranges = {axis: (0, size) for axis, size in sizes.items()}
    result = []
    for (tensor_rank, pipeline_rank), chunk in product(layout.ranks, range(layout.vpp)):
        begins = pipeline_rank == 0 and chunk == 0
        ends = pipeline_rank == layout.pp - 1 and chunk == layout.vpp - 1
        first, stop = layout.chunk_range(pipeline_rank, chunk)
        owned = list(_owned(present, begins, ends, split=layout.pp > 1))
        order = [
            *((row, parts, None) for row, parts in owned if row.home == Home.FIRST),
            *(
                (row, parts, layer)
                for layer in range(first, stop)
                for row, parts in owned
                if row.home == Home.LAYER
            ),
            *(
                (row, parts, None)
                for row, parts in owned
                if row.home in (Home.LAST, Home.LAST_COPY)
            ),
        ]
        for row, parts, layer in order:
            ranges = dict(whole)
            if layer is not None:
                ranges[Axis.LAYER] = (layer, layer + 1)
            if row.shard is not None:
                part = sizes[row.shard] // layout.tp
                ranges[row.shard] = (tensor_rank * part, (tensor_rank + 1) * part)
            key = row.name(fused).format(layer=None if layer is None else layer - first)
            result.append(Placement(row, key, tensor_rank, pipeline_rank, chunk, parts, ranges))
    return result


VOCAB_MULTIPLE = 128
"""Megatron-LM's own default of ``make_vocab_size_divisible_by``."""


def padded_size(vocab: int, multiple: int, tp: int) -> int:
    """Return ``vocab`` rounded up to a multiple of ``multiple * tp``, as Megatron-LM pads it."""
    step = multiple * tp
    return -(-vocab // step) * step
