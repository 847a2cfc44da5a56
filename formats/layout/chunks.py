"""Which box of which logical tensors a chunk of a global array holds.

A distributed checkpoint stores, for each row of the table, one global array (all layers stacked,
all tensor ranks together) cut into chunks. Its rows are laid out as in a rank's file, but over the
whole axes: query, key and value group after group; all of the gate, then all of the up projection.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.tables.row import Home, Row
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.tensors import LogicalTensor

Span = tuple[int, int]


def whole_placement(row: Row, parts: Sequence[LogicalTensor], sizes: Sizes) -> Placement:
    """Return the placement of a row's whole array, in its first layer if it is layered."""
    ranges: dict[Axis, Span] = {axis: (0, size) for axis, size in sizes.items()}
    ranges[Axis.LAYER] = (0, 1)
    return Placement(row, row.name(fused=True), 0, 0, 0, tuple(parts), ranges)


def _axes(row: Row, part: LogicalTensor) -> list[Axis]:
    """Return the axes of a part that its stored rows run through."""
    return [axis for axis in part.axes if axis is not Axis.LAYER and axis not in row.columns]


def _extent(axes: Sequence[Axis], sizes: Sizes) -> int:
    return prod(sizes[axis] for axis in axes)


def _units(axis: Axis, inner: int, span: Span) -> Span:
    """Return the indices of ``axis`` in a span of rows or columns, ``inner`` for each index."""
    start, stop = span
    if start % inner or stop % inner:
        raise BadCheckpointError(f"rows or columns {start} to {stop} cut through a {axis} index")
    return start // inner, stop // inner


def _leading(axes: Sequence[Axis], span: Span, sizes: Sizes) -> tuple[Axis, Span]:
    """Return the first of ``axes`` and the range of it that ``span`` of their product covers."""
    return axes[0], _units(axes[0], _extent(axes[1:], sizes), span)


def _rows(
    row: Row, parts: Sequence[LogicalTensor], span: Span, sizes: Sizes
) -> tuple[Sequence[LogicalTensor], Axis, Span]:
    """Return the parts that a span of rows holds, and the range of the axis that leads them."""
    extents = [_extent(_axes(row, part), sizes) for part in parts]
    if row.outer and len(parts) > 1:
        (outer,) = row.outer
        return parts, outer, _units(outer, sum(extents) // sizes[outer], span)
    begin = 0
    for part, extent in zip(parts, extents, strict=True):
        if begin <= span[0] and span[1] <= begin + extent:
            return [part], *_leading(_axes(row, part), (span[0] - begin, span[1] - begin), sizes)
        begin += extent
    axis = _axes(row, parts[0])[0]
    if span == (0, begin):
        return parts, axis, (0, sizes[axis])
    raise BadCheckpointError(f"rows {span[0]} to {span[1]} lie across two fused tensors")


def chunk_placement(
    whole: Placement, sizes: Sizes, layer: int | None, spans: Sequence[Span]
) -> Placement:
    """Return the placement of a chunk: one layer of it, and its spans of rows and columns.

    Raises:
        BadCheckpointError: If the chunk cuts through a unit (a group, a head).
    """
    row = whole.row
    ranges = dict(whole.ranges)
    if layer is not None:
        ranges[Axis.LAYER] = (layer, layer + 1)
    parts, axis, span = _rows(row, whole.parts, spans[0], sizes)
    ranges[axis] = span
    if row.columns:
        axis, span = _leading(row.columns, spans[1], sizes)
        ranges[axis] = span
    return Placement(row, whole.key, 0, 0, 0, tuple(parts), ranges)


def without_copies(wanted: Iterable[Placement]) -> Iterator[Placement]:
    """Leave out what an earlier rank has, too, and the tied copy of the embedding."""
    seen = set()
    for placement in wanted:
        key = (placement.row.key, tuple(placement.ranges.items()))
        if placement.row.home is not Home.LAST_COPY and key not in seen:
            seen.add(key)
            yield placement


def chunks_of(
    placement: Placement, sizes: Sizes
) -> Iterator[tuple[Placement, tuple[int, ...], tuple[int, ...]]]:
    """Yield the chunks of the global array that a rank's array is: (placement, offsets, sizes).

    A rank's array of several tensors one behind the other is one chunk for each; layered arrays
    have the layer in front.
    """
    row, ranges = placement.row, placement.ranges
    together = len(placement.parts) == 1 or bool(row.outer)
    columns = (ranges[row.columns[0]][0] * _extent(row.columns[1:], sizes),) if row.columns else ()
    extents = [_extent(_axes(row, part), sizes) for part in placement.parts]
    begin = 0
    for parts in [placement.parts] if together else [(part,) for part in placement.parts]:
        lead = row.outer[0] if row.outer else _axes(row, parts[0])[0]
        extent = sum(extents) if together else extents[placement.parts.index(parts[0])]
        rows = begin + ranges[lead][0] * (extent // sizes[lead])
        chunk = replace(placement, parts=parts)
        layer = (ranges[Axis.LAYER][0],) if row.home is Home.LAYER else ()
        yield chunk, (*layer, rows, *columns), (*(1 for _ in layer), *chunk.shape)
        begin += extent


def cut_rows(
    chunk: Placement, offsets: tuple[int, ...], limit: int
) -> Iterator[tuple[Placement, tuple[int, ...], tuple[int, ...]]]:
    """Cut a chunk of an array, which begins at ``offsets`` there, between rows: yield chunks of at
    most ``limit`` elements, as :func:`chunks_of` does; one unit (a group of heads) is not cut.

    ``offsets`` end with those of rows and columns; any in front of them are kept.
    """
    axis = chunk.row.outer[0] if chunk.row.outer else _axes(chunk.row, chunk.parts[0])[0]
    start, stop = chunk.ranges[axis]
    dimensions = len(chunk.shape)
    front, (row, *columns) = offsets[:-dimensions], offsets[-dimensions:]
    rows = chunk.shape[0] // (stop - start)
    step = max(1, limit // (prod(chunk.shape) // (stop - start)))
    for low in range(start, stop, step):
        cut = replace(chunk, ranges={**chunk.ranges, axis: (low, min(low + step, stop))})
        at = (*front, row + (low - start) * rows, *columns)
        yield cut, at, (*(1 for _ in front), *cut.shape)
