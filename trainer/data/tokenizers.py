"""Opening tokenizers by the names that people give them.

There are three kinds, named as on the command line:

* ``bytes``: UTF-8 as it is, 256 tokens and one for the end of a document;
* ``tiktoken:NAME``, or a file of ranks (``*.tiktoken``), which is cut as cl100k_base is;
* a ``tokenizer.json`` of Hugging Face, or a folder that holds one.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.text import Text
from flmgrow.trainer.data.huggingface_tokenizer import HuggingFaceTokenizer
from flmgrow.trainer.data.tiktoken_tokenizer import (
    CL100K,
    TiktokenTokenizer,
    encoding_of,
    named_encoding,
)
from flmgrow.trainer.data.tokenizer import (
    KINDS,
    SETTING,
    ByteLengths,
    Described,
    Tokenizer,
    Tokens,
    chosen_end,
)


class ByteTokenizer(Described):
    """UTF-8 bytes, and one more token for the end of a document."""

    def __init__(self, eod: str | None = None) -> None:
        super().__init__("bytes", 257, chosen_end(eod, {}, 256, 257))

    @property
    def byte_lengths(self) -> ByteLengths:
        """One for each byte; the end of a document is no text."""
        return ByteLengths(np.array([1] * 256 + [0], np.int64))

    def encode(self, text: str) -> Tokens:
        """Return the bytes of ``text`` in UTF-8."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; the end of a document is left out."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


def open_tokenizer(name: str, eod: str | None = None) -> Tokenizer:
    """Return the tokenizer that ``name`` means (see the module), with its ``eod`` if given.

    ``eod`` is an id, or for a tokenizer.json the name of a token.

    Raises:
        UsageError: For a name that means none or a library that is missing.
        BadDataError: For a damaged file.
    """
    if name == "bytes":
        return ByteTokenizer(eod)
    if (inside := Path(name) / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(inside, eod)
    kind, _, rest = name.partition(":")
    if kind == "tiktoken" and not rest.endswith(".tiktoken"):
        return TiktokenTokenizer(named_encoding(rest), rest, eod)
    if name.endswith(".tiktoken"):
        path = Path(rest if kind == "tiktoken" else name)
        return TiktokenTokenizer(encoding_of(path), CL100K, eod)
    if name.endswith(".json"):
        return HuggingFaceTokenizer(Path(name), eod)
    raise UsageError(Text(SETTING, f" {name}: unknown"), f"one of {KINDS}")
