"""The bytes of tokens add up to the bytes of the text, or are not told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import make_ranks, make_tokenizer_json

from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def make_marked(path: Path, **parts: Any) -> Path:
    """Write a tokenizer as Gemma's: text with a mark for the space, and bytes for the rest."""
    library = pytest.importorskip("tokenizers")
    names = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "th", "▁th", "é"]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("t", "h"), ("▁", "th")]
    model = library.models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True)
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = library.normalizers.Replace(" ", "▁")
    steps = [library.decoders.Replace("▁", " "), library.decoders.ByteFallback()]
    tokenizer.decoder = library.decoders.Sequence([*steps, library.decoders.Fuse()])
    tokenizer.add_special_tokens(["<eos>"])
    path.write_text(json.dumps(json.loads(tokenizer.to_str()) | parts))
    return path


def _opened(kind: str, folder: Path) -> Tokenizer:
    if kind == "bytes":
        return open_tokenizer("bytes")
    if kind == "ranks":
        pytest.importorskip("tiktoken")
        return open_tokenizer(str(make_ranks(folder / "tiny.tiktoken")))
    make = make_marked if kind == "marked" else make_tokenizer_json
    return open_tokenizer(str(make(folder / "tokenizer.json")))


@pytest.fixture(scope="module", params=["bytes", "ranks", "byte-level", "marked"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return _opened(request.param, tmp_path_factory.mktemp("tokenizer"))


@given(text=TEXTS)
def test_they_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    assert len(lengths) == tokenizer.vocab_size
    tokens = tokenizer.encode(text)
    assert lengths[tokens].sum() == len(text.encode())
    assert lengths[tokenizer.eod] == 0


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}},
        {"pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
        }},
        {"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}},
        {"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "}, {"type": "Fuse"},
        ]}},
        {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}},
    ],
    ids=["a space is added", "metaspace", "a space is taken off", "a pattern", "word pieces"],
)  # fmt: skip
def test_what_depends_on_its_neighbours_is_not_told(parts: dict[str, Any], tmp_path: Path) -> None:
    """As of Llama 2's vocabulary: the first word of a text has a space that is not there."""
    tokenizer = open_tokenizer(str(make_marked(tmp_path / "tokenizer.json", **parts)))
    assert tokenizer.byte_lengths is None


def test_a_byte_level_vocabulary_that_adds_a_space_is_not_told(tmp_path: Path) -> None:
    path = make_tokenizer_json(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(content))
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.decode(tokenizer.encode("the")) == " the"
    assert tokenizer.byte_lengths is None
