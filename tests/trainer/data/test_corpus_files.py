"""A corpus is found however it is named, and what its manifest says of it is compared."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import make_jsonl, make_tokenizer_json

from flmgrow.cli.app import run
from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.trainer.data import corpus_files
from flmgrow.trainer.data.corpus_files import open_corpus_files
from flmgrow.trainer.data.tokenizers import ByteTokenizer, open_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = make_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    assert run(["data", "prepare", str(texts), str(tmp_path / "en"), "--tokenizer", "bytes"]) == 0
    return tmp_path / "en"


def links(corpus: Path) -> Path:
    """Links to both files, under another name."""
    for ending in (".bin", ".idx"):
        (corpus.parent / f"linked{ending}").symlink_to(corpus / f"data{ending}")
    return corpus.parent / "linked"


def link(corpus: Path) -> Path:
    (corpus.parent / "link").symlink_to(corpus)
    return corpus.parent / "link"


NAMES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda corpus: corpus,
    "slash": lambda corpus: Path(f"{corpus}/"),
    "prefix": lambda corpus: corpus / "data",
    "bin": lambda corpus: corpus / "data.bin",
    "idx": lambda corpus: corpus / "data.idx",
    "relative": lambda corpus: Path("..") / corpus.parent.name / corpus.name,
    "around": lambda corpus: corpus / ".." / corpus.name / "data",
    "link": link,
    "link inside": lambda corpus: link(corpus) / "data.bin",
    "links": links,
}


@pytest.mark.parametrize("name", NAMES)
def test_whatever_it_is_called_it_is_compared(
    name: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus.parent)
    path = NAMES[name](corpus)
    found = open_corpus_files(path, ByteTokenizer())
    assert found.tokens == 8
    assert [file["path"] for file in found.files] == ["data.bin", "data.idx"]
    with pytest.raises(UsageError, match=r"made with another tokenizer: eod 256, now 0$"):
        open_corpus_files(path, ByteTokenizer("0"))
    (corpus / "data.bin").write_bytes(bytes(16))
    with pytest.raises(
        BadDataError, match=r"\.bin: its checksum is \w{32}, flmgrow-data.json says"
    ):
        open_corpus_files(path, ByteTokenizer())


def test_a_corpus_of_megatrons_own_has_no_manifest(corpus: Path) -> None:
    (corpus / "flmgrow-data.json").unlink()
    found = open_corpus_files(corpus / "data", ByteTokenizer("0"))
    assert (found.tokens, found.files) == (8, ())
    for ending in (".bin", ".idx"):
        (corpus / f"data{ending}").rename(corpus.parent / f"en{ending}")
    assert open_corpus_files(corpus, ByteTokenizer()).name == "en"  # the prefix, beside the folder


def test_tokens_are_summed_when_it_takes_a_moment_or_is_asked_for(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "data.bin").write_bytes(bytes(16))
    open_corpus_files(corpus, ByteTokenizer(), "never")
    monkeypatch.setattr(corpus_files, "SUMMED_AT_ONCE", 15)
    open_corpus_files(corpus, ByteTokenizer())
    with pytest.raises(BadDataError, match="its checksum is") as refusal:
        open_corpus_files(corpus, ByteTokenizer(), "always")
    assert "prepare it anew" in refusal.value.hint


def damage(name: str) -> Callable[[Path], object]:
    def cut(corpus: Path) -> object:
        return (corpus / name).write_bytes((corpus / name).read_bytes()[:-2])

    return cut


def altered(corpus: Path, **changes: Any) -> object:
    path = corpus / "flmgrow-data.json"
    return path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(corpus: Path, name: str) -> object:
    (corpus / name).unlink()
    return None


def in_another_order(corpus: Path) -> object:
    """An index that is whole, of as many tokens, and not the one that was prepared."""
    from flmgrow.trainer.data.indexed import index_bytes, read_index

    index = read_index(corpus / "data.idx")
    lengths = index.lengths + np.array([1, -1], np.int32)
    return (corpus / "data.idx").write_bytes(
        b"".join(index_bytes(2, index.dtype, lambda: [lengths]))
    )


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda c: without(c, "data.idx"), r"en/data\.idx: No such file"),
    "no tokens": (lambda c: without(c, "data.bin"), r"data\.bin: 0 bytes, its index says 16"),
    "cut": (damage("data.bin"), r"data\.bin: 14 bytes, its index says 16"),
    "cut index": (damage("data.idx"), r"data\.idx: \d+ bytes, wanted"),
    "another index": (in_another_order, r"data\.idx: its checksum is"),
    "no JSON": (damage("flmgrow-data.json"), r"flmgrow-data\.json: not a manifest of data"),
    "a list": (
        lambda c: (c / "flmgrow-data.json").write_text("[]"),
        r"flmgrow-data\.json: not a manifest of data",
    ),
    "files of nothing": (lambda c: altered(c, files=[{}]), "not a manifest of data: 'path'"),
    "no files": (
        lambda c: altered(c, files=[]),
        r"data\.bin: 16 bytes, flmgrow-data.json says None",
    ),
    "no tokenizer": (
        lambda c: altered(c, tokenizer=None),
        "another tokenizer: kind None, now bytes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_told_in_a_line(case: str, corpus: Path) -> None:
    change, message = BAD[case]
    change(corpus)
    with pytest.raises(FlmgrowError, match=message) as refusal:
        open_corpus_files(corpus, ByteTokenizer())
    assert "\n" not in refusal.value.message


def test_corpora_of_earlier_versions_are_taken(tmp_path: Path) -> None:
    """Their manifests know a tokenizer.json by its bytes: by the very same file only."""
    path = make_tokenizer_json(tmp_path / "tokenizer.json")
    texts = make_jsonl(tmp_path / "a.jsonl", ["the thing"])
    words = ["data", "prepare", str(texts), str(tmp_path / "en"), "--tokenizer", str(path)]
    assert run(words) == 0
    manifest = json.loads((tmp_path / "en" / "flmgrow-data.json").read_text())
    old = {**manifest["tokenizer"], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert old != manifest["tokenizer"]
    anew = tmp_path / "anew.json"
    anew.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    open_corpus_files(tmp_path / "en", open_tokenizer(str(anew)))
    altered(tmp_path / "en", tokenizer=old)
    open_corpus_files(tmp_path / "en", open_tokenizer(str(path)))
    with pytest.raises(UsageError, match="another tokenizer: sha256") as refusal:
        open_corpus_files(tmp_path / "en", open_tokenizer(str(anew)))
    assert "earlier versions" in refusal.value.hint
