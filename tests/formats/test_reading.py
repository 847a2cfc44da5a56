"""Boxes of logical tensors, put together from wherever their pieces lie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import CONFIGS, even, make_checkpoint, padded_vocab, stored_weights
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats import reading
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.formats.pieces import as_bytes, read_whole
from flmgrow.formats.reading import AssembledArray, LogicalReader
from flmgrow.model.axes import Axis, Box, full_box

CONFIG = CONFIGS["gpt"]
LAYOUTS = [even(CONFIG), even(CONFIG, 2, 2), Layout(4, 2, 2, (1, 0, 2, 1))]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("reading")
    with open_megatron(make_checkpoint(folder / "a", CONFIG, request.param)) as opened:
        yield opened


def whole(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = stored_weights(CONFIG)[name].numpy()
    return array


@examples(60)
@given(data=st.data())
def test_any_box_is_that_slice_of_the_whole(checkpoint: Checkpoint, data: DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(stored_weights(CONFIG))))
    full = whole(name)
    ranges = []
    for extent in full.shape:
        start = data.draw(st.integers(0, extent - 1))
        ranges.append((start, data.draw(st.integers(start + 1, extent))))
    box = Box(tuple(ranges))
    wanted = full[box.relative_to(full_box(full.shape))]
    assert np.array_equal(checkpoint.reader.read(name, box), wanted)


def test_small_pieces_give_the_same(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)
    for name in stored_weights(CONFIG):
        full = whole(name)
        read = checkpoint.reader.read(name, full_box(full.shape))
        assert np.array_equal(read, full), name


def test_counts_and_shapes_include_padding_but_no_replicas(checkpoint: Checkpoint) -> None:
    padded = padded_vocab(CONFIG, checkpoint.layout.tp)
    for name in stored_weights(CONFIG):
        shape = checkpoint.reader.shape(name)
        assert checkpoint.reader.stored_elements()[name] == np.prod(shape)
        assert checkpoint.reader.dtype(name) == np.float64
    assert checkpoint.reader.shape("head") == (padded, CONFIG.hidden)


def test_replicas_are_what_every_tensor_rank_holds(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    with open_megatron(make_checkpoint(tmp_path / "a", config, even(config, 2, 2))) as opened:
        groups = opened.reader.replicas()
    keys = [{array.placement.key for array in group} for group in groups]
    tied = {"embedding.word_embeddings.weight", "output_layer.weight"}
    assert sum(group == tied for group in keys) == 2
    assert sum(bool(group & {"decoder.final_layernorm.weight"}) for group in keys) == 1
    assert len(groups) == 2 + 1 + 2 * config.layers
    assert all(len(group) == 2 for group in groups)


@examples(60)
@given(data=st.data())
def test_an_assembled_array_is_the_stored_one(checkpoint: Checkpoint, data: DataObject) -> None:
    piece = data.draw(st.sampled_from(checkpoint.reader.arrays))
    wanted = read_whole(piece).reshape(-1)
    start = data.draw(st.integers(0, wanted.size))
    stop = data.draw(st.integers(start, wanted.size))
    found = np.empty(stop - start)
    assembled = AssembledArray(piece.placement, checkpoint.reader)
    assert assembled.dtype == piece.dtype
    assembled.read_into(start * 8, as_bytes(found))
    assert np.array_equal(found, wanted[start:stop])


def test_what_is_not_stored_is_not_made_up(tmp_path: Path) -> None:
    with open_megatron(make_checkpoint(tmp_path / "a", CONFIG, even(CONFIG, 2))) as opened:
        some = [a for a in opened.reader.arrays if a.placement.tensor_rank == 0]
        sizes = {**CONFIG.sizes, Axis.VOCAB: opened.padded_vocab}
        reader = LogicalReader(opened.reader.tensors, sizes, some)
        with pytest.raises(BadCheckpointError, match="up: 480 of 960 elements are not stored"):
            reader.read("up", full_box(reader.shape("up")))
        assert reader.stored_elements()["up"] == 480
