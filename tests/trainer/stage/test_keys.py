"""What is refused, in the keys of a stage file or a schedule."""

from pathlib import Path

import pytest

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.stages.growth_section import WORDS
from flmgrow.text import COMMAND_LINE, PYTHON, Pass, Setting, SizeOf, Text, render
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import KEYS, STAGE_FILE, in_keys, in_words, told_of


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            Text(Pass("ignore_arguments", ["a*", "b"]), " to"),
            'say checkpoint.ignore_arguments: ["a*", "b"] to',
        ),
        (
            Text(Pass("set_arguments", {"num_layers": 2, "swiglu": True, "hidden_size": ...})),
            'say checkpoint.set_arguments: ["num_layers=2", "swiglu=True", "hidden_size=..."]',
        ),
        (Text(Pass("ignore_fields", ["c"])), 'say checkpoint.ignore_fields: ["c"]'),
        (Text(Pass("args_from", Path("a.yaml"))), "say checkpoint.args_from: a.yaml"),
        (Text(Setting("true_vocab_size"), " 9: only"), "checkpoint.true_vocab_size 9: only"),
        (Text("or ", Pass("no_optimizer", True)), "or say checkpoint.begin: anew"),
        (Text(Setting("untie", False), " keeps"), "checkpoint.untie: false keeps"),
        (Text(Setting("hidden_size", 8)), "model.hidden_size: 8"),
        (Text(SizeOf("layer"), ": 2, ", SizeOf("head_dim")), "model.num_layers: 2, head_dim"),
        (Text("fewer ", Setting("workers")), "fewer --workers"),
        (Text("nothing of it"), "nothing of it"),
    ],
)
def test_settings_become_keys(text: Text, wanted: str) -> None:
    assert render(text, STAGE_FILE) == wanted


def test_keys_are_those_of_the_file() -> None:
    for key in KEYS.values():
        section, name = key.split(".")
        kind = StageFile.model_fields[section].annotation
        assert name in getattr(kind, "model_fields", {}), key


def test_a_schedule_has_keys_for_growth() -> None:
    text = Text(Setting("untie", True), " ", Setting("method"), " ", Setting("tp"))
    assert render(text, WORDS) == "growth.untie: true growth.method layout.tp"
    assert render(text, STAGE_FILE) == "checkpoint.untie: true --method layout.tp"


def refused_in(error: UsageError, section: str = "growth") -> str:
    with pytest.raises(UsageError) as caught, in_keys(section):
        raise error
    return str(caught.value)


def test_a_key_stands_in_front() -> None:
    assert refused_in(UsageError(Text(Setting("tp"), " 3: no"))) == "layout.tp 3: no"
    assert refused_in(UsageError(Text(SizeOf("ffn"), ": no"))) == "model.ffn_hidden_size: no"
    assert refused_in(UsageError(Text(Setting("workers"), ": no"))) == "growth: --workers: no"
    assert refused_in(UsageError(Text(SizeOf("head_dim"), ": no"))) == "growth: head_dim: no"
    assert refused_in(UsageError("hidden and method are words")).startswith("growth: hidden and")
    assert refused_in(UsageError("tp", where="file")) == "growth: file: tp"


def test_the_file_stands_in_front_once() -> None:
    for where in ((), "a.yaml", ("a.yaml", "model")):
        with pytest.raises(UsageError) as caught, told_of(Path("a.yaml"), "stage b"):
            raise UsageError("is wrong", where=where)
        assert caught.value.where == ("a.yaml", "stage b", *([where[1]] if len(where) == 2 else []))


def test_one_error_in_the_words_of_three_places() -> None:
    message = Text(Setting("true_vocab_size"), " 90: only 64 rows are stored")
    hint = Text("leave it out, or ", Pass("set_arguments", {"padded_vocab_size": 90}))
    error = BadCheckpointError(message, hint, Path("ckpt"))
    assert error.lines(COMMAND_LINE) == [
        "error: ckpt: --true-vocab-size 90: only 64 rows are stored",
        "hint: leave it out, or pass --set-arg padded_vocab_size=90",
    ]
    assert error.lines(STAGE_FILE) == [
        "error: ckpt: checkpoint.true_vocab_size 90: only 64 rows are stored",
        'hint: leave it out, or say checkpoint.set_arguments: ["padded_vocab_size=90"]',
    ]
    assert str(error) == "ckpt: true_vocab_size 90: only 64 rows are stored"
    assert error.hint == "leave it out, or pass set_arguments={'padded_vocab_size': 90}"
    with pytest.raises(BadCheckpointError) as caught, in_words():
        raise error
    for words in (COMMAND_LINE, PYTHON):  # it is a file's for good
        assert caught.value.lines(words) == error.lines(STAGE_FILE)
