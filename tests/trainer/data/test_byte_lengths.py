"""The bytes of tokens add up to the bytes of the text, or are not told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marked_tokenizers import MARK, PREPENDED, make_marked, make_metaspace, metaspace, size_of
from tiny_tokenizers import make_ranks, make_tokenizer_json

from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


WAYS_BACK = ("none", "metaspace", "strip")


def in_sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _opened(kind: str, folder: Path) -> Tokenizer:
    if kind == "bytes":
        return open_tokenizer("bytes")
    if kind == "ranks":
        pytest.importorskip("tiktoken")
        return open_tokenizer(str(make_ranks(folder / "tiny.tiktoken")))
    if kind == "byte-level":
        return open_tokenizer(str(make_tokenizer_json(folder / "tokenizer.json")))
    parts = PREPENDED if kind == "prepended" else {}
    return open_tokenizer(str(make_marked(folder / "tokenizer.json", **parts)))


@pytest.fixture(scope="module", params=["bytes", "ranks", "byte-level", "marked", "prepended"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return _opened(request.param, tmp_path_factory.mktemp("tokenizer"))


@given(documents=st.lists(TEXTS, max_size=4))
def test_they_add_up_to_the_text(tokenizer: Tokenizer, documents: list[str]) -> None:
    assert size_of(tokenizer, documents) == len("".join(documents).encode())


def test_each_id_has_a_length_and_ends_have_none(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    assert len(lengths.of_ids) == tokenizer.vocab_size
    assert lengths.of_ids[tokenizer.eod] == 0
    inside = tokenizer.encode("a the thé")
    assert (lengths.of_ids[inside] > 0).all()


def test_a_mark_before_a_text_is_none_of_it(tmp_path: Path) -> None:
    """Only the first token of a text is shorter, and a space of the text's own counts."""
    tokenizer = open_tokenizer(str(make_marked(tmp_path / "tokenizer.json", **PREPENDED)))
    assert tokenizer.encode("th").tolist() == tokenizer.encode(" th")[1:].tolist()
    assert size_of(tokenizer, ["th", " th", "", " "]) == 6
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    assert lengths.of_ids[tokenizer.encode("th")].sum() == 3


