"""Texts: one refusal, told in the words of whoever reads it."""

import pickle
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadCheckpointError, FlmgrowError, UsageError
from flmgrow.storage.failure import described, raised
from flmgrow.text import (
    COMMAND_LINE,
    PYTHON,
    Pass,
    Setting,
    SizeOf,
    Text,
    from_data,
    render,
    rendered,
    to_data,
)


class Word(StrEnum):
    KEEP = "keep"


@pytest.mark.parametrize(
    ("part", "python", "command_line"),
    [
        (Setting("hidden_size"), "hidden_size", "--hidden-size"),
        (Setting("init_std", 0.02), "init_std=0.02", "--init-std 0.02"),
        (Setting("no_optimizer", True), "no_optimizer=True", "--no-optimizer"),
        (Setting("untie", False), "untie=False", "--tie"),
        (Setting("optimizer", Word.KEEP), "optimizer='keep'", "--optimizer keep"),
        (Setting("tokenizer", Path("a b")), "tokenizer='a b'", "--tokenizer 'a b'"),
        (Setting("args_from", Path("a b")), "--args-from 'a b'", "--args-from 'a b'"),
        (Setting("pipeline_layers"), "pipeline_layers", "--pipeline-layers"),
        (
            Setting("ignore_fields", ["a", "b_*"]),
            "ignore_fields=['a', 'b_*']",
            "--ignore-field a --ignore-field 'b_*'",
        ),
        (
            Setting("set_arguments", {"num_layers": ..., "swiglu": True}),
            "set_arguments={'num_layers': ..., 'swiglu': True}",
            "--set-arg num_layers=... --set-arg swiglu=True",
        ),
        (SizeOf("hidden"), "hidden", "hidden"),
        (Pass("tp", 2), "pass tp=2", "pass --tp 2"),
    ],
)
def test_a_part_has_the_words_of_its_place(
    part: Setting | SizeOf, python: str, command_line: str
) -> None:
    text = Text("first ", part, ".")
    assert text == render(text, PYTHON) == f"first {python}."
    assert render(text, COMMAND_LINE) == f"first {command_line}."


PARTS = st.one_of(
    st.text(max_size=5),
    st.builds(Setting, st.sampled_from(["tp", "untie", "ignore_fields"])),
    st.builds(Setting, st.just("ignore_fields"), st.lists(st.text(max_size=3), min_size=1)),
    st.builds(Setting, st.just("tp"), st.integers()),
    st.builds(SizeOf, st.just("hidden")),
    st.builds(Pass, st.just("tp"), st.integers()),
)
TEXTS = st.lists(PARTS, max_size=5).map(lambda parts: Text(*parts))


@given(TEXTS)
def test_a_text_keeps_its_parts_on_every_way(text: Text) -> None:
    for other in (from_data(to_data(text)), pickle.loads(pickle.dumps(text))):
        assert other == text
        assert render(other, COMMAND_LINE) == render(text, COMMAND_LINE)


@given(TEXTS, TEXTS, st.text(max_size=3))
def test_what_is_made_of_texts_is_a_text(one: Text, other: Text, plain: str) -> None:
    told = [render(each, COMMAND_LINE) for each in (one, other)]
    assert render(one + other, COMMAND_LINE) == "".join(told)
    assert render(plain + one, COMMAND_LINE) == plain + told[0]
    assert render(one + plain, COMMAND_LINE) == told[0] + plain
    joined = Text(plain).join([one, plain, other])
    assert render(joined, COMMAND_LINE) == plain.join([told[0], plain, told[1]])


def test_data_is_rendered_wherever_it_holds_a_text() -> None:
    data = {"notes": (Text("see ", Setting("tp")), "tp"), "count": 2, "none": None}
    assert rendered(data, COMMAND_LINE) == {"notes": ["see --tp", "tp"], "count": 2, "none": None}


def an_error() -> UsageError:
    message = Text(Setting("tp"), " 3: does not divide")
    return UsageError(message, Text("give ", Setting("tp", 2)), ("a file", "a tensor"), 2)


def test_an_error_is_told_with_its_place() -> None:
    error = an_error().at("rank 1")
    assert str(error) == "rank 1: a file: a tensor: tp 3: does not divide, wanted 2"
    assert error.where == ("rank 1", "a file", "a tensor")
    assert error.lines(COMMAND_LINE) == [
        "error: rank 1: a file: a tensor: --tp 3: does not divide, wanted 2",
        "hint: give --tp 2",
    ]
    assert error.lines(PYTHON)[1] == "hint: give tp=2"
    assert (error.what, error.wanted) == ("tp 3: does not divide", "2")


def test_an_error_is_changed_as_data() -> None:
    error = an_error()
    assert error.relative_to("a file").where == ("a tensor",)
    assert error.relative_to("a tensor") is error
    assert str(error.with_more(" (of it)")).endswith("wanted 2 (of it)")
    assert str(UsageError("is odd").with_more(" (of it)")) == "is odd (of it)"
    assert BadCheckpointError.of(error).lines(COMMAND_LINE) == error.lines(COMMAND_LINE)
    assert error.with_hint("").lines(COMMAND_LINE) == error.lines(COMMAND_LINE)[:1]


def test_an_error_says_the_same_to_another_rank() -> None:
    told = raised(described(an_error(), 1))
    assert type(told) is UsageError
    assert told.lines(COMMAND_LINE) == an_error().at("rank 1").lines(COMMAND_LINE)
    assert told.lines(PYTHON) == an_error().at("rank 1").lines(PYTHON)


def test_a_changed_error_stays_what_it_was_beside() -> None:
    class OfItsOwnError(BadCheckpointError):
        def __init__(self, number: int) -> None:
            self.number = number
            super().__init__(f"number {number}", "count again")

    error = OfItsOwnError(3)
    changed = error.at("here").with_more_hint("or stop").in_words(COMMAND_LINE)
    assert (type(changed), changed.number) == (OfItsOwnError, 3)
    assert changed.lines(PYTHON) == ["error: here: number 3", "hint: count again; or stop"]
    assert error.where == ()


def test_parts_are_printable_in_every_place() -> None:
    error = FlmgrowError(Text("\x1b[31m ", Setting("eod", "\x07")), where="\x1b]0;")
    assert all(
        line.isprintable() for words in (PYTHON, COMMAND_LINE) for line in error.lines(words)
    )
