"""Megatron-LM's ways to say how many layers a rank holds, and ours: one list."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from strategies import examples, layouts

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.layout_text import layout_text, parse_layout_text
from flmgrow.formats.megatron.arguments.pipeline import read_layout, written_layout

FIRST, LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"
OLD_FIRST = "num_layers_in_first_pipeline_stage"
EMBEDDING = "account_for_embedding_in_pipeline_split"
LOSS = "account_for_loss_in_pipeline_split"
TEXT = "pipeline_model_parallel_layout"


def arguments(pp: int, vpp: int | None = None, **others: Any) -> dict[str, object]:
    return {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp,
        **others,
    }


@pytest.mark.parametrize(
    ("given_arguments", "layers", "chunks"),
    [
        (arguments(1), 5, (5,)),
        (arguments(4), 8, (2, 2, 2, 2)),
        (arguments(2, 2), 8, (2, 2, 2, 2)),
        (arguments(2, None, **{FIRST: 3}), 8, (3, 5)),
        (arguments(4, None, **{FIRST: 1, LAST: 3}), 8, (1, 2, 2, 3)),
        (arguments(4, None, **{LAST: 2}), 8, (2, 2, 2, 2)),
        (arguments(4, None, **{OLD_FIRST: 2}), 11, (2, 3, 3, 3)),
        (arguments(2, 2, **{FIRST: 6, LAST: 2}), 8, (3, 1, 3, 1)),
        (arguments(4, None, **{EMBEDDING: True, LOSS: True}), 10, (2, 3, 3, 2)),
        (arguments(4, None, **{LOSS: True}), 11, (3, 3, 3, 2)),
        (arguments(2, 2, **{EMBEDDING: True, LOSS: True}), 6, (1, 2, 2, 1)),
        (arguments(1, None, **{EMBEDDING: True, LOSS: True}), 6, (6,)),
        (arguments(2, None, **{TEXT: "Ettt|tL"}), 4, (3, 1)),
        (arguments(2, None, **{TEXT: "E|ttttL"}), 4, (0, 4)),
        (arguments(2, 2, **{TEXT: "Et|tt|t*3|L"}), 6, (1, 2, 3, 0)),
        (arguments(1, None, **{TEXT: "EtttttL"}), 5, (5,)),
    ],
)
def test_every_way_is_read(
    given_arguments: dict[str, object], layers: int, chunks: tuple[int, ...]
) -> None:
    layout = read_layout(given_arguments, layers, "file")
    assert layout.chunk_layers == chunks
    assert layout.tp == 2


def test_repeats_in_a_text_are_expanded() -> None:
    assert parse_layout_text("E|(tt|)*2t|L", "file") == (0, 2, 2, 1, 0)
    assert parse_layout_text("Et*3|t*2,L", "file") == (3, 2)


def test_ranks_without_layers_are_written_as_text() -> None:
    """Megatron-LM refuses a first or last rank of no layers unless a layout says so."""
    written = written_layout({}, Layout(1, 4, 1, (0, 1, 1, 0)))
    assert written[TEXT] == "E|t|t|L"
    assert FIRST not in written


@examples(150)
@given(st.data(), st.integers(1, 9), st.booleans())
def test_what_is_written_is_read_back(data: DataObject, layers: int, told_before: bool) -> None:
    layout = data.draw(layouts(layers))
    before = arguments(4, 2, **{FIRST: 7, EMBEDDING: True, TEXT: "Et|tL"}) if told_before else {}
    after = {**before, **written_layout(before, layout)}
    assert read_layout(after, layers, "file") == layout


@examples(60)
@given(st.data(), st.integers(1, 9))
def test_text_and_back(data: DataObject, layers: int) -> None:
    layout = data.draw(layouts(layers))
    assert parse_layout_text(layout_text(layout), "file") == layout.chunk_layers


@pytest.mark.parametrize("text", ["tEt|tL", "Et|Lt", "Et|mtL", "Et|tLL", "E(t|t", "Et*x|tL"])
def test_parts_in_unusual_places_are_refused(text: str) -> None:
    with pytest.raises(BadCheckpointError, match="only E, t and L in their usual places"):
        parse_layout_text(text, "file")


def test_a_text_that_would_explode_is_refused() -> None:
    with pytest.raises(BadCheckpointError, match="too long"):
        parse_layout_text("E" + "(t" * 3 + "t)*99999)*99999)*99999L", "file")


@pytest.mark.parametrize(
    ("given_arguments", "layers"),
    [
        (arguments(3), 8),
        (arguments(2, None, **{FIRST: 9}), 8),
        (arguments(2, None, **{FIRST: 3, LAST: 3}), 8),
        (arguments(2, None, **{TEXT: "Et|tL"}), 8),
        (arguments(2, None, **{TEXT: [["t"]]}), 8),
        (arguments(0), 8),
        (arguments(2, None, **{FIRST: "3"}), 8),
    ],
)
def test_contradictions_are_refused(given_arguments: dict[str, object], layers: int) -> None:
    with pytest.raises(BadCheckpointError, match="file: "):
        read_layout(given_arguments, layers, "file")
