"""How many bytes of text each token of a ``tokenizer.json`` is, where that can be said of a token.

Bits per byte need the bytes of the text that a loss is the loss of. Two kinds of vocabularies say
them token by token: byte-level ones, whose letters stand for bytes, and those whose tokens are text
with a mark for the space, and single bytes for the rest. Of the second kind are SentencePiece's;
some of them put a mark before each text, whatever it begins with (Llama 2's), which is no text of
the first token. With all others it depends on what is beside a token: Metaspace puts a mark only
before a text that does not begin with a space, and so what a token was is not to be known.
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
_TAKEN_OFF = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
"""The step of the way back that takes off what was put before a text."""

Rule = Callable[[str], int]


def lengths_of(
    content: Json, vocabulary: Mapping[str, int], size: int, end: int, unknown: int | None
) -> ByteLengths | None:
    """Return the bytes of text of each of ``size`` ids; None where tokens do not say them.

    ``content`` is a ``tokenizer.json`` with its way back
    (:func:`flmgrow.trainer.data.tokenizer_json.with_way_back`), ``vocabulary`` its tokens. What
    ends documents, the ``unknown`` token and special ones, which no text becomes, have no bytes.
    """
    extra = content.get("added_tokens") or []
    apart = {end, *(token["id"] for token in extra if token.get("special"))}
    back, before = list(_steps(content, "decoder")), _put_before(content)
    if before:
        # Behind a token that was added for text there is another beginning.
        if back[-1:] != [_TAKEN_OFF] or not apart.issuperset(token["id"] for token in extra):
            return None
        back.pop()
    rule = _rule(content, back)
    if rule is None:
        return None
    found = np.zeros(size, np.int64)
    for token, number in vocabulary.items():
        found[number] = rule(token)
    found[[*apart, *([] if unknown is None else [unknown])]] = 0
    return ByteLengths(found, rule(before), frozenset(apart))


def _put_before(content: Json) -> str:
    """Return what a tokenizer puts before each text."""
    there = _steps(content, "normalizer")
    return "".join(str(step["prepend"]) for step in there if step["type"] == "Prepend")


def _rule(content: Json, back: list[dict[str, Any]]) -> Rule | None:
    """Return what tells the bytes of a token by its name, if the way ``back`` says it."""
    model, there = content.get("model") or {}, _steps(content, "pre_tokenizer", "normalizer")
    adds = any(step.get("add_prefix_space") or step["type"] == "Metaspace" for step in there)
    if adds or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
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
