"""The bytes of tokens add up to the bytes of the text, or are not told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import make_ranks, make_tokenizer_json

from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


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


PREPENDED: dict[str, Any] = {
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
}  # fmt: skip
"""The way there and back of Llama 2's vocabulary: each text has a mark before it."""


MARK = "▁"
WAYS_BACK = ("none", "metaspace", "strip")


def metaspace(scheme: str, *, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def in_sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def make_metaspace(path: Path, scheme: str, *, split: bool, back: str, **parts: Any) -> Path:
    """Write a tokenizer whose ``Metaspace`` writes spaces as marks, and what takes them ``back``:
    a decoder of that kind, or as Llama 2's, or none that it says.
    """
    step = metaspace(scheme, split=split)
    decoders: dict[str, Any] = {
        "none": None,
        "metaspace": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, step]},
        "strip": PREPENDED["decoder"],
    }
    if scheme == "never":
        decoders["strip"] = {"type": "Sequence", "decoders": PREPENDED["decoder"]["decoders"][:-1]}
    ways = {"normalizer": None, "pre_tokenizer": step, "decoder": decoders[back]}
    return make_marked(path, **ways, **parts)


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


def size_of(tokenizer: Tokenizer, documents: list[str]) -> int:
    """Return the bytes that tokens say of ``documents``, each of which has an end."""
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    encoded = [np.append(tokenizer.encode(text), tokenizer.eod) for text in documents]
    tokens = np.concatenate([[tokenizer.eod], *encoded])
    return lengths.of(tokens[1:], tokens[:-1])


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
    """Where a mark is put before a text, one that begins with a space has the tokens of the one
    without, and counts as that.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    path = make_metaspace(folder / "tokenizer.json", scheme, split=split, back=back)
    tokenizer = open_tokenizer(str(path))

    @given(documents=st.lists(TEXTS | st.text(" th\n", max_size=6), max_size=4))
    def check(documents: list[str]) -> None:
        marked = sum(text.startswith(" ") for text in documents) if scheme != "never" else 0
        assert size_of(tokenizer, documents) == len("".join(documents).encode()) - marked

    check()
    alike = np.array_equal(tokenizer.encode("th"), tokenizer.encode(" th"))
    assert alike == (scheme != "never")
    assert size_of(tokenizer, ["th th", "é", ""]) == 7


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
