"""Tokenizers of tiktoken: a vocabulary that it knows by name, or a file of ranks.

The end of a document must be a token that no text contains. tiktoken's ``<|endoftext|>`` has an id
above the 100,256 ranks of cl100k_base, thus no row in a vocabulary of that size. But byte-level
vocabularies have a token for every single byte, and byte 0xFF occurs in no UTF-8: that token (187
in cl100k_base) is inside the vocabulary, is never produced by text, and ends documents here.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flmgrow.errors import BadDataError, UsageError
from flmgrow.formats.tokenizer.identity import digest_of_ranks
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.data.tokenizer import (
    SETTING,
    ByteLengths,
    Described,
    Tokens,
    chosen_end,
    import_library,
    read_file,
)

CL100K = "cl100k_base"
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IN_NO_TEXT = b"\xff"
PADDED_TO = 128


class TiktokenTokenizer(Described):
    """The ranks of a tiktoken vocabulary, without its special tokens.

    ``encoding`` is tiktoken's. The rank of byte 0xFF ends documents unless ``eod`` says otherwise.
    """

    def __init__(self, encoding: Any, pattern: str, eod: str | None = None) -> None:
        ranks = {token: encoding.encode_single_token(token) for token in _token_bytes(encoding)}
        size = max(ranks.values()) + 1
        # An id among the rows that pad the vocabulary may be wanted, and makes it larger.
        padded = -(-size // PADDED_TO) * PADDED_TO
        end = chosen_end(eod, {}, ranks.get(IN_NO_TEXT), padded)
        digest = digest_of_ranks(ranks.items())
        super().__init__(f"tiktoken:{pattern}", max(size, end + 1), end, digest)
        self._encoding = encoding
        self._size = size

    @property
    def byte_lengths(self) -> ByteLengths:
        """The bytes of each rank; what ends documents, and ids without a rank, are no text."""
        lengths = np.zeros(self.vocab_size, np.int64)
        for token in _token_bytes(self._encoding):
            lengths[self._encoding.encode_single_token(token)] = len(token)
        lengths[self.eod] = 0
        return ByteLengths(lengths)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``; the names of special tokens are text like any other."""
        tokens: Tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        return tokens.astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; ends of documents are left out."""
        kept = [t for t in map(int, tokens) if t != self.eod and t < self._size]
        return str(self._encoding.decode(kept))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the ranks in a ``.tiktoken`` file: the bytes of a token in base64, and its id.

    Raises:
        BadDataError: For a file that does not hold every id from 0 once; the message has the line.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_file(path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise BadDataError(f"{path}:{number}: wanted a token in base64 and its rank") from None
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise BadDataError(
            Text("has ", Found(len(ranks)), " tokens"), where=path, wanted="every rank from 0 once"
        )
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadDataError(
            Text(Found(f"no token for byte {missing[0]:#04x}")), where=path, wanted="all 256"
        )
    return ranks


def encoding_of(path: Path) -> Any:
    """Return tiktoken's encoding of a file of ranks.

    Raises:
        FlmgrowError: As :func:`read_ranks` does.
    """
    ranks = read_ranks(path)
    # Not tiktoken's own loader: it would copy the file to a cache and never read it again.
    return import_library("tiktoken").Encoding(
        path.stem, pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


def named_encoding(name: str) -> Any:
    """Return the encoding that tiktoken knows by ``name``.

    Raises:
        UsageError: For a name that it does not know, and for ranks that cannot be fetched.
    """
    library = import_library("tiktoken")
    try:
        return library.get_encoding(name)
    except OSError as error:  # what requests raises is one, too
        given = Setting(SETTING.name, f"{name}.tiktoken")
        file = Text(", or give the file: ", given) if name == CL100K else ""
        raise UsageError(
            Text(
                SETTING,
                f" tiktoken:{name}: could not fetch its ranks: {type(error).__name__}",
            ),
            Text("set TIKTOKEN_CACHE_DIR to a folder where tiktoken has fetched it", file),
        ) from None
    except ValueError as error:
        known = ", ".join(library.list_encoding_names())
        first = str(error).splitlines()[0]
        found = Text(SETTING, f" tiktoken:{name}: {first}")
        raise UsageError(found, f"one of {known}") from None


def _token_bytes(encoding: Any) -> Sequence[bytes]:
    tokens: Callable[[], list[bytes]] = encoding.token_byte_values
    return tokens()
