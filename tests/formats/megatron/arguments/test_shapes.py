"""Arguments that the arrays contradict are named with what would do; the hint, pasted, does."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import edit_all, with_arguments
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig
from flmgrow.text import COMMAND_LINE, render

UNTIE = "untie_embeddings_and_output_weights"
BIASED_QKV = replace(CONFIGS["qwen"], queries_per_group=2)

FLIPS: list[tuple[str, str, Any]] = [
    ("llama", "num_layers", 2),
    ("llama", "num_layers", 8),
    ("llama", "hidden_size", 24),
    ("llama", "ffn_hidden_size", 40),
    ("llama", "ffn_hidden_size", 10),
    ("llama", "padded_vocab_size", 128),
    ("llama", "swiglu", False),
    ("llama", "normalization", "LayerNorm"),
    ("llama", "add_bias_linear", True),
    ("llama", "add_qkv_bias", True),
    ("llama", "qk_layernorm", True),
    ("llama", "group_query_attention", False),
    ("llama", "num_query_groups", 2),
    ("llama", "position_embedding_type", "learned_absolute"),
    ("llama", UNTIE, True),
    ("qk", "qk_layernorm", False),
    ("qk", "kv_channels", 2),
    ("qk", "num_attention_heads", 2),
    ("qk", UNTIE, False),
    ("qwen", "add_qkv_bias", False),
    ("gpt", "swiglu", True),
    ("gpt", "normalization", "RMSNorm"),
    ("gpt", "add_bias_linear", False),
    ("gpt", "max_position_embeddings", 32),
    ("gpt", "position_embedding_type", "rope"),
    ("gpt", UNTIE, False),
]
"""Of each model: an argument, and a value at which it is wrong."""

NOT_PASTED = {"position_embedding_type"}
"""A table that is not there leaves two kinds of positions to choose from."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for model in sorted({model for model, _, _ in FLIPS}):
        config = CONFIGS[model]
        layout = even(config, tp=2, pp=2)
        found["one rank", model] = make_checkpoint(root / model / "a", model)
        found["four ranks", model] = make_checkpoint(root / model / "b", model, layout)
        found["distributed", model] = make_dist_checkpoint(root / model / "c", model, tp=2)
    return found


def read(path: Path, **arguments: object) -> ModelConfig:
    with open_checkpoint(path, None, ReadOptions(given_arguments=arguments)) as opened:
        assert opened.reader.arrays
        return opened.config


def offered(error: BadCheckpointError) -> dict[str, object]:
    hint = render(error.hint, COMMAND_LINE)
    words = shlex.split(hint.partition("pass ")[2])
    assert words[::2] == ["--set-arg"] * (len(words) // 2), hint
    return parse_given(words[1::2])


@pytest.mark.parametrize("kind", ["one rank", "four ranks", "distributed"])
@pytest.mark.parametrize(("model", "name", "value"), FLIPS)
def test_a_flipped_argument_is_named_with_the_right_value(
    places: dict[tuple[str, str], Path], kind: str, model: str, name: str, value: object
) -> None:
    path = places[kind, model]
    right = read(path)
    if (kind, name, value) == ("four ranks", UNTIE, True):
        return  # the copy may be a head that was just made: the user is believed, see below
    with pytest.raises(BadCheckpointError) as refusal:
        read(path, **{name: value})
    hint = refusal.value.hint
    assert "set_arguments" in hint
    if name in NOT_PASTED and "rope or none" in hint:
        return
    assert read(path, **{name: value, **offered(refusal.value)}) == right


@examples(60)
@given(data=st.data())
def test_any_flips_together_end_in_one_line_or_the_right_model(
    places: dict[tuple[str, str], Path], data: st.DataObject
) -> None:
    model = data.draw(st.sampled_from(["gpt", "llama", "qk"]))
    kind = data.draw(st.sampled_from(["one rank", "four ranks", "distributed"]))
    own = [(name, value) for one, name, value in FLIPS if one == model]
    flips = dict(data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=4)))
    right = read(places[kind, model])
    try:
        found = read(places[kind, model], **flips)
    except BadCheckpointError:
        return
    assert found == right or UNTIE in flips


def test_several_contradictions_are_named_at_once(places: dict[tuple[str, str], Path]) -> None:
    wrong = {"num_layers": 30, "ffn_hidden_size": 24, "add_bias_linear": True}
    with pytest.raises(BadCheckpointError) as refusal:
        read(places["distributed", "llama"], **wrong)
    message = refusal.value.message
    assert "args.num_layers is 30, wanted 4: decoder.layers: 4 layers are stored" in message
    assert "args.ffn_hidden_size is 24, wanted 20: decoder.layers.mlp.linear_fc2.weight" in message
    assert offered(refusal.value) == {
        "num_layers": 4, "ffn_hidden_size": 20, "add_bias_linear": False
    }  # fmt: skip


def test_heads_that_cannot_be_told_are_left_to_the_user(
    places: dict[tuple[str, str], Path],
) -> None:
    with pytest.raises(
        BadCheckpointError, match=r"8 heads of 2 in 4 groups.*32 columns"
    ) as refusal:
        read(places["one rank", "llama"], kv_channels=2)
    assert "no array tells how heads" in refusal.value.hint


def test_the_older_name_of_rotary_positions_is_overruled(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"use_rotary_position_embeddings": True}
    path = make_checkpoint(tmp_path, "gpt", **wrong)
    with pytest.raises(BadCheckpointError, match="type is rope, wanted learned_abs") as refusal:
        read(path)
    assert read(path, **offered(refusal.value)) == CONFIGS["gpt"]


def scaled(factor: float) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        if "output_layer.weight" in content["model"]:
            content["model"]["output_layer.weight"] *= factor

    return change


def test_a_head_under_arguments_of_a_shared_table(tmp_path: Path) -> None:
    """Both ways round: only the values tell a pipeline's copy of the table from a head."""
    tied = make_checkpoint(tmp_path / "tied", "llama", even(CONFIGS["llama"], pp=2))
    edit_all(tied, with_arguments(**{UNTIE: True}))
    with pytest.raises(
        BadCheckpointError, match=r"bit for bit; args.untie.* is True, wanted False"
    ):
        read(tied)
    assert read(tied, **{UNTIE: False}).tied
    assert not read(tied, **{UNTIE: True}).tied, "the user may mean it"
    edit_all(tied, scaled(1.01))
    assert not read(tied).tied, "a head that has been trained is none of the table's copies"
    own = make_checkpoint(tmp_path / "own", "qk", even(CONFIGS["qk"], pp=2))
    edit_all(own, with_arguments(**{UNTIE: False}))
    with pytest.raises(BadCheckpointError, match=r"is not the embedding table.*wanted True"):
        read(own)
    assert not read(own, **{UNTIE: True}).tied
