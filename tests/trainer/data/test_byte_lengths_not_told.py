"""Bytes of tokens are not told where a tokenizer loses text, changes it, or has tokens for none."""

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marked_tokenizers import MARK, PREPENDED, make_marked, metaspace, size_of
from tiny_tokenizers import make_tokenizer_json

from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer

SPACES: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
"""What :func:`make_marked` does to text."""


def in_sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def opened_with(folder: Path, edit: dict[str, Any], *, letters: bool = False) -> Tokenizer:
    """Return a tokenizer with other parts, byte-level if it has ``letters``."""
    path = folder / "tokenizer.json"
    made = make_tokenizer_json(path) if letters else make_marked(path)
    path.write_text(json.dumps(json.loads(made.read_text()) | edit))
    return open_tokenizer(str(path))


def added(number: int, content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, **flags}


def words_of(*tokens: dict[str, Any], end: str = "<eos>") -> dict[str, Any]:
    return {"added_tokens": [added(0, end, special=True), *tokens]}


EMPTY_MAP = base64.b64encode((1024).to_bytes(4, "little") + bytes(1024)).decode()
"""A map of characters as SentencePiece's, which has none."""
LOSSES: dict[str, dict[str, Any]] = {
    "Strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "StripAccents": {"type": "StripAccents"},
    "BertNormalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
    "Nmt": {"type": "Nmt"},
    "NFKC": {"type": "NFKC"},
    "NFKD": {"type": "NFKD"},
    "NFD": {"type": "NFD"},
    "Lowercase": {"type": "Lowercase"},
    "Precompiled": {"type": "Precompiled", "precompiled_charsmap": EMPTY_MAP},
    "a pattern": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": MARK},
    "another text": {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    "a mark of two": {"type": "Replace", "pattern": {"String": "  "}, "content": MARK},
}  # fmt: skip


@pytest.mark.parametrize("letters", [False, True], ids=["marked", "byte-level"])
@pytest.mark.parametrize("step", LOSSES.values(), ids=LOSSES)
def test_a_step_that_may_lose_text(step: dict[str, Any], letters: bool, tmp_path: Path) -> None:
    kept = [] if letters else [SPACES]
    for steps in ([*kept, step], [step, *kept]):
        edit = {"normalizer": in_sequence(*steps)}
        assert opened_with(tmp_path, edit, letters=letters).byte_lengths is None
    control = {"normalizer": in_sequence(*kept)}
    assert opened_with(tmp_path, control, letters=letters).byte_lengths is not None


def test_what_sentencepiece_does_to_text_is_not_told(tmp_path: Path) -> None:
    """The steps that transformers writes for it, behind its map of characters."""
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    parts = {
        "normalizer": in_sequence(strip, LOSSES["a pattern"]),
        "pre_tokenizer": metaspace("always"),
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, metaspace("always")],
        },
    }
    tokenizer = opened_with(tmp_path, parts)
    assert tokenizer.decode(tokenizer.encode("a  b ")) == "a b"
    assert tokenizer.byte_lengths is None
    assert opened_with(tmp_path, {**parts, "normalizer": None}).byte_lengths is not None


@pytest.mark.parametrize("letters", [False, True], ids=["marked", "byte-level"])
def test_bytes_are_those_of_the_text_in_the_form_nfc(letters: bool, tmp_path: Path) -> None:
    kept = [] if letters else [SPACES]
    edit = {"normalizer": in_sequence({"type": "NFC"}, *kept)}
    tokenizer = opened_with(tmp_path, edit, letters=letters)
    assert size_of(tokenizer, ["e\u0301"]) == 2

    @settings(max_examples=30)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK)))
    def check(text: str) -> None:
        assert size_of(tokenizer, [text]) == len(unicodedata.normalize("NFC", text).encode())

    check()


@pytest.mark.parametrize(
    "normalizers",
    [
        in_sequence(in_sequence(SPACES)),
        in_sequence({**SPACES, "content": "_"}),
        in_sequence({"type": "Prepend", "prepend": "▁▁"}, SPACES),
        in_sequence({"type": "Prepend", "prepend": "_"}, SPACES),
        {"type": "Prepend", "prepend": MARK},
        {"type": "Newer"},
    ],
    ids=["in two sequences", "another mark", "two marks", "no mark", "spaces stay", "a new kind"],
)
def test_steps_that_are_not_known_to_keep_text(normalizers: dict[str, Any], tmp_path: Path) -> None:
    parts = json.loads(make_marked(tmp_path / "tokenizer.json", **PREPENDED).read_text())
    parts["normalizer"] = normalizers
    if normalizers["type"] != "Newer":
        assert opened_with(tmp_path, parts).byte_lengths is None
    parts["normalizer"] = PREPENDED["normalizer"]
    assert opened_with(tmp_path, parts).byte_lengths is not None


