"""Moves say where every element of a grown box comes from, once each, without reading anything."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn
from pico import CONFIGS
from strategies import Case, cases, examples

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import padded_size
from flmgrow.model.axes import (
    FRESH,
    PADDING,
    Axis,
    AxisMap,
    Box,
    Fill,
    Role,
    full_box,
    intersect,
    split,
)
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth, count, factors, moves
from flmgrow.operators.target import Target, grow


@st.composite
def axis_maps(draw: DrawFn, old: int) -> AxisMap:
    """Any sources at all, with fills for some roles."""
    source = draw(st.lists(st.integers(PADDING, old - 1), min_size=1, max_size=8))
    fill = draw(st.dictionaries(st.sampled_from(list(Role)), st.sampled_from(list(Fill))))
    return AxisMap(old, np.array(source, np.int64), fill=fill)


@st.composite
def boxes(draw: DrawFn, shape: tuple[int, ...]) -> Box:
    ranges = []
    for extent in shape:
        start = draw(st.integers(0, extent - 1))
        ranges.append((start, draw(st.integers(start + 1, extent))))
    return Box(tuple(ranges))


@examples(150)
@given(st.data())
def test_moves_tile_any_box_once_and_agree_with_the_axis_maps(data: DataObject) -> None:
    config = CONFIGS["flm"]
    grown = data.draw(st.sets(st.sampled_from([Axis.HIDDEN, Axis.FFN, Axis.LAYER]), min_size=1))
    maps = {axis: data.draw(axis_maps(config.sizes[axis])) for axis in grown}
    growth = Growth(config, config, maps)
    tensor = data.draw(st.sampled_from(list(logical_tensors(config).values())))
    sizes = {**config.sizes, **{axis: axis_map.new_size for axis, axis_map in maps.items()}}
    box = data.draw(boxes(tensor.shape(sizes)))
    covered = np.zeros(box.shape, int)
    for move in moves(growth, tensor, box):
        inside = move.box.relative_to(box)
        covered[inside] += 1
        for place, axis in enumerate(tensor.axes):
            start, stop = move.box.ranges[place]
            source = maps[axis].source[start:stop] if axis in maps else np.arange(start, stop)
            if move.fill is None:
                assert move.old is not None
                assert np.array_equal(source, np.arange(*move.old.ranges[place]))
            elif place in move.mean_axes:
                assert move.fill in (Fill.MEAN, Fill.NEAR)
                assert move.old is not None
                assert move.old.ranges[place] == (0, config.sizes[axis])
                assert (source == FRESH).all()
        fresh = [
            maps[axis].source[start] < 0
            for axis, (start, _) in zip(tensor.axes, move.box.ranges, strict=True)
            if axis in maps
        ]
        assert any(fresh) == (move.fill is not None)
    assert (covered == 1).all()
    assert count(growth, tensor, box).total == box.count


@pytest.mark.slow
@examples(50)
@given(cases())
def test_counts_of_a_growth_add_up_to_its_model(case: Case) -> None:
    config, target = case.config, case.target
    vocab = target.vocab or config.vocab
    padded = padded_size(vocab, 8, case.new_layout.tp)
    try:
        growth = grow(config, target, padded_size(config.vocab, 8, case.layout.tp), padded)
    except UsageError:
        assert case.refused
        return
    sizes = {**growth.new.sizes, Axis.VOCAB: padded}
    for tensor in logical_tensors(growth.new).values():
        box = full_box(tensor.shape(sizes))
        total = count(growth, tensor, box)
        assert total.total == box.count
        parts = Counter[str]()
        for part in split(box, 11):
            counts = count(growth, tensor, part)
            parts.update(vars_of(counts))
        assert dict(parts) == vars_of(total)
        assert all(np.isfinite(factor).all() for factor in factors(growth, tensor, box))


def vars_of(counts: object) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("copied", "drawn", "zero", "near", "mean")}


@examples(100)
@given(st.data(), st.integers(1, 40))
def test_split_cuts_a_box_in_storage_order(data: DataObject, limit: int) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    box = data.draw(boxes(shape))
    whole = numbers[box.relative_to(full_box(shape))]
    parts = list(split(box, limit))
    assert all(part.count <= limit for part in parts)
    flat = [numbers[part.relative_to(full_box(shape))].reshape(-1) for part in parts]
    assert np.array_equal(np.concatenate(flat), whole.reshape(-1))


@examples(100)
@given(st.data())
def test_intersection_holds_what_both_boxes_hold(data: DataObject) -> None:
    a, b = data.draw(boxes((5, 4))), data.draw(boxes((5, 4)))

    def holds(box: Box) -> set[tuple[int, int]]:
        rows, columns = box.ranges
        return {(i, j) for i in range(*rows) for j in range(*columns)}

    common = intersect(a, b)
    assert (holds(a) & holds(b)) == (holds(common) if common else set())


def test_a_growth_of_nothing_is_the_identity() -> None:
    config = CONFIGS["llama"]
    growth = grow(config, Target(), 56, 56)
    assert growth.new == config
    assert not growth.maps
    assert growth.preserves
