"""Models with windows, read for texts that fit into them, and what is written of such."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.config_writing import written_fields

SHORT = ReadOptions(max_positions=5)
LAYERS = 6
_SIZES: dict[str, object] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
    "max_position_embeddings": 64, "sliding_window": 5,
}  # fmt: skip
LLAMA = {**_SIZES, "model_type": "llama"}
"""Which has no windows, but for such texts."""

MISTRAL = {**_SIZES, "model_type": "mistral"}
GEMMA2 = {**_SIZES, "model_type": "gemma2"}
GEMMA3 = {**_SIZES, "model_type": "gemma3_text"}
QWEN2 = {**_SIZES, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}
SLIDING = {**QWEN2, "max_window_layers": 0}
LISTED = {**SLIDING, "layer_types": ["sliding_attention"] * LAYERS}
"""Each of whose layers has the window."""


def _grown(fields: Mapping[str, object], more: int) -> Mapping[str, object]:
    """Return what is written of a model that is read for short texts and grows by layers."""
    read = read_fields(family_of(fields, "x"), fields, "x", SHORT)
    kinds = (*read.layer_kinds, *read.layer_kinds[:more])
    grown = replace(read, layers=read.layers + more, layer_kinds=kinds)
    return written_fields(grown, own=(fields, read), options=SHORT)[1]


@pytest.mark.parametrize(("fields", "more"), [(GEMMA2, 1), (GEMMA2, 0), (QWEN2, 1), (LISTED, 1)])
def test_windows_of_layers_do_not_get_lost(fields: dict[str, object], more: int) -> None:
    with pytest.raises(UsageError, match="max_position_embeddings 5: layers have a window"):
        _grown(fields, more)


@pytest.mark.parametrize(
    ("fields", "more"), [(MISTRAL, 1), (GEMMA3, 1), (QWEN2, 0), (SLIDING, 1), (LISTED, 0)]
)
def test_what_is_written_has_the_windows_of_the_source(
    fields: dict[str, object], more: int
) -> None:
    written = _grown(fields, more)
    before, after = (read_fields(family_of(f, "x"), f, "x") for f in (fields, written))
    assert after.layers == before.layers + more
    assert {*after.layer_kinds} == {*before.layer_kinds}
    assert any(kind.window for kind in after.layer_kinds)


def test_a_window_that_a_family_does_not_have_stays_beside_its_positions() -> None:
    written = _grown(LLAMA, 1)
    assert (written["sliding_window"], written["max_position_embeddings"]) == (5, 64)
