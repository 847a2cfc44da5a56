"""One row says everything of an argument: both directions agree, and no name stands beside it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from quoted_words import quoted
from strategies import any_config, examples, layouts

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.layout.placements import padded_size
from flmgrow.formats.megatron.arguments import row as row_module
from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS
from flmgrow.formats.megatron.arguments.layout_rows import LAYOUT_ROWS, OLDER_FIRST, OLDER_LAST, VPP
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.formats.megatron.arguments.model_rows import (
    FUSED_GELU,
    GROUPS,
    MODEL_ROWS,
    NORM_EPS,
    QKV_BIAS,
    ZERO_CENTRED,
)
from flmgrow.formats.megatron.arguments.mup_rows import MUP_ROWS
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.formats.megatron.arguments.pipeline import read_layout, written_layout
from flmgrow.formats.megatron.arguments.row import Argument, flag
from flmgrow.formats.megatron.arguments.run_rows import RUN_ROWS
from flmgrow.formats.megatron.arguments.vocabulary_rows import VOCABULARY_ROWS
from flmgrow.model.config import ModelConfig, RotarySettings

ROOT = Path(row_module.__file__).parents[3]
ROWS: tuple[Argument[Any], ...] = (
    *MODEL_ROWS,
    *KIND_ROWS,
    *MUP_ROWS,
    *VOCABULARY_ROWS,
    *LAYOUT_ROWS,
    *RUN_ROWS,
)
NAMES = {name for row in ROWS for name in row.names}
HOME = "formats/megatron/arguments/"
HOMES = tuple(
    f"{HOME}{part}_rows.py" for part in ("model", "kind", "mup", "vocabulary", "layout", "run")
)

# Words that are names of arguments, too, but stand for something else: where, and what.
OTHER_WORDS = {
    "formats/huggingface/": None,  # fields of config.json
    "trainer/stage/": None,  # keys of a stage file
    "trainer/data/tokenizer.py": {"vocab_size"},  # an entry of a tokenizer's identity
    "trainer/megatron/": {"transformer_impl"},  # a field of TransformerConfig's
    f"{HOME}run_config.py": {"layernorm_epsilon", "layernorm_zero_centered_gamma"},  # its fields
}
ANYWHERE = {"iteration", "swiglu", "squared_relu"}
"""A key of a checkpoint's content and of the manifest; two kinds of activations of ModelConfig."""


def strays(place: str, text: str) -> set[str]:
    """The names of arguments that a file outside of the rows quotes."""
    found = NAMES & set(quoted(text)) - ANYWHERE
    for exempt, words in OTHER_WORDS.items():
        if place.startswith(exempt):
            found -= found if words is None else words
    return found


def files() -> dict[str, str]:
    """Every module of the formats and the trainer but the rows, by its place."""
    found = {}
    for folder in ("formats", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place not in HOMES:
                found[place] = path.read_text(encoding="utf-8")
    return found


def test_no_name_stands_outside_its_row() -> None:
    assert {place: names for place, text in files().items() if (names := strays(place, text))} == {}


def test_every_exemption_is_needed() -> None:
    texts = files()
    for exempt, words in OTHER_WORDS.items():
        exempted = [text for place, text in texts.items() if place.startswith(exempt)]
        there = {word for text in exempted for word in quoted(text)}
        assert (NAMES & there) if words is None else words <= there
    assert {word for text in texts.values() for word in quoted(text)} >= ANYWHERE


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('reader.integer("hidden_size")', {"hidden_size"}),
        ('"""\nlr num_layers\n""".split()', {"num_layers"}),
        ('f"args.{x}: hidden_size is wrong"', set()),
        ('name = "iteration"', set()),
    ],
)
def test_a_stray_name_is_found(text: str, names: set[str]) -> None:
    assert strays(f"{HOME}model.py", text) == names
    assert strays("formats/huggingface/families.py", text) == set()


def test_a_name_has_one_row() -> None:
    shared = {OLDER_FIRST.name, OLDER_LAST.name}  # read as older names, written on their own
    times = Counter(name for row in ROWS for name in row.names)
    assert {name for name in times if times[name] > 1} == shared


UNLIKE = {
    GROUPS: "asked for in a model with groups only, and needed there",
    FUSED_GELU: "what holds no such argument has no such kernel",
    QKV_BIAS: "Megatron-LM derives it from the bias of linear layers, which is asked for first",
    VPP: "None is one chunk",
}
"""The rows where an absent argument does not mean a default of Megatron-LM, and why."""


def absent(row: Argument[Any]) -> object:
    """What it means that a file has no such argument; NotImplemented where it must have it."""
    try:
        return row.read(ArgumentReader({}, "file"))
    except BadCheckpointError:
        return NotImplemented


@pytest.mark.parametrize("row", [row for row in ROWS if row.understood and row.defaults])
def test_an_absent_argument_means_a_default_of_megatron(row: Argument[Any]) -> None:
    assert (absent(row) in row.defaults) != (row in UNLIKE)


def test_a_row_is_checked() -> None:
    for names in (("hidden-size", None), ("hidden_size", "hidden_size")):
        with pytest.raises(ValueError, match="names of arguments"):
            Argument(names[0], flag(), names[1])


def sayable(config: ModelConfig) -> ModelConfig:
    """The model without what nobody reads: xPos's constants in a model without xPos."""
    if config.positions == "xpos":
        return config
    usual = RotarySettings()
    base, centre = usual.xpos_scale_base, usual.xpos_centre
    return replace(config, rotary=replace(config.rotary, xpos_scale_base=base, xpos_centre=centre))


def written_for(config: ModelConfig) -> dict[str, object]:
    padded = padded_size(config.vocab, 128, 1)
    return written_arguments(new_arguments(config, padded, "float32", "local"), config)


@examples(300)
@given(any_config())
def test_what_is_written_says_the_model(config: ModelConfig) -> None:
    wanted = sayable(config)
    padded = padded_size(config.vocab, 128, 1)
    assert read_config(written_for(wanted), "file", padded) == wanted


@examples(150)
@given(any_config(), any_config())
def test_brought_up_to_itself_nothing_changes(config: ModelConfig, other: ModelConfig) -> None:
    """And every row is needed: the arguments of another model do not say this one."""
    arguments = written_for(config)
    assert list(written_arguments(arguments, config).items()) == list(arguments.items())
    if sayable(config) != sayable(other):
        padded = padded_size(config.vocab, 128, 1)
        assert read_config(written_for(other), "file", padded) != sayable(config)


@examples(100)
@given(any_config())
def test_older_names_say_the_same_and_are_kept(config: ModelConfig) -> None:
    wanted = sayable(config)
    arguments = written_for(wanted)
    for row in (NORM_EPS, ZERO_CENTRED):
        assert row.older is not None
        arguments[row.older] = arguments.pop(row.name)
    padded = padded_size(config.vocab, 128, 1)
    assert read_config(arguments, "file", padded) == wanted
    written = written_arguments(arguments, replace(wanted, norm_eps=0.5))
    assert written[NORM_EPS.older or ""] == 0.5
    assert NORM_EPS.name not in written


@examples(100)
@given(any_config(), st.data())
def test_what_is_written_says_the_layout(config: ModelConfig, data: DataObject) -> None:
    layout = data.draw(layouts(config.layers))
    arguments = written_for(config)
    arguments |= written_layout(arguments, layout)
    assert read_layout(arguments, config.layers, "file") == layout
