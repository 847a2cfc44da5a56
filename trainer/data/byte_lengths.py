"""How many bytes of text each token of a ``tokenizer.json`` is, where that can be said of a token.

Bits per byte need the bytes of the text that a loss is the loss of. Two kinds of vocabularies say
them token by token: byte-level ones, whose letters stand for bytes, and those whose tokens are text
with a mark for the space, and single bytes for the rest. With all others it depends on what is
beside a token: a space that is added before a word, or taken off the beginning of a text.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flmgrow.formats.tokenizer.tiktoken_ranks import LETTERS
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.tokenizer import ByteLengths

_LETTER_SET = frozenset(LETTERS.values())
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def lengths_of(content: Json, vocabulary: Mapping[str, int], size: int) -> ByteLengths | None:
    """Return the bytes of text of each of ``size`` ids; None where a token alone does not say them.

    ``content`` is a ``tokenizer.json`` with its way back
    (:func:`flmgrow.trainer.data.tokenizer_json.with_way_back`), ``vocabulary`` its tokens.
    """
    length = _rule(content)
    if length is None:
        return None
    found = np.zeros(size, np.int64)
    for token, number in vocabulary.items():
        found[number] = length(token)
    return found


def _rule(content: Json) -> Callable[[str], int] | None:
    """Return what tells the bytes of a token by its name, if anything does."""
    model, there = content.get("model") or {}, _steps(content, "pre_tokenizer", "normalizer")
    adds = any(
        step.get("add_prefix_space") or step["type"] in ("Prepend", "Metaspace") for step in there
    )
    if adds or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    back = list(_steps(content, "decoder"))
    kinds = [step["type"] for step in back]
    if kinds == ["ByteLevel"]:
        return _of_letters
    written = [step for step in back if step["type"] == "Replace"]
    patterns = [step.get("pattern", {}).get("String") for step in written]
    if {"Replace", "ByteFallback", "Fuse"}.issuperset(kinds) and kinds and all(patterns):
        marks = {
            pattern: str(step["content"]) for pattern, step in zip(patterns, written, strict=True)
        }
        return lambda token: _of_text(token, marks, bytes_too="ByteFallback" in kinds)
    return None


def _of_letters(token: str) -> int:
    """Return the bytes of a token of a byte-level vocabulary; one that was added is text."""
    return len(token) if _LETTER_SET.issuperset(token) else len(token.encode())


def _of_text(token: str, marks: Mapping[str, str], *, bytes_too: bool) -> int:
    """Return the bytes of a token that is text, with ``marks`` in the place of other text."""
    if bytes_too and _BYTE.fullmatch(token):
        return 1
    for mark, meant in marks.items():
        token = token.replace(mark, meant)
    return len(token.encode())


def _steps(content: Json, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of some parts of a tokenizer, of those that are sequences each one."""
    for name in names:
        part = content.get(name) or {}
        inner = next((part[key] for key in _SEQUENCES if key in part), None)
        yield from [part] if inner is None and part else inner or []


_SEQUENCES = ("decoders", "pretokenizers", "normalizers")
