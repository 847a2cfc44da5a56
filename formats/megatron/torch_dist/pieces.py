"""In which arrays of a distributed checkpoint a parameter lies, and in which form.

megatron-core has had several, for weights and for an optimizer's states alike:

* One array of the parameter's own shape, all layers stacked in front; or one for each layer, its
  number in the name, where layers are not alike (``non_homogeneous_layers``): as the states of a
  model are of which some layers are frozen.
* A fused pair (gate and up) as two arrays, ``NAME_w`` and ``NAME_v``, where every rank's part is a
  tensor of its own (``singleton_local_shards``).
* Up to megatron-core 0.14, what a data-parallel rank holds only a range of (the distributed
  optimizer's states, ``fully_sharded_model_space``; weights under Megatron's own FSDP) in *local
  shards*: a parameter of shape (X, Y) that is cut into shards of (x, y), each flat, is an array
  (X / x, Y / y, x * y), and a stacked one (L, X / x, Y / y, x * y). The shards of a pair are those
  of its halves.

Under Megatron's own FSDP since (``fsdp_dtensor``), an array is cut between any two rows; one whose
units (a group of heads) are cut is read as a line of chunks.

The local shards are megatron-core 0.13's ``dist_checkpointing/strategies/resharding.py``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from operator import add

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import DcpChunk, DcpTensor
from flmgrow.formats.layout.chunks import Span, chunk_placement, whole_placement
from flmgrow.formats.layout.lags import NO_LAGS, Lags, has_state
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.flat_pieces import FlatPiece
from flmgrow.formats.megatron.torch_dist.item_pieces import ChunkPart, ItemPiece
from flmgrow.formats.pieces import Piece
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.tensors import LogicalTensor
from flmgrow.text import Found, Text

_HALVES = ("_w", "_v")
_DISAGREE = "the args and the weights do not agree"


def find_pieces(
    contents: DistFolder,
    tensors: Mapping[str, LogicalTensor],
    sizes: Sizes,
    prefix: str = "",
    lags: Lags = NO_LAGS,
) -> list[Piece]:
    """Return a piece for every chunk of every parameter, its key behind ``prefix``; but for those
    that have no state by ``lags``.

    Raises:
        BadCheckpointError: For one that is missing or has another shape than the model says.
    """
    pieces: list[Piece] = []
    for whole in _expected(tensors, sizes):
        for name, part, layer in _arrays(contents, whole, sizes, prefix, lags):
            pieces += _cut(contents, contents.metadata.tensors[name], part, sizes, layer)
    return pieces


def layers_with_state(whole: Placement, sizes: Sizes, lags: Lags) -> list[int]:
    """Return the layers in which a parameter has a state; [0] for one of no layer that has one."""
    layers = range(sizes[Axis.LAYER]) if whole.row.home is Home.LAYER else (0,)
    in_layer = {n: replace(whole, ranges={**whole.ranges, Axis.LAYER: (n, n + 1)}) for n in layers}
    return [layer for layer, placement in in_layer.items() if has_state(placement, lags)]


def _expected(tensors: Mapping[str, LogicalTensor], sizes: Sizes) -> Iterator[Placement]:
    """Yield the placement of every whole array a checkpoint of this model has."""
    for row in ROWS:
        parts = [tensors[name] for name in row.parts if name in tensors]
        if parts and row.home is not Home.LAST_COPY:
            yield whole_placement(row, parts, sizes)


def _arrays(
    contents: DistFolder, whole: Placement, sizes: Sizes, prefix: str, lags: Lags
) -> Iterator[tuple[str, Placement, int | None]]:
    """Yield the arrays that ``whole`` lies in: name, placement, and the layer unless stacked."""
    key = prefix + whole.key.replace("{layer}.", "")
    layers = layers_with_state(whole, sizes, lags)
    if not layers:
        return
    if found := _stored(contents, key, whole):
        yield from ((name, part, None) for name, part in found)
        return
    layered = whole.row.home is Home.LAYER
    names = [prefix + whole.key.format(layer=n) for n in layers] if layered else []
    numbered = [_stored(contents, name, whole) for name in names]
    if not any(numbered):
        raise BadCheckpointError("not there", _hint(prefix), where=(contents.folder, key))
    for layer, name, arrays in zip(layers, names, numbered, strict=True):
        if not arrays:
            raise BadCheckpointError("not there", _hint(prefix), where=(contents.folder, name))
        yield from ((name, part, layer) for name, part in arrays)


def _hint(prefix: str) -> str:
    """Return why an array may be missing whose name begins with ``prefix``, a state's if any."""
    frozen = "; or it was frozen, and the file of flmgrow's that says so is not beside it"
    return _DISAGREE + (frozen if prefix else "")


def _stored(contents: DistFolder, key: str, whole: Placement) -> list[tuple[str, Placement]]:
    """Return the array called ``key``, or the two halves that it is in; nothing if neither."""
    stored = contents.metadata.tensors
    if key in stored:
        return [(key, whole)]
    apart = halves_of(key, whole)
    missing = [name for name, _ in apart if name not in stored]
    if len(missing) == len(apart):
        return []
    if missing:
        raise BadCheckpointError(
            "not there, though its other half is",
            "the checkpoint is not complete: use another copy",
            where=(contents.folder, missing[0]),
        )
    return apart


def of_halves(key: str) -> str:
    """Return the key of the fused pair that an array is a half of; its own key if it is none."""
    for half in _HALVES:
        key = key.removesuffix(half)
    return key


