"""How many bytes of text each token of a ``tokenizer.json`` is, where that can be said of a token.

Bits per byte need the bytes of the text that a loss is the loss of. Two kinds of vocabularies say
them token by token: byte-level ones, whose letters stand for bytes, and those whose tokens are text
with a mark for the space, and single bytes for the rest. Of the second kind are SentencePiece's;
some of them put a mark before each text, which is no text of the first token. ``Prepend`` does so
whatever a text begins with; ``Metaspace`` only before a text that does not begin with a space, so
that this text and the one with a space before it have the same tokens: they count as the shorter of
the two. With all others it depends on what is beside a token, or text is left out, and so what a
token was is not to be known.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flmgrow.formats.tokenizer.identity import prepend_scheme
from flmgrow.formats.tokenizer.tiktoken_ranks import LETTERS
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.tokenizer import ByteLengths

_LETTER_SET = frozenset(LETTERS.values())
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_TAKEN_OFF = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
"""The step of the way back that takes off what was put before a text."""
_LOSE_TEXT = ("BertPreTokenizer", "CharDelimiterSplit", "Whitespace", "WhitespaceSplit")
"""The steps that leave out what they cut at."""

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
    back, before = _way_back(content), _put_before(content)
    if before is None or bool(before) != back.takes_off:
        return None
    # Behind a token that was added for text there is another beginning.
    if before and not apart.issuperset(token["id"] for token in extra):
        return None
    rule = _rule(content, back.steps)
    if rule is None or (before and before not in vocabulary):
        return None
    found = np.zeros(size, np.int64)
    for token, number in vocabulary.items():
        found[number] = rule(token)
    without = [*apart, *([] if unknown is None else [unknown])]
    found[without] = 0
    if not before:
        return ByteLengths(found)
    first = found.copy()
    first[[n for token, n in vocabulary.items() if token.startswith(before)]] -= rule(before)
    first[without] = 0
    return ByteLengths(found, first, frozenset(apart))


def _put_before(content: Json) -> str | None:
    """Return what a tokenizer puts before each text, as it lies in tokens; None if that depends on
    more than the text.
    """
    before = ""
    for step in _steps(content, "normalizer"):
        if step["type"] == "Prepend":
            before = str(step["prepend"]) + before
        elif step["type"] == "Replace" and (pattern := step["pattern"].get("String")):
            before = before.replace(pattern, str(step["content"]))
    for number, step in enumerate(_steps(content, "pre_tokenizer")):
        if step["type"] == "Metaspace" and (scheme := prepend_scheme(step)) != "never":
            if before or (scheme == "always" and number):  # before each part of what is cut
                return None
            before = str(step["replacement"])
    return before


@dataclass(frozen=True)
class _WayBack:
    """What a decoder does, as steps that replace; ``takes_off`` says that it takes off, after them,
    what was put before a text.
    """

    steps: list[dict[str, Any]]
    takes_off: bool


def _way_back(content: Json) -> _WayBack:
    steps = list(_steps(content, "decoder"))
    takes_off = steps[-1:] == [_TAKEN_OFF]
    if takes_off:
        steps.pop()
    for number, step in enumerate(steps):
        if step["type"] == "Metaspace" and not any(
            each["type"] == "Fuse" for each in steps[:number]
        ):
            takes_off |= prepend_scheme(step) != "never"
            pattern = {"String": step["replacement"]}
            steps[number] = {"type": "Replace", "pattern": pattern, "content": " "}
    return _WayBack(steps, takes_off)


def _rule(content: Json, back: list[dict[str, Any]]) -> Rule | None:
    """Return what tells the bytes of a token by its name, if the way ``back`` says it."""
    model, there = content.get("model") or {}, list(_steps(content, "pre_tokenizer", "normalizer"))
    adds = any(step.get("add_prefix_space") for step in there if step["type"] != "Metaspace")
    loses = any(step["type"] in _LOSE_TEXT or step.get("behavior") == "Removed" for step in there)
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if adds or loses or affixes:
        return None
    spaces = {step["replacement"] for step in there if step["type"] == "Metaspace"}
    kinds = [step["type"] for step in back]
    if kinds == ["ByteLevel"] and not spaces:
        return _of_letters
    written = [step for step in back if step["type"] == "Replace"]
    patterns = [step.get("pattern", {}).get("String") for step in written]
    if {"Replace", "ByteFallback", "Fuse"}.issuperset(kinds) and kinds and all(patterns):
        marks = {
            pattern: str(step["content"]) for pattern, step in zip(patterns, written, strict=True)
        }
        falls_back = "ByteFallback" in kinds or bool(model.get("byte_fallback"))
        if spaces <= marks.keys():
            return lambda token: _of_text(token, marks, bytes_too=falls_back)
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
