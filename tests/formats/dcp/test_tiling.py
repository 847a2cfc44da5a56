"""Chunks must cover a tensor exactly once; this is decided fast, for any number of them."""

import torch
from dcp_folders import Box, cut, grid
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.formats.dcp.tiling import MAX_CELLS, tiling_fault


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape and boxes that tile it: one box, cut in two again and again, where it may be."""
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 12))):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, sizes[axis]))
        pieces = [(offsets[axis], at), (offsets[axis] + at, sizes[axis] - at)]
        boxes += [
            (
                (*offsets[:axis], start, *offsets[axis + 1 :]),
                (*sizes[:axis], size, *sizes[axis + 1 :]),
            )
            for start, size in pieces
            if size
        ]
    return shape, draw(st.permutations(boxes))


def covers_once(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    count = torch.zeros(shape, dtype=torch.int32)
    for box in boxes:
        cut(count, box).add_(1)
    return bool((count == 1).all())


@given(tilings())
def test_any_tiling_is_accepted(tiling: tuple[tuple[int, ...], list[Box]]) -> None:
    assert tiling_fault(*tiling) is None


@given(tilings(), st.data())
def test_what_is_no_tiling_is_refused(
    tiling: tuple[tuple[int, ...], list[Box]], data: st.DataObject
) -> None:
    shape, boxes = tiling
    boxes = list(boxes)
    number = data.draw(st.integers(0, len(boxes) - 1))
    change = data.draw(st.sampled_from(["drop", "double", "replace", "resize"]))
    offsets, sizes = boxes[number]
    if change == "drop":
        del boxes[number]
    elif change == "double":
        boxes.append(boxes[number])
    elif change == "replace":
        boxes[number] = boxes[data.draw(st.integers(0, len(boxes) - 1))]
    else:
        axis = data.draw(st.integers(0, len(shape) - 1))
        size = data.draw(st.integers(1, shape[axis] - offsets[axis]))
        boxes[number] = (offsets, (*sizes[:axis], size, *sizes[axis + 1 :]))
    assert (tiling_fault(shape, boxes) is None) == covers_once(shape, boxes)


def test_a_hundred_thousand_chunks_are_checked() -> None:
    boxes = grid((100, 1000, 8), (100, 500, 2))
    assert tiling_fault((100, 1000, 8), boxes) is None
    boxes[77_777] = boxes[77_776]
    assert "overlapping chunks" in (tiling_fault((100, 1000, 8), boxes) or "")


def test_chunks_without_order_are_refused_before_they_fill_the_memory() -> None:
    size = 1 << 20
    steps: list[Box] = [((at, at), (1, 1)) for at in range(5000)]
    steps.append(((0, 0), (5000, 5000)))
    assert "without any order" in (tiling_fault((size, size), steps) or "")
    assert MAX_CELLS < 5000 * 5000
