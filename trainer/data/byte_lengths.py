"""How many bytes of text each token of a ``tokenizer.json`` is, where that can be said of a token.

Bits per byte need the bytes of the text that a loss is the loss of. Two kinds of BPE vocabularies
say them token by token: byte-level ones, whose letters stand for bytes, and those whose tokens are
text with a mark for the space, and single bytes for the rest, as SentencePiece's.

Some of the second kind put a mark before each text, which is no text of the first token.
``Prepend`` does so whatever a text begins with; ``Metaspace`` only before a text that does not
begin with a space. So a text that begins with one space counts there as the one without it: both
may have the same tokens. One that begins with more has tokens of its own.

Everything else is not told. What is done to text on its way to tokens must be known to keep it: of
any other step, even one that does not exist yet, nobody can say what was lost. No text may become a
token that is taken for an end, nor the unknown token, which has a loss and no bytes: there must be
none, or tokens for all bytes.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flmgrow.formats.tokenizer.identity import prepend_scheme
from flmgrow.formats.tokenizer.tiktoken_ranks import LETTERS
from flmgrow.model.arrays import IntArray
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.tokenizer import ByteLengths, FirstOfText

MARK = "▁"
"""What stands for a space in SentencePiece's vocabularies, U+2581."""
_LETTER_SET = frozenset(LETTERS.values())
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_OF_UTF8 = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]
"""The bytes that text has (RFC 3629)."""
_TAKEN_OFF = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
"""The step of the way back that takes off what was put before a text."""
_SPACE_TO_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
_MARK_TO_SPACE = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}
_CUTS = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
"""The steps that cut text and keep all of it, where they are not told to remove something."""
_SEQUENCES = ("decoders", "pretokenizers", "normalizers")

Rule = Callable[[str], int]
Encode = Callable[[str], Collection[int]]


@dataclass(frozen=True)
class _Alphabet:
    """The bytes of a model's token and of a text, and the tokens of single bytes; ``marks`` says
    whether spaces are marks.
    """

    of_token: Rule
    of_text: Rule
    bytes: frozenset[str]
    marks: bool = False

    def says_all(self, names: Collection[str], *, unknown: bool) -> bool:
        """Whether tokens of these ``names`` say all text that becomes tokens: what has none is left
        out, loss and bytes, if it does not become an ``unknown`` one.
        """
        return (not self.marks or MARK in names) and not (unknown and self.bytes - set(names))


def lengths_of(
    content: Json,
    vocabulary: Mapping[str, int],
    size: int,
    end: int,
    unknown: int | None,
    encode: Encode,
) -> ByteLengths | None:
    """Return the bytes of text of each of ``size`` ids; None where tokens do not say them.

    ``content`` is a ``tokenizer.json`` with its way back
    (:func:`flmgrow.trainer.data.tokenizer_json.with_way_back`), ``vocabulary`` its tokens, and
    ``encode`` gives the ids of a text. What ends documents, the ``unknown`` token and special ones
    have no bytes.
    """
    added = [each for each in content.get("added_tokens") or [] if each["content"] in vocabulary]
    # By their names, as the library gives ids anew to those that leave some out.
    apart = {end, *(vocabulary[each["content"]] for each in added if each.get("special"))}
    without = apart if unknown is None else apart | {unknown}
    words = {each["content"]: each for each in added if not each.get("special")}
    alphabet, before = _alphabet(content), _put_before(content)
    if alphabet is None or before is None:
        return None
    # Behind a token that was added for text there is another beginning.
    if before and (words or not alphabet.marks):
        return None
    model = content["model"]
    names = {name: number for name, number in vocabulary.items() if number in without}
    if (
        not alphabet.says_all(model["vocab"], unknown=unknown is not None)
        or not names.keys().isdisjoint(alphabet.bytes)
        or not words.keys().isdisjoint(names)
        or _from_text(names, model, encode)
        or not all(_says_its_text(token, content, alphabet) for token in words.values())
    ):
        return None
    found = np.zeros(size, np.int64)
    for name, number in vocabulary.items():
        found[number] = alphabet.of_token(name)
    for name in words:
        found[vocabulary[name]] = alphabet.of_text(name)
    found[list(without)] = 0
    if not before:
        return ByteLengths(found)
    return ByteLengths(found, _first_of_text(before, vocabulary, found, apart))


def _first_of_text(
    before: str, vocabulary: Mapping[str, int], found: IntArray, apart: set[int]
) -> FirstOfText:
    """Return the bytes of first tokens, where a step of type ``before`` puts a mark there; those of
    others are ``found`` (vocabulary,).
    """
    marked = np.zeros(len(found), bool)
    marked[[number for name, number in vocabulary.items() if name.startswith(MARK)]] = True
    shorter = marked & (found > 0)
    if before == "Prepend":
        return FirstOfText(found - shorter, frozenset(apart))
    shorter[[n for name, n in vocabulary.items() if name.startswith(2 * MARK)]] = False
    ends = np.zeros(len(found), bool)
    ends[list(apart)] = True
    return FirstOfText(found - shorter, frozenset(apart), vocabulary[MARK], marked | ends)


