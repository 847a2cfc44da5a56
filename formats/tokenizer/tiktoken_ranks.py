"""A tiktoken ranks file as the ``tokenizer.json`` of a byte-level BPE tokenizer with the same ids.

tiktoken merges, of all neighbours whose bytes together are a token, those with the lowest rank. A
list of merges says the same if it has, for every token in the order of ranks, each way of cutting
the token into two others. Nothing but the ranks is in such a file: text is cut into words as
cl100k_base has it, and there are no special tokens.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from flmgrow.errors import BadCheckpointError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""cl100k_base's words, in the form that the engine of ``tokenizers`` reads rightly, too."""

TokenRanks = Mapping[bytes, int]


def _letters() -> Mapping[int, str]:
    """Return the letter that stands for each byte: itself if it shows, else one from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    own = {byte: chr(byte) for byte in shown}
    return own | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


LETTERS = _letters()
"""The letter that stands for each byte in the vocabularies of byte-level tokenizers."""


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """Return the rank, which is the id, of every token; ``where`` names the file in messages.

    Raises:
        BadCheckpointError: For anything but lines of a token in base64 and its rank, for ranks
            other than 0, 1, 2 ..., and for a byte that is no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        encoded, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            token = b""
        if not token or token in ranks or rank != b"%d" % number:
            raise BadCheckpointError(
                f"line {number + 1}: wanted a token in base64 that is not there yet, and {number}",
                "give a ranks file of tiktoken's, such as cl100k_base.tiktoken",
                where=where,
            )
        ranks[token] = number
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadCheckpointError(
            f"{len(missing)} of the 256 single bytes are no tokens",
            "give a ranks file of tiktoken's, such as cl100k_base.tiktoken",
            where=where,
        )
    return ranks


def _text(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def _merges(ranks: TokenRanks) -> Iterator[str]:
    for token in ranks:
        cuts = ((token[:place], token[place:]) for place in range(1, len(token)))
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        for left, right in sorted(known, key=lambda cut: (ranks[cut[0]], ranks[cut[1]])):
            yield f"{_text(left)} {_text(right)}"


def _special(text: str, number: int) -> dict[str, object]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **plain, "special": True}


def as_tokenizer(ranks: TokenRanks, special: Mapping[str, int] = MappingProxyType({})) -> bytes:
    """Return the ``tokenizer.json`` that gives the same ids as tiktoken with ``ranks``.

    ``special`` are tokens that stand for themselves in any text, with their ids.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    words = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    content: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(text, number) for text, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [words, {**level, "use_regex": False}],
        },
        "post_processor": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as tiktoken does: a word that is a token needs no merges
            "vocab": {_text(token): rank for token, rank in ranks.items()},
            "merges": list(_merges(ranks)),
        },
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