def halves_of(key: str, whole: Placement) -> list[tuple[str, Placement]]:
    """Return the arrays that the one called ``key`` is where a fused pair is kept apart; [] if it
    is no such pair.
    """
    if len(whole.parts) != len(_HALVES) or whole.row.outer:
        return []
    halves = [replace(whole, parts=(part,)) for part in whole.parts]
    return list(zip((key + half for half in _HALVES), halves, strict=True))


def _cut(
    contents: DistFolder, tensor: DcpTensor, whole: Placement, sizes: Sizes, layer: int | None
) -> Iterator[Piece]:
    """Yield the pieces of an array; ``layer`` is None where layers are stacked in front."""
    stacked = layer is None and whole.row.home is Home.LAYER
    wanted = (sizes[Axis.LAYER], *whole.shape) if stacked else whole.shape
    where = f"{contents.folder}: {tensor.name}"
    local = _local_shape(tensor.shape, wanted)
    if tensor.shape != wanted and local is None:
        raise BadCheckpointError(
            Text("shape ", Found(tensor.shape)), _DISAGREE, where=where, wanted=wanted
        )
    try:
        uneven = local is None and not stacked and not _in_units(tensor, whole, sizes, layer)
        for spans, found in _runs(tensor) if uneven else _boxes(tensor, local, stacked):
            own = layer
            if stacked:
                (own, _), *spans = spans
            placement = chunk_placement(whole, sizes, own, spans)
            pieces = [
                (at, ItemPiece(placement, tensor.dtype, tensor.name, chunk, contents.items, part))
                for at, chunk, part in found
            ]
            one = local is None and len(pieces) == 1
            yield pieces[0][1] if one else FlatPiece(placement, tuple(pieces))
    except BadCheckpointError as error:
        raise error.at(where) from None


def _in_units(tensor: DcpTensor, whole: Placement, sizes: Sizes, layer: int | None) -> bool:
    """Whether no chunk of an array that is not stacked cuts through a unit (a group, a head)."""
    try:
        for chunk in tensor.chunks:
            chunk_placement(whole, sizes, layer, _spans(chunk))
    except BadCheckpointError:
        return False
    return True


def _spans(chunk: DcpChunk) -> list[Span]:
    return [(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True)]


def _local_shape(found: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a local shard if ``found`` is that of an array of them, else None."""
    *cuts, flat = found or (0,)
    if len(cuts) != len(wanted) or any(
        cut < 1 or size % cut for cut, size in zip(cuts, wanted, strict=True)
    ):
        return None
    local = tuple(size // cut for cut, size in zip(cuts, wanted, strict=True))
    return local if prod(local) == flat else None


Chunks = list[tuple[int, DcpChunk, ChunkPart | None]]
"""Chunks, or parts of chunks, each with the place of its first element in a local shard."""


def _boxes(
    tensor: DcpTensor, local: tuple[int, ...] | None, stacked: bool
) -> Iterator[tuple[list[Span], Chunks]]:
    """Yield the boxes that are stored, none of several layers: the span on each axis, and where.

    Each is a chunk or a layer of it, or a local shard of the shape ``local``.
    """
    if local is None:
        for chunk in tensor.chunks:
            for part, offsets, sizes in _split(chunk, int(stacked)):
                spans = [(at, at + size) for at, size in zip(offsets, sizes, strict=True)]
                yield spans, [(0, chunk, part)]
        return
    shards: dict[tuple[int, ...], Chunks] = {}
    for chunk in tensor.chunks:
        for part, offsets, _ in _split(chunk, len(local)):
            shards.setdefault(offsets[:-1], []).append((offsets[-1], chunk, part))
    for shard, found in shards.items():
        spans = [(at * size, (at + 1) * size) for at, size in zip(shard, local, strict=True)]
        yield spans, sorted(found, key=lambda one: one[0])


def _runs(tensor: DcpTensor) -> Iterator[tuple[list[Span], Chunks]]:
    """Yield the boxes that chunks one below the other make up, with the chunks' places in it.

    Their elements one after the other are the box's, wherever its rows are cut.
    """
    columns: dict[tuple[Span, ...], list[DcpChunk]] = {}
    for chunk in sorted(tensor.chunks, key=lambda chunk: chunk.offsets):
        columns.setdefault(tuple(_spans(chunk)[1:]), []).append(chunk)
    for spans, chunks in columns.items():
        start = stop = chunks[0].offsets[0]
        run: Chunks = []
        for chunk in chunks:
            low, high = _spans(chunk)[0]
            if low != stop:
                yield [(start, stop), *spans], run
                start, run = low, []
            run.append(((low - start) * prod(chunk.sizes[1:]), chunk, None))
            stop = high
        yield [(start, stop), *spans], run


def _split(
    chunk: DcpChunk, axes: int
) -> Iterator[tuple[ChunkPart | None, tuple[int, ...], tuple[int, ...]]]:
    """Cut a chunk so that its first ``axes`` are of size one; yield parts, offsets and sizes."""
    outer, inner = chunk.sizes[:axes], chunk.sizes[axes:]
    if all(size == 1 for size in outer):
        yield None, chunk.offsets, chunk.sizes
        return
    sizes = (*(1 for _ in outer), *inner)
    for place in product(*map(range, outer)):
        inside = (*place, *(0 for _ in inner))
        yield ChunkPart(inside, sizes), tuple(map(add, chunk.offsets, inside)), sizes