def _from_text(names: Mapping[str, int], model: Json, encode: Encode) -> bool:
    """Whether text can become one of the tokens ``names``, which are taken for no text.

    A BPE model makes letters and what it merges, or words as they are if it does not ask merges.
    """
    inside = names.keys() & model["vocab"].keys()
    if any(len(name) == 1 for name in inside):
        return True
    if model.get("ignore_merges") and any(names[name] in encode(name) for name in inside):
        return True
    return bool(inside) and not inside.isdisjoint(_merged(model))


def _merged(model: Json) -> Iterator[str]:
    for merge in model["merges"]:
        yield merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def _says_its_text(token: Json, content: Json, alphabet: _Alphabet) -> bool:
    """Whether a token that was added for text stands for its own text, and for nothing beside."""
    name = token["content"]
    composes = any(step["type"] == "NFC" for step in _steps(content, "normalizer"))
    return not (
        token.get("lstrip")
        or token.get("rstrip")
        or (composes and not unicodedata.is_normalized("NFC", name))
        or (name in content["model"]["vocab"] and alphabet.of_token(name) != alphabet.of_text(name))
    )


def _put_before(content: Json) -> str | None:
    """Return the type of the step that puts a mark before each text, "" without one; None if what
    is put there is something else, depends on more than the text, or stays on the way back.
    """
    put, kind = "", ""
    for step in _steps(content, "normalizer"):
        if step["type"] == "Prepend":
            put, kind = str(step["prepend"]) + put, "Prepend"
        elif step == _SPACE_TO_MARK:
            put = put.replace(" ", MARK)
    for number, step in enumerate(_steps(content, "pre_tokenizer")):
        if step["type"] == "Metaspace" and (scheme := prepend_scheme(step)) != "never":
            if put or (scheme == "always" and number):  # before each part of what is cut
                return None
            put, kind = str(step["replacement"]), "Metaspace"
    _, takes_off = _way_back(content)
    return kind if put in ("", MARK) and bool(put) == takes_off else None


def _way_back(content: Json) -> tuple[Sequence[Json], bool]:
    """Return what a decoder does, as steps that replace, and whether it takes off, after them, what
    was put before a text.
    """
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
    return steps, takes_off


def _alphabet(content: Json) -> _Alphabet | None:
    """Return what tells the bytes of a token by its name; None if what is done to text may lose
    some, or if the way back is not its opposite.
    """
    model = content.get("model") or {}
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    normalizers, cuts = _steps(content, "normalizer"), list(_steps(content, "pre_tokenizer"))
    is_bpe = model.get("type", "BPE") == "BPE" and "merges" in model
    if affixes or not is_bpe or not (all(map(_keeps, normalizers)) and all(map(_only_cuts, cuts))):
        return None
    marks = _SPACE_TO_MARK in _steps(content, "normalizer")
    marks |= any(step["type"] == "Metaspace" for step in cuts)
    to_letters = sum(step["type"] == "ByteLevel" for step in cuts)
    back, _ = _way_back(content)
    if [step["type"] for step in back] == ["ByteLevel"]:
        return _BYTE_LEVEL if to_letters == 1 and not marks else None
    replaces = [step for step in back if step["type"] not in ("ByteFallback", "Fuse")]
    opposite = bool(back) and replaces == [_MARK_TO_SPACE] * marks and not to_letters
    # Words that are taken as they are might be the names of bytes.
    falls_back = model.get("byte_fallback") and not model.get("ignore_merges")
    if not opposite or not falls_back or any(map(_BYTE.fullmatch, _merged(model))):
        return None
    return _MARKED if marks else _UNMARKED


def _keeps(step: Json) -> bool:
    """Whether a normalizer keeps text as it is, in the form NFC."""
    return step["type"] in ("Prepend", "NFC") or step == _SPACE_TO_MARK


def _only_cuts(step: Json) -> bool:
    """Whether a pre-tokenizer keeps all text, with spaces as they are or as marks."""
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == MARK)
    adds = step.get("add_prefix_space")
    return step["type"] in _CUTS and not adds and step.get("behavior") != "Removed"


def _of_plain(text: str) -> int:
    return len(text.encode())


def _of_letters(token: str) -> int:
    """Return the bytes of a token of a byte-level vocabulary; one that was added is text."""
    return len(token) if _LETTER_SET.issuperset(token) else _of_plain(token)


def _of_marked(text: str) -> int:
    return _of_plain(text.replace(MARK, " "))


def _or_byte(of_text: Rule) -> Rule:
    """Return the bytes of tokens that are text, or the name of one byte."""
    return lambda token: 1 if _BYTE.fullmatch(token) else of_text(token)


_NAMES = frozenset(f"<0x{byte:02X}>" for byte in _OF_UTF8)
_BYTE_LEVEL = _Alphabet(_of_letters, _of_plain, frozenset(LETTERS[byte] for byte in _OF_UTF8))
_MARKED = _Alphabet(_or_byte(_of_marked), _of_marked, _NAMES, marks=True)
_UNMARKED = _Alphabet(_or_byte(_of_plain), _of_plain, _NAMES)


def _steps(content: Json, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of some parts of a tokenizer, of those that are sequences each one."""
    for name in names:
        part = content.get(name) or {}
        inner = next((part[key] for key in _SEQUENCES if key in part), None)
        yield from [part] if inner is None and part else inner or []
