"""A table keeps its size: no row is added or dropped unless the rule or a user says so."""

from pathlib import Path

import pytest
import torch
from commands import accepted, refused
from damage import edit_all, rank_files, with_arguments
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, even, make_checkpoint

from flmgrow.formats.layout.placements import padded_size
from flmgrow.formats.megatron.legacy.reader import open_megatron

TABLE = "embedding.word_embeddings.weight"
ROWS = 72


def of_a_given_size(path: Path, tp: int = 2, **arguments: object) -> Path:
    """A checkpoint whose table has 72 rows, which 128 times TP does not explain."""
    source = make_checkpoint(path, "llama", even(CONFIGS["llama"], tp), multiple=18)
    edit_all(source, with_arguments(make_vocab_size_divisible_by=128, **arguments))
    return source


def table(path: Path) -> torch.Tensor:
    """The whole embedding table."""
    parts = [torch.load(file, weights_only=False)["model"][TABLE] for file in rank_files(path)]
    return torch.cat(parts)


def vocabulary(path: Path) -> tuple[int, int]:
    """How many ids there are, in how many rows."""
    with open_megatron(path) as opened:
        return opened.config.vocab, opened.padded_vocab


@pytest.mark.parametrize("said", [None, 30], ids=["no vocab_size", "the tokenizer's"])
def test_a_table_of_a_given_size_keeps_it_and_all_rows(said: int | None, tmp_path: Path) -> None:
    source = of_a_given_size(tmp_path / "a", vocab_size=said)
    assert vocabulary(source) == (ROWS, ROWS)
    for number, tp in enumerate((2, 1, 2)):
        out = tmp_path / f"b{number}"
        told = accepted("reshard", source, out, "--tp", tp).err
        assert "padding" not in told
        assert ("args.vocab_size is 30" in told) == (said is not None and number == 0)
        assert vocabulary(out) == (ROWS, ROWS)
        assert torch.equal(table(out), table(source))
        arguments = torch.load(rank_files(out)[0], weights_only=False)["args"]
        assert (arguments.vocab_size, arguments.padded_vocab_size) == (said, ROWS)
        source = out


def test_a_table_of_the_usual_size_is_padded_for_the_new_layout(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", even(CONFIGS["llama"], 2), multiple=10)
    vocab, rows = vocabulary(source)
    assert rows == padded_size(vocab, 10, 2)
    accepted("reshard", source, tmp_path / "b", "--tp", 1)
    assert vocabulary(tmp_path / "b") == (vocab, padded_size(vocab, 10, 1))


def test_the_user_says_which_rows_are_real(tmp_path: Path) -> None:
    source = of_a_given_size(tmp_path / "a", vocab_size=None)
    accepted("reshard", source, tmp_path / "b", "--tp", 1, "--true-vocab-size", 30)
    assert vocabulary(tmp_path / "b") == (30, ROWS)
    assert torch.equal(table(tmp_path / "b"), table(source))


def test_the_user_says_how_many_rows_there_shall_be(tmp_path: Path) -> None:
    source = of_a_given_size(tmp_path / "a", vocab_size=None)
    target = tmp_path / "to.yaml"
    target.write_text("padded_vocab_size: 80\n")
    for command in (
        ("reshard", source, tmp_path / "b", "--padded-vocab-size", 80),
        ("expand", source, tmp_path / "c", "--to", target),
    ):
        accepted(*command)
        assert vocabulary(command[2]) == (ROWS, 80)
        assert torch.equal(table(command[2])[:ROWS], table(source))
        accepted("verify", source, command[2])


def test_a_vocabulary_that_outgrows_its_table_is_padded_by_the_rule(tmp_path: Path) -> None:
    source = of_a_given_size(tmp_path / "a", vocab_size=30)
    accepted("expand", source, tmp_path / "b", "--vocab-size", ROWS + 1)
    assert vocabulary(tmp_path / "b") == (ROWS + 1, 256)
    arguments = torch.load(rank_files(tmp_path / "b")[0], weights_only=False)["args"]
    assert arguments.vocab_size == ROWS + 1


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source, out = of_a_given_size(tmp_path / "a", vocab_size=None), tmp_path / "b"
    for size, says in ((71, "has 72 ids"), (73, "does not divide by TP2")):
        pattern = f"--padded-vocab-size {size}: .*{says}"
        refused(2, pattern, "reshard", source, out, "--padded-vocab-size", size, place=tmp_path)
    words = ("--format", "huggingface", "--tp", 1, "--padded-vocab-size", 80)
    refused(
        2, "a Hugging Face folder has no padding", "reshard", source, out, *words, place=tmp_path
    )


@given(vocab=st.integers(1, 300), multiple=st.integers(1, 40), tp=st.sampled_from([1, 2, 4]))
def test_padding_is_the_least_that_divides(vocab: int, multiple: int, tp: int) -> None:
    size = padded_size(vocab, multiple, tp)
    assert size % (multiple * tp) == 0
    assert 0 <= size - vocab < multiple * tp
