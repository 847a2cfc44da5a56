"""Checking that the chunks of a tensor cover it exactly once.

Chunks that leave a hole in a tensor, or lie over each other, make a model nobody trained. They must
cover it exactly once. To compare each of 100,000 chunks with each other would take hours; so the
tensor is cut along every side of every chunk, and each cell may be taken once. In practice chunks
form a grid, and are a cell each.
"""

import itertools
import math
from collections.abc import Sequence

from flmgrow.text import Found, Text, Wanted

Numbers = tuple[int, ...]

MAX_CELLS = 1 << 22


def tiling_fault(shape: Numbers, boxes: Sequence[tuple[Numbers, Numbers]]) -> Text | None:
    """Return what is wrong with ``boxes`` (offsets and sizes), or None if they tile ``shape``.

    All sizes are in elements, and no box is empty.
    """
    total = math.prod(shape)
    covered = 0
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(shape):
            counts = f"{len(offsets)} offsets and {len(sizes)} sizes"
            return Text("found a chunk of ", Found(counts), Wanted(f"{len(shape)} of each"))
        if any(at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=True)):
            chunk = Found(f"chunk {_text(offsets, sizes)}")
            return Text("found ", chunk, f", which is outside its {list(shape)}")
        covered += math.prod(sizes)
    if len(boxes) > 1:
        fault = _overlap(boxes, len(shape))
        if fault:
            return fault
    if covered != total:
        chunks = Found(f"chunks of {covered} elements together")
        return Text("found ", chunks, Wanted(f"{total}: there is a hole"))
    return None


def _overlap(boxes: Sequence[tuple[Numbers, Numbers]], dimensions: int) -> Text | None:
    """Return which two boxes overlap, or None."""
    places: list[dict[int, int]] = []
    for axis in range(dimensions):
        cuts = {offsets[axis] for offsets, _ in boxes}
        cuts |= {offsets[axis] + sizes[axis] for offsets, sizes in boxes}
        places.append({cut: place for place, cut in enumerate(sorted(cuts))})
    taken: dict[Numbers, int] = {}
    for number, (offsets, sizes) in enumerate(boxes):
        spans = [
            range(place[at], place[at + size])
            for place, at, size in zip(places, offsets, sizes, strict=True)
        ]
        if len(taken) + math.prod(map(len, spans)) > MAX_CELLS:
            chunks = Found(f"{len(boxes)} chunks without any order")
            return Text("found ", chunks, Wanted("chunks that form a grid"))
        for cell in itertools.product(*spans):
            other = taken.setdefault(cell, number)
            if other != number:
                both = f"{_text(*boxes[other])} and {_text(offsets, sizes)}"
                return Text("found ", Found(f"overlapping chunks {both}"))
    return None


def _text(offsets: Numbers, sizes: Numbers) -> str:
    return f"{list(offsets)} of sizes {list(sizes)}"
