"""Elements: growth is deterministic, so every stored value is derived again from the source."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.reading import Array, Piece, as_bytes
from flmgrow.model.axes import Box, split
from flmgrow.model.states import State
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.execute import in_order
from flmgrow.surgery.states import ModelValues

ELEMENT_BLOCK = 1 << 20


def check_elements(
    source: Checkpoint, result: Checkpoint, growth: Growth, init_std: float | None, workers: int
) -> Check:
    """Derive every element of the result again from the source, and compare the bits."""
    values = ModelValues(growth, source, init_std)
    if lost := source.readers.keys() - result.readers.keys():
        return Check("elements", False, f"{result.folder}: has no {', '.join(sorted(lost))}")

    def compare_box(state: State, array: Piece, name: str, box: Box) -> tuple[str, int]:
        found = result.readers[state].read(name, box)
        wanted = values.box(state, name, box, found.dtype)
        same = bytes(as_bytes(found)) == bytes(as_bytes(np.ascontiguousarray(wanted)))
        if same:
            return "", box.count
        return f"{array}: {state} of {name} differs in {_place(found, wanted, box)}", box.count

    tasks = (
        partial(compare_box, state, array, segment.tensor, box)
        for state, reader in result.readers.items()
        for array in reader.arrays
        for segment in array.placement.segments()
        for box in split(segment.box, ELEMENT_BLOCK)
    )
    total = 0
    with ThreadPoolExecutor(workers) as pool:
        for difference, count in in_order(pool, tasks, workers + 1):
            if difference:
                return Check("elements", False, difference)
            total += count
    kinds = "values" if len(result.readers) == 1 else f"{', '.join(result.readers)} values"
    return Check("elements", True, f"{total:,} {kinds} derived again from the source: bit-equal")


def _place(found: Array, wanted: Array, box: Box) -> str:
    """Name the first entry that differs, by its logical index."""
    inside = np.argwhere(found.view(f"V{found.itemsize}") != wanted.view(f"V{found.itemsize}"))[0]
    index = [start + int(i) for (start, _), i in zip(box.ranges, inside, strict=True)]
    return f"{index}: {found[tuple(inside)]}, wanted {wanted[tuple(inside)]}"
