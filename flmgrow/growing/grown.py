"""A grown model, computed by its ranks in memory: each has its own arrays of it.

The values are those that ``expand`` would write, computed by the same code from the same old ones.
Every rank goes through the whole new model in the same order, array by array over all tensor ranks,
so that the old values behind one of them are at hand for all who need them, and are let go again.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod

import numpy as np
import torch

from flmgrow.errors import DivergenceError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.placements import Layout, Placement, Slice, placements
from flmgrow.formats.layout.segments import Strip
from flmgrow.formats.megatron.new_model import NoFiles
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.growing.source import LiveSource, MemoryPiece
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Axis
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.surgery.finite import non_finite
from flmgrow.surgery.optimizer_metadata import carried
from flmgrow.surgery.states import ModelValues
from flmgrow.trainer.megatron.parameters import own_model_rank
from flmgrow.trainer.ranks.agreement import Postponed

STRIP = 1 << 20
"""Elements computed at once by a thread."""


@dataclass(frozen=True, eq=False)
class _InMemory(NoFiles):
    """The arrays of a grown model, let go when it is closed."""

    pieces: list[MemoryPiece] = field(default_factory=list)

    def close(self) -> None:
        for piece in self.pieces:
            piece.values = None


@dataclass(frozen=True, eq=False)
class GrownSlice:
    """Arrays of the new model that are computed together, and the old slices behind them."""

    placements: tuple[Placement, ...]
    needed: frozenset[Slice]


def stops(growth: Growth, layout: Layout, padded_vocab: int) -> Iterator[GrownSlice]:
    """Yield the arrays of a grown model on all ranks, those of the same parameter together."""
    sizes = {**growth.new.sizes, Axis.VOCAB: padded_vocab}
    together: dict[Slice, list[Placement]] = {}
    for placement in placements(ROWS, logical_tensors(growth.new), sizes, layout):
        together.setdefault(placement.slices[0], []).append(placement)
    for found in together.values():
        needed = (each for placement in found for each in _behind(growth, placement))
        yield GrownSlice(tuple(found), frozenset(needed))


def _behind(growth: Growth, placement: Placement) -> Iterator[Slice]:
    """Yield the old slices whose values, spread or mean an array is made from."""
    layers = growth.maps.get(Axis.LAYER)
    for part, (_, layer) in zip(placement.parts, placement.slices, strict=True):
        name = growth.source_name(part)
        if layer is None or layers is None:
            yield name, layer
            continue
        yield name, int(layers.donors[layer])
        if (source := int(layers.source[layer])) >= 0:
            yield name, source


def grown_model(
    source: LiveSource, growth: Growth, layout: Layout, padded_vocab: int
) -> Checkpoint:
    """Return this rank's part of a grown model as an opened checkpoint, which lies in memory.

    On all ranks at once. It reads what this rank has of it in ``layout``, and is let go when it is
    closed.

    Raises:
        DivergenceError: For values that are not finite.
    """
    old = source.checkpoint
    values, own = ModelValues(growth, old), own_model_rank()
    pieces: dict[State, list[MemoryPiece]] = {state: [] for state in old.readers}
    failure = Postponed()  # the others need what this rank holds, whatever it has met
    with ThreadPoolExecutor(torch.get_num_threads(), "flmgrow-growing") as pool:
        for stop in stops(growth, layout, padded_vocab):
            mine = [p for p in stop.placements if p.rank == own]
            with source.at_hand(stop.needed, wanted=bool(mine)):
                for placement, (state, found) in product(mine, pieces.items()):
                    dtype = _dtype(old, state)
                    compute = partial(_computed, pool, values, state, placement, dtype)
                    found.append(MemoryPiece(placement, dtype, failure.attempt(compute, None)))
    failure.raise_together()
    return _checkpoint(old, growth, layout, padded_vocab, pieces)


def _dtype(checkpoint: Checkpoint, state: State) -> str:
    assert checkpoint.optimizer is not None
    return checkpoint.dtype if state is State.WEIGHT else checkpoint.optimizer.dtypes[state]


def _computed(
    pool: ThreadPoolExecutor, values: ModelValues, state: State, placement: Placement, dtype: str
) -> Array:
    """Return an array of the grown model, flat."""
    result = np.empty(prod(placement.shape), DTYPES[dtype])
    strips = placement.strips(STRIP)
    at = 0
    for part in pool.map(partial(_strip, values, state, result.dtype), strips):
        result[at : at + part.size] = part.reshape(-1)
        at += part.size
    if count := non_finite(result):
        raise DivergenceError(
            f"{placement.key}: {count} values of the grown model are not finite",
            "the run has diverged before it grew: go back to an earlier checkpoint",
        )
    return result


def _strip(values: ModelValues, state: State, dtype: np.dtype[np.generic], strip: Strip) -> Array:
    pairs = zip(strip.segments, strip.boxes, strict=True)
    with np.errstate(all="ignore"):  # what is not finite is found when the array is whole
        return strip.arrange([values.box(state, part.tensor, box, dtype) for part, box in pairs])


def _checkpoint(
    old: Checkpoint,
    growth: Growth,
    layout: Layout,
    padded_vocab: int,
    pieces: Mapping[State, list[MemoryPiece]],
) -> Checkpoint:
    tensors = logical_tensors(growth.new)
    sizes = {**growth.new.sizes, Axis.VOCAB: padded_vocab}
    readers = {state: LogicalReader(tensors, sizes, found) for state, found in pieces.items()}
    assert isinstance(old.contents, NoFiles)
    held = [piece for found in pieces.values() for piece in found]
    return replace(
        old,
        config=growth.new,
        layout=layout,
        padded_vocab=padded_vocab,
        reader=readers.pop(State.WEIGHT),
        state_readers=readers,
        optimizer=carried(old.optimizer, growth),
        contents=_InMemory(old.contents.root, pieces=held),
    )