def test_a_vocabulary_with_an_unknown_token_needs_all_bytes(tmp_path: Path) -> None:
    whole = json.loads(make_marked(tmp_path / "marked.json").read_text())
    model = whole["model"]
    model["vocab"]["<unk>"], model["unk_token"] = len(model["vocab"]), "<unk>"
    assert size_of(opened_with(tmp_path, whole), ["th 🎉🎉"]) == 11
    model["byte_fallback"] = False
    tokenizer = opened_with(tmp_path, whole)
    assert tokenizer.encode("th 🎉🎉").tolist()[-1] == model["vocab"]["<unk>"]
    assert tokenizer.byte_lengths is None
    model["byte_fallback"] = True
    model["vocab"]["<none>"] = model["vocab"].pop("<0xF0>")
    tokenizer = opened_with(tmp_path, whole)
    assert tokenizer.encode("th 🎉🎉").tolist()[-1] == model["vocab"]["<unk>"]
    assert tokenizer.byte_lengths is None


def test_letters_of_all_bytes_leave_nothing_unknown(tmp_path: Path) -> None:
    content = json.loads(make_tokenizer_json(tmp_path / "whole.json").read_text())
    model = content["model"]
    model["unk_token"] = "</s>"
    assert size_of(opened_with(tmp_path, content), ["th 🎉🎉"]) == 11
    model["vocab"]["none"] = model["vocab"].pop("ð")  # the letter of 0xF0
    assert opened_with(tmp_path, content).byte_lengths is None
    model["unk_token"] = None  # as SmolLM2's: left out, loss and bytes
    assert size_of(opened_with(tmp_path, content), ["th 🎉🎉"]) == 9


def test_words_as_tokens_are_not_told(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    for model in (
        library.models.WordLevel({"<unk>": 0, "</s>": 1, "two": 2}, unk_token="<unk>"),
        library.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("two", -1.0)], unk_id=0),
    ):
        path = tmp_path / "tokenizer.json"
        library.Tokenizer(model).save(str(path))
        assert open_tokenizer(str(path)).byte_lengths is None


def test_names_of_bytes_and_ends_that_text_becomes(tmp_path: Path) -> None:
    """A Unigram model reads its tokens' names in the text, those of bytes and ends too."""
    library = pytest.importorskip("tokenizers")
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    model = library.models.Unigram([(name, 0.0) for name in names], unk_id=0, byte_fallback=True)
    path = tmp_path / "tokenizer.json"
    library.Tokenizer(model).save(str(path))
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.encode("<0x41></s>").tolist() == [2 + 0x41, 1]
    assert tokenizer.byte_lengths is None


@pytest.mark.parametrize("end", ["t", "th", "<0x0A>"])
def test_an_end_that_text_becomes(end: str, tmp_path: Path) -> None:
    path = make_marked(tmp_path / "tokenizer.json")
    assert open_tokenizer(str(path), end).byte_lengths is None


def test_an_end_that_is_a_word_taken_as_it_is(tmp_path: Path) -> None:
    content = json.loads(make_tokenizer_json(tmp_path / "tokenizer.json", "end").read_text())
    content["model"]["ignore_merges"] = True
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = open_tokenizer(str(path), "end")
    assert tokenizer.encode("end").tolist() == [tokenizer.eod]
    assert tokenizer.byte_lengths is None
    content["model"]["ignore_merges"] = False
    path.write_text(json.dumps(content))
    assert size_of(open_tokenizer(str(path), "end"), ["end"]) == 3


@pytest.mark.parametrize("letters", [False, True], ids=["marked", "byte-level"])
def test_an_added_token_that_takes_the_spaces_beside_it(letters: bool, tmp_path: Path) -> None:
    number, end = 400, "</s>" if letters else "<eos>"
    for flags in ({"lstrip": True}, {"rstrip": True}):
        words = words_of(added(number, "<more>", **flags), end=end)
        tokenizer = opened_with(tmp_path, words, letters=letters)
        assert len(tokenizer.encode("  <more>  ")) == 3
        assert tokenizer.byte_lengths is None
    flags = {"single_word": True, "normalized": True}
    words = words_of(added(number, "<é>", **flags), added(number + 1, "<a b>"), end=end)
    tokenizer = opened_with(tmp_path, words, letters=letters)
    assert len(tokenizer.encode("t <é> <a b>")) == 5
    assert size_of(tokenizer, ["t <é>  <a b>h<é>"]) == 18


def test_an_added_token_that_is_two_texts(tmp_path: Path) -> None:
    """One name may be the letter of a byte, and a text of two bytes."""
    letter = json.loads(make_tokenizer_json(tmp_path / "tokenizer.json").read_text())
    number = letter["model"]["vocab"]["é"]
    words = words_of(added(number, "é"), end="</s>")
    assert opened_with(tmp_path, words, letters=True).byte_lengths is None
    words = words_of(added(400, "é®"), end="</s>")
    assert size_of(opened_with(tmp_path, words, letters=True), ["é®"]) == 4
    composed = words_of(added(400, "e\u0301"), end="</s>") | {"normalizer": {"type": "NFC"}}
    assert opened_with(tmp_path, composed, letters=True).byte_lengths is None
    words = words_of(added(5, "<0x04>"))
    assert opened_with(tmp_path, words).byte_lengths is None
    words = words_of(added(0, "<eos>"))
    words["added_tokens"].pop(0)
    assert opened_with(tmp_path, words).byte_lengths is None
