"""A tokenizer's digest follows its vocabulary and rules, and nothing else of its file."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from flmgrow.formats.tokenizer.identity import digest_of_ranks, digest_of_tokenizer

Json = dict[str, Any]

OLD: Json = {
    "added_tokens": [
        {"id": 3, "content": "<s>", "special": True, "lstrip": False},
        {"id": 4, "content": "<e>", "special": True, "lstrip": False},
    ],
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        ],
    },
    "model": {"vocab": {"a": 0, "b": 1, "ab": 2, "split": 5}, "merges": ["a b"]},
}
NEW: Json = {
    "version": "1.0",
    "truncation": {"max_length": 8},
    "padding": {"pad_id": 0},
    "added_tokens": OLD["added_tokens"][::-1],
    "normalizer": None,
    "post_processor": {"type": "TemplateProcessing"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always",
                "split": True,
            },
            {
                "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": True,
            },
        ],
    },
    "model": {
        "type": "BPE", "dropout": 0.1, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": OLD["model"]["vocab"], "merges": [["a", "b"]],
    },
}  # fmt: skip


def digest(content: Json, **form: Any) -> str:
    return digest_of_tokenizer(json.dumps(content, **form).encode())


def test_forms_of_one_tokenizer_are_one() -> None:
    """White space, order, escapes, defaults, merges as text or pairs, what is not used here."""
    forms = [
        digest(OLD),
        digest(NEW),
        digest(NEW, indent=2),
        digest(NEW, ensure_ascii=False),
        digest(dict(reversed(NEW.items())), sort_keys=True),
    ]
    assert len(set(forms)) == 1


def changed(change: Callable[[Json], object]) -> str:
    content = deepcopy(NEW)
    change(content)
    return digest(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["vocab"].update(a=1, b=0),
        lambda c: c["model"]["vocab"].update({"use_regex": 6}),
        lambda c: c["model"]["merges"].append(["ab", "a"]),
        lambda c: c["model"].update(byte_fallback=True),
        lambda c: c["model"].update(unk_token="a"),
        lambda c: c["model"].update(ignore_merges=True),
        lambda c: c["added_tokens"][0].update(content="<x>"),
        lambda c: c["added_tokens"][0].update(lstrip=True),
        lambda c: c.update(normalizer={"type": "NFKC"}),
        lambda c: c["pre_tokenizer"]["pretokenizers"].pop(),
        lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(prepend_scheme="never"),
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(use_regex=False),
    ],
)
def test_what_decides_on_tokens_changes_it(change: Callable[[Json], object]) -> None:
    assert changed(change) != digest(NEW)
    assert changed(lambda _: None) == digest(NEW)


def test_it_is_the_librarys_own_tokenizer() -> None:
    """What ``tokenizers`` reads and writes anew keeps its digest, whatever form it read."""
    library = pytest.importorskip("tokenizers")
    for content in (OLD, NEW):
        whole = deepcopy(content) | {"post_processor": None, "padding": None, "truncation": None}
        for token in whole["added_tokens"]:
            token |= {"single_word": False, "rstrip": False, "normalized": False}
        whole["added_tokens"].sort(key=lambda token: token["id"])
        whole["model"]["vocab"] = {"a": 0, "b": 1, "ab": 2}
        again = library.Tokenizer.from_str(json.dumps(whole)).to_str(pretty=True)
        assert digest_of_tokenizer(again.encode()) == digest(whole)


def test_ranks_have_no_order() -> None:
    ranks = [(b"a", 0), (b"b", 1), (b"\xff", 2)]
    assert digest_of_ranks(ranks) == digest_of_ranks(reversed(ranks))
    assert digest_of_ranks(ranks) != digest_of_ranks([(b"b", 0), (b"a", 1), (b"\xff", 2)])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_tokenizer_has_none(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        digest_of_tokenizer(content)
