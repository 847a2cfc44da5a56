"""Spreads, means and drawn values must not depend on how boxes are cut or files laid out."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from growing import grow_checkpoint, same_bits, stored_arrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import CONFIGS, even, logical_weights, make_checkpoint, stored_weights
from sampling import first
from strategies import examples

from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Axis, Box, full_box, split
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.draws import DRAWS
from flmgrow.operators.target import Target, grow, parse_methods
from flmgrow.surgery import statistics as statistics_module
from flmgrow.surgery import values as values_module
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.statistics import Statistics
from flmgrow.surgery.values import FALLBACK_STD, GrownValues

CONFIG = CONFIGS["flm"]
WEIGHTS = logical_weights(CONFIG)
TARGET = Target(hidden=30, ffn=28, layers=5, kv_groups=6)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    return make_checkpoint(folder / "a", CONFIG, even(CONFIG, 2, 2))


@examples(60)
@given(data=st.data())
def test_any_box_is_a_slice_of_the_whole(source: Path, data: DataObject) -> None:
    method = data.draw(st.sampled_from(["mask", "copy"]))
    target = Target(**{**vars(TARGET), "methods": parse_methods(method)})
    with open_megatron(source) as opened:
        growth = grow(CONFIG, target, 64, 64)
        sizes = {**growth.new.sizes, Axis.VOCAB: 64}
        tensors = logical_tensors(growth.new)
        tensor = tensors[data.draw(st.sampled_from(sorted(tensors)))]
        shape = list(tensor.shape(sizes))
        ranges = []
        for place, extent in enumerate(shape):
            start = data.draw(st.integers(0, extent - 1))
            stop = start + 1 if place == 0 and tensor.layered else None
            ranges.append((start, stop or data.draw(st.integers(start + 1, extent))))
        whole = full_box(tuple(shape))
        if tensor.layered:
            whole = Box((ranges[0], *whole.ranges[1:]))
        box = Box(tuple(ranges))
        dtype = np.dtype(np.float64)
        part = GrownValues(growth, opened.reader).box(tensor, box, dtype)
        everything = GrownValues(growth, opened.reader).box(tensor, whole, dtype)
    assert np.array_equal(part, everything[box.relative_to(whole)])


@pytest.mark.parametrize("draw", first(1, sorted(DRAWS, reverse=True)))
@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
@pytest.mark.parametrize("name", ["gpt", "tele"])
def test_pieces_of_any_size_make_the_same_values(
    name: str, method: str, draw: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fills, means, centring, factors and noise, each cut where a piece ends."""
    config = CONFIGS[name]
    target = Target(**{**vars(TARGET), "vocab": 60, "methods": parse_methods(method)})
    growth = replace(grow(config, target, 64, 64), draw=draw)
    sizes = {**growth.new.sizes, Axis.VOCAB: 64}
    source = make_checkpoint(tmp_path / "a", config, multiple=64)
    found = []
    with open_megatron(source) as opened:
        for piece in (values_module.PIECE, 17, 1):
            monkeypatch.setattr(values_module, "PIECE", piece)
            values = GrownValues(growth, opened.reader)
            found.append([
                values.box(tensor, Box(((layer, layer + 1), *whole.ranges[1:])), np.dtype("f8"))
                if tensor.layered
                else values.box(tensor, whole, np.dtype("f8"))
                for tensor in logical_tensors(growth.new).values()
                for whole in [full_box(tensor.shape(sizes))]
                for layer in ((0, growth.new.layers - 1) if tensor.layered else (0,))
            ])  # fmt: skip
    for other in found[1:]:
        assert all(same_bits(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["embedding", "query", "down"])
@pytest.mark.parametrize("block", [7, 100, 1 << 20])
def test_a_spread_is_the_standard_deviation(
    source: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_module, "BLOCK", block)
    with open_megatron(source) as opened:
        box = full_box(WEIGHTS[name].shape)
        spread = Statistics(opened.reader).std(name, box)
    assert spread == pytest.approx(WEIGHTS[name].std(), rel=1e-6)


def test_a_sampled_spread_looks_at_evenly_spaced_rows(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_module, "OLD_SAMPLE", 12 * 20)
    with open_megatron(source) as opened:
        spread = Statistics(opened.reader, draw=1).std("embedding", Box(((0, 51), (0, 12))))
    assert spread == pytest.approx(WEIGHTS["embedding"][::3].std(), rel=1e-6)


def test_a_sampled_spread_looks_at_evenly_spaced_bands(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_module, "SAMPLE", 12 * 20)
    monkeypatch.setattr(statistics_module, "BANDS", 5)
    with open_megatron(source) as opened:
        spread = Statistics(opened.reader).std("embedding", Box(((0, 51), (0, 12))))
    rows = [row for first in (4, 12, 24, 32, 44) for row in range(first, first + 4)]
    assert spread == pytest.approx(WEIGHTS["embedding"][rows].std(), rel=1e-6)


@examples(100)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_bands_are_some_of_the_boxes_that_a_tensor_is_cut_into(
    shape: list[int], sample: int, bands: int, start: int
) -> None:
    box = Box(tuple((start, start + extent) for extent in shape))
    with patch.multiple(statistics_module, SAMPLE=sample, BANDS=bands):
        found = statistics_module._bands(box)
    if box.count <= sample:
        assert found == [box]
        return
    cut = list(split(box, sample // bands))
    places = [cut.index(band) for band in found]
    assert places == sorted(set(places))
    assert sum(band.count for band in found) <= max(sample, bands)


def test_a_sampled_spread_of_a_large_tensor_is_close(tmp_path: Path) -> None:
    """Within four of its own standard errors, and the same whatever is read at once."""
    config = replace(CONFIG, hidden=400, ffn=1000, layers=1)
    source = make_checkpoint(tmp_path / "a", config)
    weights = logical_weights(config)["up"]
    assert weights.size > statistics_module.SAMPLE
    with open_megatron(source) as opened:
        found = {Statistics(opened.reader).std("up", full_box(weights.shape)) for _ in range(2)}
    (spread,) = found
    error = weights.std() / (2 * statistics_module.SAMPLE) ** 0.5
    assert 0 < abs(spread - weights.std()) < 4 * error


@pytest.mark.parametrize("axis", [0, 1])
def test_means_of_parts_are_parts_of_the_mean(source: Path, axis: int) -> None:
    weights: Array = WEIGHTS["embedding"]
    with open_megatron(source) as opened:
        statistics = Statistics(opened.reader)
        whole = statistics.mean("embedding", full_box(opened.reader.shape("embedding")), axis)
        box = Box(((3, 9), (0, 12)) if axis else ((0, 64), (2, 5)))
        part = statistics.mean("embedding", box, axis)
    if axis == 1:
        assert np.abs(whole[:51, 0] - weights.mean(1)).max() < 1e-15
        assert np.array_equal(part, whole[3:9])
    else:
        assert np.array_equal(part, whole[:, 2:5])


def test_fresh_entries_have_the_spread_of_the_old_layer_they_stand_in(source: Path) -> None:
    with open_megatron(source) as opened:
        growth = grow(CONFIG, Target(ffn=4000, layers=5), 64, 64)
        grown = GrownValues(growth, opened.reader)
        tensor = logical_tensors(growth.new)["up"]
        for layer, donor in enumerate([0, 1, 2, 3, 3]):
            box = Box(((layer, layer + 1), (20, 4000), (0, 12)))
            drawn = grown.box(tensor, box, np.dtype(np.float64))
            assert drawn.std() == pytest.approx(WEIGHTS["up"][donor].std(), rel=0.03)
            assert abs(drawn.mean()) < 0.03 * drawn.std()


def test_padding_does_not_move_a_spread(tmp_path: Path) -> None:
    spreads = []
    for tp in (1, 4):
        make_checkpoint(tmp_path / str(tp), CONFIG, even(CONFIG, tp))
        with open_megatron(tmp_path / str(tp)) as opened:
            growth = grow(CONFIG, Target(hidden=20), opened.padded_vocab, 64)
            tensors = logical_tensors(growth.new)
            sizes = {**growth.new.sizes, Axis.VOCAB: 64}
            spreads.append(GrownValues(growth, opened.reader).spreads(tensors, sizes))
    assert spreads[0] == spreads[1]
    assert spreads[0]["embedding"] == pytest.approx(WEIGHTS["embedding"].std(), rel=1e-6)


def test_a_spread_can_be_given_and_zeros_have_one(tmp_path: Path) -> None:
    weights = {**stored_weights(CONFIG), "down": torch.zeros(4, 12, 20, dtype=torch.float64)}
    source = make_checkpoint(tmp_path / "a", CONFIG, weights=weights)
    target = Target(ffn=2000)
    grow_checkpoint(source, tmp_path / "b", target)
    grow_checkpoint(source, tmp_path / "c", target, execution=Execution(init_std=0.5))
    own, given_std = stored_arrays(tmp_path / "b"), stored_arrays(tmp_path / "c")
    assert own["down"][..., 20:].std() == pytest.approx(FALLBACK_STD, rel=0.03)
    for name in ("up", "down"):
        fresh = given_std[name][:, 20:] if name == "up" else given_std[name][..., 20:]
        assert fresh.std() == pytest.approx(0.5, rel=0.03)


def test_noise_cancels_over_copies_and_is_large_enough_to_part_them(source: Path) -> None:
    with open_megatron(source) as opened:
        growth = grow(CONFIG, Target(hidden=36, methods=parse_methods("copy")), 64, 64)
        tensor = logical_tensors(growth.new)["up"]
        box = Box(((0, 1), (0, 20), (0, 36)))
        read = GrownValues(growth, opened.reader).box(tensor, box, np.dtype(np.float64))[0]
    parts = np.split(read, 3, -1)
    old = WEIGHTS["up"][0]
    assert np.abs(sum(parts) - old).max() < 1e-15
    assert np.abs(parts[2] - old / 3).max() < 1e-15
    noise = parts[0] - old / 3
    assert noise.std() == pytest.approx(0.1 * old.std() / 3, rel=0.15)
