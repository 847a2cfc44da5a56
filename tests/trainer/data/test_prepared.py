"""The same command after a finished one finds its corpus; after anything else it does not."""

import json
from pathlib import Path

import pytest
from commands import accepted, flmgrow
from tiny_tokenizers import make_jsonl

from flmgrow.trainer.data.prepare import MANIFEST

NAMES = ("data.bin", "data.idx", MANIFEST)


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """A command that has been carried out once."""
    (tmp_path / "texts").mkdir()
    make_jsonl(tmp_path / "texts" / "a.jsonl", ["width", "depth"])
    (tmp_path / "texts" / "empty.jsonl").touch()
    given = ["data", "prepare", tmp_path / "texts", tmp_path / "out", "--tokenizer", "bytes"]
    told = accepted(*given).out
    assert told.startswith("wrote      ")
    assert "read       2 files (1 empty)" in told
    return given


def written(folder: Path) -> list[tuple[int, int, int]]:
    """Which files there are, and when each was written; reading them may be noted, too."""
    found = [(folder / name).stat() for name in NAMES]
    return [(each.st_ino, each.st_mtime_ns, each.st_ctime_ns) for each in found]


def test_the_same_command_finds_what_it_wrote(words: list[object], tmp_path: Path) -> None:
    before = written(tmp_path / "out")
    told = accepted(*words).out
    assert told.startswith("found      ")
    assert "12 tokens in 2 documents" in told
    assert written(tmp_path / "out") == before
    manifest = json.loads(accepted(*words, "--workers", "3", "--json").out)
    assert manifest == json.loads((tmp_path / "out" / MANIFEST).read_text())


def test_leftovers_are_tidied_up(words: list[object], tmp_path: Path) -> None:
    """Of a run that was killed between its commit and its end."""
    hidden = tmp_path / ".out.flmgrow"
    hidden.mkdir(mode=0o700)
    (hidden / "plan.json").write_text("{}")
    accepted(*words)
    assert not hidden.exists()


@pytest.mark.parametrize(
    "options",
    [["--eod", "10"], ["--no-append-eod"], ["--jsonl-key", "body"]],
    ids=["eod", "ends", "key"],
)
def test_another_command_does_not(words: list[object], options: list[str]) -> None:
    outcome = flmgrow(*words, *options)
    assert (outcome.code, outcome.out) == (5, "")
    assert "already exists" in outcome.err


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_corpus_is_not_it(name: str, words: list[object], tmp_path: Path) -> None:
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:-3] + b"???")
    assert flmgrow(*words).code == 5


@pytest.mark.parametrize("text", ["widht", "width and depth"])
def test_other_text_is_not_it(text: str, words: list[object], tmp_path: Path) -> None:
    make_jsonl(tmp_path / "texts" / "a.jsonl", [text, "depth"])
    assert flmgrow(*words).code == 5


def test_a_source_more_or_less_is_not_it(words: list[object], tmp_path: Path) -> None:
    (tmp_path / "texts" / "empty.jsonl").unlink()
    assert flmgrow(*words).code == 5


def test_fewer_bad_lines_allowed_is_not_it(tmp_path: Path) -> None:
    """The command would be refused where nothing is there, so it is not the one that was done."""
    (tmp_path / "a.jsonl").write_text('{"text": "width"}\n{"text": null}\n')
    words = ["data", "prepare", tmp_path / "a.jsonl", tmp_path / "out", "--tokenizer", "bytes"]
    accepted(*words, "--max-bad-lines", "1")
    assert accepted(*words, "--max-bad-lines", "2").out.startswith("found ")
    assert flmgrow(*words).code == 5