@pytest.mark.parametrize("back", WAYS_BACK)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_marks_of_metaspace_add_up_to_the_text(
    tmp_path_factory: pytest.TempPathFactory, scheme: str, split: bool, back: str
) -> None:
    """Where a mark is put before a text, one that begins with one space has the tokens of the one
    without, and counts as that. One that is nothing but a space, or begins with more, does not.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    path = make_metaspace(folder / "tokenizer.json", scheme, split=split, back=back)
    tokenizer = open_tokenizer(str(path))

    @given(documents=st.lists(TEXTS | st.text(" th\n", max_size=6), max_size=4))
    def check(documents: list[str]) -> None:
        marked = 0
        if scheme != "never":
            marked = sum(text[:1] == " " and text[1:2] not in ("", " ") for text in documents)
        assert size_of(tokenizer, documents) == len("".join(documents).encode()) - marked

    check()
    alike = np.array_equal(tokenizer.encode("th"), tokenizer.encode(" th"))
    assert alike == (scheme != "never")
    assert size_of(tokenizer, ["th th", "é", ""]) == 7


@pytest.mark.parametrize("split", [False, True])
def test_spaces_of_an_indented_text_are_its_own(tmp_path: Path, split: bool) -> None:
    """Whether the marks are tokens of their own, or one with what follows."""
    path = make_metaspace(tmp_path / "tokenizer.json", "first", split=split, back="metaspace")
    content = json.loads(path.read_text())
    tokenizer = open_tokenizer(str(path))
    assert [size_of(tokenizer, [text]) for text in ("  th", "    two", "  ", " ")] == [4, 7, 2, 1]
    content["model"]["vocab"] |= {"▁▁": 262, "▁▁th": 263}
    content["model"]["merges"] = [["t", "h"], ["▁", "▁"], ["▁▁", "th"], ["▁", "th"]]
    path.write_text(json.dumps(content))
    merging = open_tokenizer(str(path))
    assert [size_of(merging, [text]) for text in ("  th", "   th", "  ", "th")] == [4, 5, 2, 2]

    @given(spaces=st.integers(0, 6), text=st.text("th x", min_size=1, max_size=6))
    def check(spaces: int, text: str) -> None:
        text = " " * spaces + text
        shorter = text[0] == " " and text[1:2] not in ("", " ")
        assert size_of(merging, [text, "th", text]) == 2 * (len(text) - shorter) + 2

    check()


def test_a_mark_that_a_sample_ends_with_is_not_counted(tmp_path: Path) -> None:
    """What decides on it is not there."""
    path = make_metaspace(tmp_path / "tokenizer.json", "always", split=False, back="metaspace")
    tokenizer = open_tokenizer(str(path))
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    tokens = np.append(tokenizer.eod, tokenizer.encode("  two"))
    assert lengths.of(tokens[1:3], tokens[:2]).tolist() == [1, 1]
    assert lengths.of(tokens[1:2], tokens[:1]).tolist() == [0]
    assert lengths.of(tokens[1:1], tokens[:0]).tolist() == []


def test_of_a_text_that_is_cut_the_first_part_alone_has_a_mark(tmp_path: Path) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    cut = in_sequence(digits, metaspace("first"))
    parts = {"pre_tokenizer": cut, "decoder": metaspace("first"), "normalizer": None}
    tokenizer = open_tokenizer(str(make_marked(tmp_path / "tokenizer.json", **parts)))
    assert size_of(tokenizer, ["a1th 2", "1th"]) == 9


def test_a_mark_that_has_no_token_is_not_told(tmp_path: Path) -> None:
    """It would be bytes of the text, one by one."""
    path = make_metaspace(tmp_path / "tokenizer.json", "always", split=False, back="metaspace")
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [["t", "h"]]
    vocabulary["~"] = vocabulary.pop(MARK)
    path.write_text(json.dumps(content))
    assert open_tokenizer(str(path)).byte_lengths is None


def test_a_text_that_has_the_mark_itself_counts_it_as_a_space(tmp_path: Path) -> None:
    """As it comes back: SentencePiece has one token for both."""
    tokenizer = open_tokenizer(str(make_marked(tmp_path / "tokenizer.json")))
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"
    assert size_of(tokenizer, ["a▁b"]) == 3


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}},
        {"pre_tokenizer": metaspace("first")},
        {"pre_tokenizer": metaspace("first"), "decoder": metaspace("never")},
        {"pre_tokenizer": metaspace("never"), "decoder": metaspace("always")},
        {"pre_tokenizer": metaspace("never"), "decoder": {"type": "Fuse"}},
        {"pre_tokenizer": in_sequence({"type": "Digits", "individual_digits": True},
                                      metaspace("always")), "decoder": metaspace("always")},
        {"pre_tokenizer": in_sequence({"type": "WhitespaceSplit"}, metaspace("first")),
         "decoder": metaspace("first")},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": "t"}, "behavior": "Removed",
                           "invert": False}},
        {"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}},
        {"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "}, {"type": "Fuse"},
        ]}},
        {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}},
        {**PREPENDED, "added_tokens": [{
            "id": 0, "content": "<eos>", "special": True, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False,
        }, {
            "id": 262, "content": "<more>", "special": False, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False,
        }]},
    ],
    ids=["a space is added", "metaspace adds", "metaspace adds and the way back does not know",
         "metaspace takes off", "metaspace stays", "metaspace adds in the middle",
         "white space is lost", "text is lost", "a space is taken off", "a pattern", "word pieces",
         "a space is added behind tokens, too"],
)  # fmt: skip
def test_what_depends_on_its_neighbours_is_not_told(parts: dict[str, Any], tmp_path: Path) -> None:
    """The first word of a text has a space that may be its own or not."""
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
