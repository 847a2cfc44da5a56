"""Whatever the order of an array's elements: what is written is what numpy would put there, and
any box of it is read back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn
from strategies import examples

from flmgrow.formats import reading
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.pieces import as_bytes
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.huggingface import GPT2, GPT_NEOX, LLAMA
from flmgrow.formats.tables.row import Home, Row
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Axis, Box, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import LogicalTensor, logical_tensors

TABLES = (ROWS, LLAMA, GPT2, GPT_NEOX)


@dataclass(eq=False)
class MemoryPiece:
    """An array in memory, which counts what is read of it."""

    placement: Placement
    data: bytes
    dtype: str = "float64"
    read: int = field(default=0)

    def read_into(self, offset: int, target: memoryview) -> None:
        assert offset + target.nbytes <= len(self.data)
        target[:] = self.data[offset : offset + target.nbytes]
        self.read += target.nbytes

    def checksum(self) -> int | None:
        return None


@st.composite
def models(draw: DrawFn) -> ModelConfig:
    return ModelConfig(
        layers=1,
        hidden=draw(st.integers(1, 7)),
        ffn=draw(st.integers(1, 7)),
        kv_groups=draw(st.integers(1, 3)),
        queries_per_group=draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 3)),
        vocab=5,
        max_positions=4,
        activation=draw(st.sampled_from(["gelu", "swiglu"])),
        positions="learned",
        tied=False,
    )


def by_numpy(row: Row, parts: Sequence[LogicalTensor], whole: dict[str, Array]) -> Array:
    """The stored array, said in whole-array terms: move axes to the front, concatenate."""
    inputs = (*row.inputs, *(row.outer if len(parts) > 1 else ()))
    pieces = []
    for part in parts:
        array = whole[part.name]
        array = array[0] if part.layered else array
        axes: list[Axis] = [axis for axis in part.axes if axis is not Axis.LAYER]
        order = [*inputs, *(axis for axis in axes if axis not in inputs)]
        array = array.transpose([axes.index(axis) for axis in order])
        pieces.append(array.reshape(int(np.prod(array.shape[: len(inputs)])), -1))
    return np.concatenate(pieces, 1)


@examples(150)
@given(data=st.data())
def test_written_and_read_in_any_order(data: DataObject) -> None:
    config = data.draw(models())
    tensors = logical_tensors(config)
    whole = {
        name: np.random.default_rng(len(name)).standard_normal(tensor.shape(config.sizes))
        for name, tensor in tensors.items()
    }
    table = data.draw(st.sampled_from(TABLES))
    rows = [row for row in table if any(part in tensors for part in row.parts)]
    row = data.draw(st.sampled_from([row for row in rows if row.home is not Home.LAST_COPY]))
    parts = tuple(tensors[name] for name in row.parts if name in tensors)
    ranges = {axis: (0, size) for axis, size in config.sizes.items()}
    placement = Placement(row, row.key, 0, 0, 0, parts, ranges)
    wanted = by_numpy(row, parts, whole)
    assert wanted.size == np.prod(placement.shape)

    limit = data.draw(st.integers(1, 80))
    written = b""
    for strip in placement.strips(limit):
        values = [
            whole[segment.tensor][box.relative_to(segment.box)]
            for segment, box in zip(strip.segments, strip.boxes, strict=True)
        ]
        block = strip.arrange(values)
        assert block.size <= limit
        written += bytes(as_bytes(block))
    assert written == wanted.tobytes()

    piece = MemoryPiece(placement, written)
    reader = LogicalReader(tensors, config.sizes, [piece])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE_BYTES", data.draw(st.sampled_from([8, 100, 1 << 20])))
        patch.setattr(reading, "LONG_RUN", data.draw(st.sampled_from([8, 60, 1 << 20])))
        for part in parts:
            spans = []
            for extent in part.shape(config.sizes):
                start = data.draw(st.integers(0, extent - 1))
                spans.append((start, data.draw(st.integers(start + 1, extent))))
            box = Box(tuple(spans))
            full = full_box(part.shape(config.sizes))
            found = reader.read(part.name, box)
            assert np.array_equal(found, whole[part.name][box.relative_to(full)])


def test_a_transposed_matrix_is_read_in_large_pieces() -> None:
    """As in GPT-2: a read for every row of 2 KiB would take a million of them."""
    config = ModelConfig(
        layers=1, hidden=64, ffn=512, kv_groups=4, queries_per_group=1, head_dim=16, vocab=8,
        max_positions=8, positions="learned",
    )  # fmt: skip
    tensors = logical_tensors(config)
    reads: list[int] = []
    for row in GPT2:
        if not row.inputs:
            continue
        parts = tuple(tensors[name] for name in row.parts)
        ranges = {axis: (0, size) for axis, size in config.sizes.items()}
        placement = Placement(row, row.key, 0, 0, 0, parts, ranges)
        total = int(np.prod(placement.shape))

        class Counting(MemoryPiece):
            def read_into(self, offset: int, target: memoryview) -> None:
                reads.append(target.nbytes)
                super().read_into(offset, target)

        piece = Counting(placement, np.zeros(total).tobytes())
        reader = LogicalReader(tensors, config.sizes, [piece])
        for part in parts:
            reader.read(part.name, full_box(part.shape(config.sizes)))
            assert piece.read <= len(parts) * len(piece.data)
    assert len(reads) == 6  # one for each tensor in the four kinds of matrices


def test_long_runs_are_read_alone() -> None:
    """As in Megatron: the key of a group of many queries is read without the queries."""
    config = ModelConfig(
        layers=1, hidden=64, ffn=4, kv_groups=4, queries_per_group=8, head_dim=64, vocab=8,
        max_positions=8,
    )  # fmt: skip
    tensors = logical_tensors(config)
    row = next(row for row in ROWS if "key" in row.parts)
    parts = tuple(tensors[name] for name in row.parts)
    ranges = {axis: (0, size) for axis, size in config.sizes.items()}
    placement = Placement(row, row.key, 0, 0, 0, parts, ranges)
    piece = MemoryPiece(placement, bytes(8 * int(np.prod(placement.shape))))
    reader = LogicalReader(tensors, config.sizes, [piece])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "LONG_RUN", 64 * 64 * 8)
        key = reader.read("key", full_box(tensors["key"].shape(config.sizes)))
    assert piece.read == key.nbytes
