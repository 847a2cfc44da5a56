"""Elements: growth is deterministic, so every stored value is derived again from the source.

What is compared are the bytes of every array of every file, copies and padding included: they are
what the ranks of a trainer load. Nothing is read through the index of the reader, which takes the
first of several copies.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.segments import Strip
from flmgrow.formats.megatron.stand_ins import CastPiece, ZeroPiece
from flmgrow.formats.pieces import DTYPES, Piece, as_bytes
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.arrays import Array
from flmgrow.model.states import State
from flmgrow.operators.growth import Growth
from flmgrow.storage.ranks import ALONE, Ranks
from flmgrow.storage.shares import shared_out
from flmgrow.surgery.blocks import in_order
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.execution import Progress
from flmgrow.surgery.heap import keep_freed_memory
from flmgrow.surgery.states import ModelValues
from flmgrow.text import Found, Text, Wanted

ELEMENT_BLOCK = 1 << 19
"""Elements derived at once by each worker, at most."""

Compared = tuple[int, str, int, int]
"""The array's number, the difference that was found, or "", and how many elements and bytes were
compared.
"""


class _Derived:
    """Compares the arrays of ``result`` with what a growth of ``source`` makes of them."""

    def __init__(
        self, source: Checkpoint, result: Checkpoint, growth: Growth, init_std: float | None
    ) -> None:
        self._values = ModelValues(growth, source, init_std)
        self._readers = result.readers

    @property
    def arrays(self) -> list[tuple[State, Piece]]:
        """All arrays of the result that are stored."""
        return [
            (state, array)
            for state, reader in self._readers.items()
            for array in reader.arrays
            if not isinstance(array, ZeroPiece | CastPiece)
        ]

    def tasks(self, numbers: Iterable[int], limit: int) -> Iterator[Callable[[], Compared]]:
        """Yield what compares these arrays, one strip after the other."""
        arrays = self.arrays
        for number in numbers:
            state, array = arrays[number]
            start = 0
            for strip in array.placement.strips(limit):
                yield partial(self._compare, number, state, array, strip, start)
                start += sum(box.count for box in strip.boxes)

    def _compare(
        self, number: int, state: State, array: Piece, strip: Strip, start: int
    ) -> Compared:
        dtype = DTYPES[array.dtype]
        parts = list(zip(strip.segments, strip.boxes, strict=True))
        with np.errstate(all="ignore"):
            values = [self._values.box(state, part.tensor, box, dtype) for part, box in parts]
        wanted = strip.arrange(values).reshape(-1)
        found = np.empty(wanted.size, dtype)
        array.read_into(start * dtype.itemsize, as_bytes(found))
        bits = f"u{found.itemsize}"
        if np.array_equal(found.view(bits), wanted.view(bits)):
            return number, "", found.size, found.nbytes
        difference = f"{array}: {state} of {_place(strip, found, wanted)}"
        return number, difference, found.size, found.nbytes


def _place(strip: Strip, found: Array, wanted: Array) -> str:
    """Name the first entry of a strip that differs, by its tensor and logical index."""
    bits = f"V{found.itemsize}"
    first = int(np.flatnonzero(found.view(bits) != wanted.view(bits))[0])
    sizes = [box.count for box in strip.boxes]
    starts = np.cumsum([0, *sizes])
    numbers = [
        np.arange(start, start + box.count).reshape(box.shape)
        for start, box in zip(starts, strip.boxes, strict=False)
    ]
    number = int(strip.arrange(numbers).reshape(-1)[first])
    part = int(np.searchsorted(starts, number, "right")) - 1
    box = strip.boxes[part]
    inside = np.unravel_index(number - int(starts[part]), box.shape)
    index = [low + int(i) for (low, _), i in zip(box.ranges, inside, strict=True)]
    name = strip.segments[part].tensor
    return Text(f"{name} differs in {index}: ", Found(found[first]), Wanted(wanted[first]))


def stored_bytes(reader: LogicalReader) -> int:
    """Return how many bytes all arrays of a state have, copies included."""
    return sum(map(_array_bytes, reader.arrays))


def _array_bytes(array: Piece) -> int:
    return prod(array.placement.shape) * DTYPES[array.dtype].itemsize


@dataclass(frozen=True)
class Sharing:
    """How ranks share the arrays; on rank 0, ``begun`` is what it does besides, in bytes."""

    ranks: Ranks = ALONE
    begun: int = 0


UNSHARED = Sharing()


def check_elements(
    source: Checkpoint,
    result: Checkpoint,
    growth: Growth,
    init_std: float | None,
    workers: int,
    limit: int = ELEMENT_BLOCK,
    progress: Progress = lambda _: None,
    sharing: Sharing = UNSHARED,
) -> Callable[[], Check]:
    """Derive every element of the result again from the source, and compare the bits.

    Each of the ``workers`` derives at most ``limit`` elements at once; ``progress`` is told the
    bytes that were compared. Of several ranks, each compares its share; what is returned waits for
    the others, and gives the check.
    """
    if refusal := _refusal(source, result, growth):
        return lambda: Check("elements", False, refusal)
    derived, ranks = _Derived(source, result, growth, init_std), sharing.ranks
    arrays, world = derived.arrays, ranks.world
    costs = [_array_bytes(array) for _, array in arrays]
    shares = shared_out(range(len(arrays)), costs.__getitem__, world.size, [sharing.begun])
    wrong: list[tuple[int, str]] = []
    total = 0
    ranks.watch(progress)
    keep_freed_memory()
    with ThreadPoolExecutor(workers) as pool:
        tasks = derived.tasks(shares[world.rank], limit)
        for number, difference, count, nbytes in in_order(pool, tasks, workers + 1):
            if difference:
                wrong = [(number, difference)]
                break
            total += count
            progress(nbytes)
            ranks.report(nbytes)
    kinds = "values" if len(result.readers) == 1 else f"{', '.join(result.readers)} values"

    def joined() -> Check:
        found = ranks.exchange([wrong, total], list)
        differences = sorted((number, text) for wrong, _ in found for number, text in wrong)
        if differences:
            return Check("elements", False, differences[0][1])
        count = sum(total for _, total in found)
        told = f"{count:,} {kinds} derived again from the source: bit-equal"
        return Check("elements", True, told)

    return joined


def _refusal(source: Checkpoint, result: Checkpoint, growth: Growth) -> str:
    """Return why elements cannot be derived at all; "" if they can."""
    if lost := source.readers.keys() - result.readers.keys():
        return f"{result.folder}: has no {', '.join(sorted(lost))}"
    if unknown := result.readers.keys() - source.readers.keys():
        return f"{result.folder}: has {', '.join(sorted(unknown))}, the source has none"
    if result.config.sizes != growth.new.sizes:
        return "it has other sizes than the growth leads to"
    return ""
