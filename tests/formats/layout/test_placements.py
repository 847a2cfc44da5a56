"""Placements hold every element of every logical tensor exactly as often as Megatron does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import CONFIGS
from strategies import any_config, examples, layouts_of

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import Layout, check_divisible, make_layout, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis, full_box
from flmgrow.model.tensors import logical_tensors


@examples(80)
@given(st.data())
def test_placements_tile_every_tensor(data: DataObject) -> None:
    config = data.draw(any_config())
    layout = data.draw(layouts_of(config))
    tensors = logical_tensors(config)
    sizes = {**config.sizes, Axis.VOCAB: 64}
    held = {name: np.zeros(tensor.shape(sizes), int) for name, tensor in tensors.items()}
    keys = set()
    for placement in placements(ROWS, tensors, sizes, layout, data.draw(st.booleans())):
        rank = (placement.tensor_rank, placement.pipeline_rank, placement.chunk)
        assert (*rank, placement.key) not in keys
        keys.add((*rank, placement.key))
        elements = 0
        for segment in placement.segments:
            shape = held[segment.tensor].shape
            held[segment.tensor][segment.box.relative_to(full_box(shape))] += 1
            elements += segment.box.count
        assert elements == np.prod(placement.shape)
    for row in ROWS:
        for part in set(row.parts) & tensors.keys():
            copies = 1 if row.shard else layout.tp
            if part == "embedding" and config.tied and layout.pp > 1:
                copies += 1
            if row.home is not Home.LAST_COPY:
                assert (held[part] == copies).all(), part


@examples(80)
@given(st.data())
def test_chunks_share_out_the_layers_in_order(data: DataObject) -> None:
    layout = data.draw(layouts_of(CONFIGS["llama"]))
    ranges = [
        layout.chunk_range(pipeline, virtual)
        for virtual in range(layout.vpp)
        for pipeline in range(layout.pp)
    ]
    flat = [layer for start, stop in ranges for layer in range(start, stop)]
    assert flat == list(range(layout.layers))


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({"pp": 2}, (4, 4)),
        ({"pp": 2, "vpp": 2}, (2, 2, 2, 2)),
        ({"pp": 2, "pipeline_layers": [5, 3]}, (5, 3)),
        ({"pp": 2, "vpp": 2, "pipeline_layers": [6, 2]}, (3, 1, 3, 1)),
        ({"pp": 2, "vpp": 2, "pipeline_layers": [1, 2, 3, 2]}, (1, 2, 3, 2)),
        ({"pp": 4, "pipeline_layers": [0, 4, 4, 0]}, (0, 4, 4, 0)),
    ],
)
def test_layouts_are_made_from_what_users_say(
    options: dict[str, int], chunks: tuple[int, ...]
) -> None:
    layout = make_layout(8, **options)  # type: ignore[arg-type]
    assert layout.chunk_layers == chunks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pp": 3}, "8 layers cannot be spread evenly over PP3"),
        ({"vpp": 2}, "needs a pipeline"),
        ({"pp": 2, "pipeline_layers": [5, 4]}, "holds 9 layers, the model has 8"),
        ({"pp": 2, "pipeline_layers": [8]}, "1 layer counts given, wanted 2"),
        ({"pp": 2, "vpp": 2, "pipeline_layers": [5, 3]}, "do not divide by VPP2"),
        ({"pp": 2, "pipeline_layers": [9, -1]}, "negative"),
        ({"tp": 0}, "wanted sizes of at least 1"),
    ],
)
def test_layouts_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_layout(8, **options)  # type: ignore[arg-type]


def test_tensor_parallelism_that_cannot_split_names_what_could() -> None:
    sizes = {**CONFIGS["llama"].sizes, Axis.KV_GROUP: 4, Axis.FFN: 6}
    with pytest.raises(UsageError, match="TP4 cannot split ffn 6") as refusal:
        check_divisible(Layout(4, 1, 1, (4,)), sizes)
    assert refusal.value.hint.endswith("1, 2")


def test_layouts_print_as_people_write_them() -> None:
    assert str(make_layout(8, 2, 2)) == "TP2 x PP2"
    assert str(make_layout(8, 2, 2, 2)) == "TP2 x PP2 x VPP2"
    assert str(Layout(1, 2, 1, (5, 3))) == "TP1 x PP2 (layers 5,3)"
