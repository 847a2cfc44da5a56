"""Tokenizers of Hugging Face: a ``tokenizer.json``, read by the library tokenizers.

Such a file may ask for more than tokens: templates, truncation, padding, chance. Here it does
nothing but encode, so that a text always has the same tokens, and all of them.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flmgrow.errors import BadDataError
from flmgrow.formats.tokenizer.identity import digest_of_tokenizer
from flmgrow.trainer.data.byte_lengths import lengths_of
from flmgrow.trainer.data.tokenizer import (
    ByteLengths,
    Described,
    Tokens,
    chosen_end,
    import_library,
    read_file,
)
from flmgrow.trainer.data.tokenizer_json import unknown_id, with_way_back

END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")


class HuggingFaceTokenizer(Described):
    """A ``tokenizer.json``; its own template of special tokens is not applied."""

    exact = False

    def __init__(self, path: Path, eod: str | None = None) -> None:
        content = read_file(path)
        library = import_library("tokenizers")
        try:
            digest, parsed = digest_of_tokenizer(content), json.loads(content)
            both_ways = with_way_back(parsed)
            self._tokenizer: Any = library.Tokenizer.from_str(json.dumps(both_ways))
        except Exception as error:  # the library raises Exception itself
            raise BadDataError(f"not a tokenizer.json: {error}", where=path) from None
        self._content = both_ways
        self._unknown = unknown_id(parsed)
        _settle(self._tokenizer)
        names = self._tokenizer.get_vocab()
        size = max(names.values(), default=-1) + 1
        usual = next((names[name] for name in END_NAMES if name in names), None)
        end = chosen_end(eod, names, usual, size)
        bytes_of_file = hashlib.sha256(content).hexdigest()
        super().__init__("huggingface", size, end, digest, bytes_of_file)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy in another process, where the library has forgotten its settings."""
        self.__dict__.update(state)
        _settle(self._tokenizer)

    @property
    def byte_lengths(self) -> ByteLengths | None:
        """The bytes of each token's text, where its vocabulary says them."""
        names = self._tokenizer.get_vocab()
        size, end, unknown = self.vocab_size, self.eod, self._unknown
        return lengths_of(self._content, names, size, end, unknown, self._ids_of)

    def _ids_of(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``, without those its template would add."""
        text.encode()  # the library would replace half a surrogate, silently
        try:
            found = self._ids_of(text)
        except Exception as error:  # words without a token, and none for unknown ones
            raise ValueError(str(error)) from None
        return np.array(found, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; the end of a document and unknown tokens are left out."""
        without = (self.eod, self._unknown)
        kept = [token for token in map(int, tokens) if token not in without]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))


def _settle(tokenizer: Any) -> None:
    """Let a library's tokenizer do nothing but encode: the same tokens for a text, and all."""
    tokenizer.encode_special_tokens = True  # as text: no text shall end a document
    tokenizer.no_truncation()  # a file may ask for it, and texts would lose their ends
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None  # leaves out merges by chance: meant for training it
