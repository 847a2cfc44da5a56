"""Elements: growth is deterministic, so every stored value is derived again from the source.

What is compared are the bytes of every array of every file, copies and padding included: they are
what the ranks of a trainer load. Nothing is read through the index of the reader, which takes the
first of several copies.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.segments import Strip
from flmgrow.formats.reading import DTYPES, Array, LogicalReader, Piece, as_bytes
from flmgrow.model.states import State
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.progress import Progress
from flmgrow.surgery.execute import in_order
from flmgrow.surgery.states import ModelValues

ELEMENT_BLOCK = 1 << 20
"""Elements derived at once by each worker, at most."""

Compared = tuple[str, int, int]
"""The difference that was found, or "", and how many elements and bytes were compared."""


class _Derived:
    """Compares the arrays of ``result`` with what a growth of ``source`` makes of them."""

    def __init__(
        self, source: Checkpoint, result: Checkpoint, growth: Growth, init_std: float | None
    ) -> None:
        self._values = ModelValues(growth, source, init_std)
        self._readers = result.readers

    def tasks(self, limit: int) -> Iterator[Callable[[], Compared]]:
        for state, reader in self._readers.items():
            for array in reader.arrays:
                start = 0
                for strip in array.placement.strips(limit):
                    yield partial(self._compare, state, array, strip, start)
                    start += sum(box.count for box in strip.boxes)

    def _compare(self, state: State, array: Piece, strip: Strip, start: int) -> Compared:
        dtype = DTYPES[array.dtype]
        parts = list(zip(strip.segments, strip.boxes, strict=True))
        with np.errstate(all="ignore"):
            values = [self._values.box(state, part.tensor, box, dtype) for part, box in parts]
        wanted = strip.arrange(values).reshape(-1)
        found = np.empty(wanted.size, dtype)
        array.read_into(start * dtype.itemsize, as_bytes(found))
        if as_bytes(found) == as_bytes(wanted):
            return "", found.size, found.nbytes
        return f"{array}: {state} of {_place(strip, found, wanted)}", found.size, found.nbytes


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
    return f"{name} differs in {index}: {found[first]}, wanted {wanted[first]}"


def stored_bytes(reader: LogicalReader) -> int:
    """Return how many bytes all arrays of a state have, copies included."""
    arrays = reader.arrays
    return sum(prod(a.placement.shape) * DTYPES[a.dtype].itemsize for a in arrays)


def check_elements(
    source: Checkpoint,
    result: Checkpoint,
    growth: Growth,
    init_std: float | None,
    workers: int,
    limit: int = ELEMENT_BLOCK,
    progress: Progress = lambda _: None,
) -> Check:
    """Derive every element of the result again from the source, and compare the bits.

    Each of the ``workers`` derives at most ``limit`` elements at once; ``progress`` is told the
    bytes that were compared.
    """
    if lost := source.readers.keys() - result.readers.keys():
        return Check("elements", False, f"{result.folder}: has no {', '.join(sorted(lost))}")
    if unknown := result.readers.keys() - source.readers.keys():
        what = ", ".join(sorted(unknown))
        return Check("elements", False, f"{result.folder}: has {what}, the source has none")
    if result.config.sizes != growth.new.sizes:
        return Check("elements", False, "it has other sizes than the growth leads to")
    derived = _Derived(source, result, growth, init_std)
    total = 0
    with ThreadPoolExecutor(workers) as pool:
        for difference, count, nbytes in in_order(pool, derived.tasks(limit), workers + 1):
            if difference:
                return Check("elements", False, difference)
            total += count
            progress(nbytes)
    kinds = "values" if len(result.readers) == 1 else f"{', '.join(result.readers)} values"
    return Check("elements", True, f"{total:,} {kinds} derived again from the source: bit-equal")
