"""Windows, and layers that do not rotate, as megatron-core's arguments say them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import CONFIGS, arguments, even
from strategies import examples, kinds

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.kind_rows import layer_options
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.model.config import LayerKind, ModelConfig

PADDED = 56
CONFIG = CONFIGS["llama"]  # of four layers, for 16 positions
WHOLE, SEES_FIVE, STILL = LayerKind(), LayerKind(5), LayerKind(rotates=False)


def read(**changes: object) -> tuple[LayerKind, ...]:
    args = {**vars(arguments(CONFIG, even(CONFIG))), **changes}
    return read_config(args, "file", PADDED).layer_kinds


READ: list[tuple[dict[str, object], tuple[LayerKind, ...]]] = [
    ({"window_size": (4, 0)}, (SEES_FIVE,) * 4),
    ({"window_size": [4, 0], "window_attn_skip_freq": 2}, (SEES_FIVE, WHOLE) * 2),
    ({"window_size": (4, 0), "window_attn_skip_freq": 3}, (SEES_FIVE, SEES_FIVE, WHOLE, SEES_FIVE)),
    ({"window_size": (4, 0), "window_attn_skip_freq": 1}, ()),
    ({"window_size": (4, 0), "window_attn_skip_freq": [0, 1, 1, 0]},
     (WHOLE, SEES_FIVE, SEES_FIVE, WHOLE)),
    ({"window_size": (0, 0)}, (LayerKind(1),) * 4),
    ({"window_size": (15, 0)}, ()),  # as many as there are positions
    ({"window_size": (-1, 0), "window_attn_skip_freq": 2}, ()),
    ({"window_attn_skip_freq": [1, 0, 0, 0]}, ()),
    ({"no_rope_freq": 4}, (WHOLE, WHOLE, WHOLE, STILL)),
    ({"no_rope_freq": 1}, (STILL,) * 4),
    ({"no_rope_freq": (0, 1, 1, 0)}, (WHOLE, STILL, STILL, WHOLE)),
    ({"no_rope_freq": [0, 0, 0, 0]}, ()),
    ({"no_rope_freq": 2, "position_embedding_type": "none"}, ()),
    ({"window_size": (4, 0), "window_attn_skip_freq": 2, "no_rope_freq": 2},
     (SEES_FIVE, STILL) * 2),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "wanted"), READ)
def test_what_layers_differ_in_is_read(
    changes: dict[str, object], wanted: tuple[LayerKind, ...]
) -> None:
    assert read(**changes) == wanted


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"window_size": (4, 4)}, "window_size: found .*, wanted .N, 0."),
    ({"window_size": (4, -1)}, "window_size: found"),
    ({"window_size": 5}, "window_size: found 5"),
    ({"window_size": (4.0, 0)}, "window_size: found"),
    ({"window_size": (4, 0), "window_attn_skip_freq": [1, 0]}, "0 or 1 for each of 4 layers"),
    ({"window_size": (4, 0), "window_attn_skip_freq": -2}, "window_attn_skip_freq: found -2"),
    ({"no_rope_freq": 3}, "no_rope_freq: found 3, wanted a divisor of 4 layers"),
    ({"no_rope_freq": [1, 2, 0, 0]}, "no_rope_freq: found"),
    ({"no_rope_freq": [1] * 5}, "no_rope_freq: found .*each of 4 layers"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_what_megatron_would_not_take_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadCheckpointError, match=f"args.{says}|{says}"):
        read(**changes)


@examples(100)
@given(st.integers(1, 6), st.data())
def test_what_is_written_says_the_layers(layers: int, data: DataObject) -> None:
    config = replace(CONFIG, layers=layers, layer_kinds=data.draw(kinds(layers)))
    args = new_arguments(config, PADDED, "float32", "local")
    assert read_config(args, "file", PADDED).layer_kinds == config.layer_kinds
    more = data.draw(st.integers(1, 6))
    other = replace(config, layers=more, layer_kinds=data.draw(kinds(more)))
    told = read_config(written_arguments(args, other), "file", PADDED)
    assert told.layer_kinds == other.layer_kinds


def grown(config: ModelConfig, layers: int) -> ModelConfig:
    sizes = {axis: layers if axis == "layer" else size for axis, size in config.sizes.items()}
    return config.with_sizes(sizes)


def test_what_says_the_model_already_stays_as_it_is_stored() -> None:
    args = {**vars(arguments(CONFIG, even(CONFIG))), "window_size": [4, 0], "no_rope_freq": 4}
    config = read_config(args, "file", PADDED)
    assert written_arguments(args, config)["no_rope_freq"] == 4
    assert written_arguments(args, grown(config, 8))["no_rope_freq"] == 4
    assert written_arguments(args, grown(config, 6))["no_rope_freq"] == [0, 0, 0, 1, 0, 0]


def test_layers_that_are_alike_write_nothing_into_stored_arguments() -> None:
    args = vars(arguments(CONFIG, even(CONFIG)))
    assert "window_size" not in written_arguments(args, CONFIG)


def test_the_options_are_those_of_megatron() -> None:
    kinds = (SEES_FIVE, WHOLE, SEES_FIVE, STILL)
    assert layer_options(replace(CONFIG, layer_kinds=kinds)) == (
        "--window-size 4,0 --window-attn-skip-freq [1,0,1,0] --no-rope-freq [0,0,0,1]"
    )
