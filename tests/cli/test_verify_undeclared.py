"""``verify`` of two checkpoints where no manifest says that one was made from the other."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, flmgrow, refused
from damage import edit, rank_files
from pico import CONFIGS, even, make_checkpoint

LAYOUT = even(CONFIGS["llama"], tp=2, pp=2)
FC1_STATE = "decoder.layers.0.mlp.linear_fc1._extra_state"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of Megatron-LM with states of Transformer Engine and an optimizer, twice."""
    source = make_checkpoint(
        tmp_path / "a", "llama", LAYOUT, dtype="bfloat16", optimizer=True, extra_state="bytesio"
    )
    return source, Path(shutil.copytree(source, tmp_path / "b"))


def line_of(name: str, out: str) -> str:
    (line,) = (each for each in out.splitlines() if f" {name} " in each)
    return line


def test_a_model_that_went_through_hugging_face_is_proved(tmp_path: Path) -> None:
    """An iteration has no place in such a folder: nothing is wrong with the model for that."""
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT, dtype="float32")
    accepted("export", source, tmp_path / "hf")
    accepted("import", tmp_path / "hf", tmp_path / "back", "--tp", 2, "--pp", 1)
    outcome = flmgrow("verify", source, tmp_path / "back")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "equal"), outcome.out


def test_another_iteration_is_not_taken_for_a_copy(tmp_path: Path) -> None:
    one, other = (
        make_checkpoint(tmp_path / name, "llama", LAYOUT, iteration=iteration)
        for name, iteration in (("a", 30), ("b", 31))
    )
    outcome = flmgrow("verify", one, other)
    assert outcome.code == 9
    assert "not a copy of this source: iteration is 31, wanted 30" in outcome.out


def test_a_copy_is_proved_with_its_states(pair: tuple[Path, Path]) -> None:
    outcome = flmgrow("verify", *pair)
    assert outcome.code == 0, outcome.out
    assert line_of("carried", outcome.out).endswith("34 states beside weights are the source's")


def test_what_keeps_it_from_being_a_copy_is_named(pair: tuple[Path, Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["optimizer"]["optimizer"]["state"][1]["exp_avg"][3, 3] += 1

    edit(rank_files(pair[1])[3], change)
    outcome = flmgrow("verify", *pair)
    assert outcome.code == 9
    line = line_of("elements", outcome.out)
    assert "it has no manifest; not a copy of this source: " in line
    assert "exp_avg" in line


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_state_that_is_another_is_not_proved(pair: tuple[Path, Path], change: str) -> None:
    def edited(content: dict[str, Any]) -> None:
        if change == "gone":
            content["model"][FC1_STATE] = None
        else:
            content["model"][FC1_STATE] = io.BytesIO(b"other scales")

    edit(rank_files(pair[1])[3], edited)
    outcome = flmgrow("verify", *pair)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (
        9,
        "function equal, NOT PROVEN: carried",
    )
    assert "decoder.layers.2.mlp.linear_fc1._extra_state of tensor rank 1" in outcome.out


def test_rows_that_are_no_ids_are_told_how_to_leave_out(tmp_path: Path) -> None:
    """A source that does not say how many of its rows are ids, and an export that was told so."""
    source = make_checkpoint(tmp_path / "a", "llama", even(CONFIGS["llama"]), vocab_size=None)
    accepted("export", source, tmp_path / "hf", "--true-vocab-size", 20)
    hint = r"if only so many of its rows are ids, pass --true-vocab-size 20"
    refused(2, f"vocab 20.*\n.*{hint}", "verify", source, tmp_path / "hf", place=tmp_path)
    outcome = flmgrow("verify", source, tmp_path / "hf", "--true-vocab-size", 20)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "equal"), outcome


@pytest.mark.parametrize(
    ("smaller", "told"),
    [
        ({"hidden": 12}, "hidden 12, wanted at least 16"),
        ({"vocab": 29}, "vocab 29, wanted at least 30"),
        ({"max_positions": 31}, "position 31, wanted at least 32"),
    ],
)
def test_what_is_smaller_than_the_source_is_refused(
    smaller: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """As when the two are given the wrong way round."""
    config = replace(CONFIGS["gpt"], hidden=16, vocab=30, max_positions=32)
    for name, model in (("a", config), ("b", replace(config, **smaller))):
        make_checkpoint(tmp_path / name, model, even(model))
    pattern = rf"^error: \S+/b: {told}, as a has\nhint: the source comes first"
    refused(2, pattern, "verify", tmp_path / "a", tmp_path / "b", place=tmp_path)
    assert "max |dlogit|" in flmgrow("verify", tmp_path / "b", tmp_path / "a").out
