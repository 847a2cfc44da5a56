"""Opening tokenizers of several kinds, and telling one from another.

Text becomes numbers in many ways, and data made in one way is noise to a model of another.

A tokenizer here is a small object that encodes, decodes, and says what it is: ``identity`` holds a
digest of the vocabulary itself, so two files of one vocabulary are one tokenizer, and data made
with another is refused. There are three kinds, named as on the command line:

* ``bytes``: UTF-8 as it is, 256 tokens and one for the end of a document;
* ``tiktoken:NAME``, or a file of ranks (``*.tiktoken``), which is cut as cl100k_base is;
* a ``tokenizer.json`` of Hugging Face, or a folder that holds one.

The end of a document must be a token that no text contains. tiktoken's ``<|endoftext|>`` has an id
above the 100,256 ranks of cl100k_base, thus no row in a vocabulary of that size. But byte-level
vocabularies have a token for every single byte, and byte 0xFF occurs in no UTF-8: that token (187
in cl100k_base) is inside the vocabulary, is never produced by text, and ends documents here.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flmgrow.errors import BadDataError, UsageError
from flmgrow.formats.tokenizer.identity import digest_of_ranks, digest_of_tokenizer
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.data.tokenizer_json import unknown_id, with_way_back

Tokens = npt.NDArray[np.int32]
Identity = dict[str, object]

_SETTING = Setting("tokenizer")
CL100K = "cl100k_base"
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IN_NO_TEXT = b"\xff"
PADDED_TO = 128
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
KINDS = "bytes, tiktoken:cl100k_base, FILE.tiktoken or a tokenizer.json"
INSTALL = "pip install 'flmgrow[train]'"


class Tokenizer(Protocol):
    """What the data side asks of a tokenizer; megatron-core's datasets ask for no more."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, the end of a document among them."""

    @property
    def eod(self) -> int:
        """The token that ends documents."""

    @property
    def identity(self) -> Identity:
        """What it is, as JSON; equal for equal tokenizers, wherever their files lie."""

    @property
    def earlier(self) -> Identity:
        """The identity that earlier versions gave it: corpora and checkpoints of theirs have it."""

    @property
    def unique_identifiers(self) -> Identity:
        """The same, under the name that megatron-core asks for."""

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``, none added.

        Raises ValueError for half a surrogate, and for what the tokenizer has no way to say.
        """

    @property
    def exact(self) -> bool:
        """Whether every text comes back from its tokens, whatever it is."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ``tokens``, of those for unknown characters nothing.

        What is no UTF-8 becomes U+FFFD.
        """


class _Described:
    """What all kinds have in common: an end of documents, and a description."""

    exact = True

    def __init__(
        self, kind: str, vocab_size: int, eod: int, digest: str = "", earlier: str = ""
    ) -> None:
        self.vocab_size = vocab_size
        self.eod = eod
        self.identity: Identity = {"kind": kind, "vocab_size": vocab_size, "eod": eod}
        if digest:
            self.identity["sha256"] = digest
        self.earlier: Identity = {**self.identity, **({"sha256": earlier} if earlier else {})}

    @property
    def unique_identifiers(self) -> Identity:
        """Under this name megatron-core looks for what tells two datasets apart."""
        return self.identity


class ByteTokenizer(_Described):
    """UTF-8 bytes, and one more token for the end of a document."""

    def __init__(self, eod: str | None = None) -> None:
        super().__init__("bytes", 257, _chosen(eod, {}, 256, 257))

    def encode(self, text: str) -> Tokens:
        """Return the bytes of ``text`` in UTF-8."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; the end of a document is left out."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class TiktokenTokenizer(_Described):
    """The ranks of a tiktoken vocabulary, without its special tokens.

    ``encoding`` is tiktoken's. The rank of byte 0xFF ends documents unless ``eod`` says otherwise.
    """

    def __init__(self, encoding: Any, pattern: str, eod: str | None = None) -> None:
        ranks = {token: encoding.encode_single_token(token) for token in _token_bytes(encoding)}
        size = max(ranks.values()) + 1
        # An id among the rows that pad the vocabulary may be wanted, and makes it larger.
        padded = -(-size // PADDED_TO) * PADDED_TO
        end = _chosen(eod, {}, ranks.get(IN_NO_TEXT), padded)
        digest = digest_of_ranks(ranks.items())
        super().__init__(f"tiktoken:{pattern}", max(size, end + 1), end, digest)
        self._encoding = encoding
        self._size = size

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``; the names of special tokens are text like any other."""
        tokens: Tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        return tokens.astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; ends of documents are left out."""
        kept = [t for t in map(int, tokens) if t != self.eod and t < self._size]
        return str(self._encoding.decode(kept))


class HuggingFaceTokenizer(_Described):
    """A ``tokenizer.json``; its own template of special tokens is not applied."""

    exact = False

    def __init__(self, path: Path, eod: str | None = None) -> None:
        content = _read(path)
        library = _library("tokenizers")
        try:
            digest, parsed = digest_of_tokenizer(content), json.loads(content)
            self._tokenizer: Any = library.Tokenizer.from_str(json.dumps(with_way_back(parsed)))
        except Exception as error:  # the library raises Exception itself
            raise BadDataError(f"not a tokenizer.json: {error}", where=path) from None
        self._unknown = unknown_id(parsed)
        _settle(self._tokenizer)
        names = self._tokenizer.get_vocab()
        size = max(names.values(), default=-1) + 1
        usual = next((names[name] for name in END_NAMES if name in names), None)
        end = _chosen(eod, names, usual, size)
        bytes_of_file = hashlib.sha256(content).hexdigest()
        super().__init__("huggingface", size, end, digest, bytes_of_file)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy in another process, where the library has forgotten its settings."""
        self.__dict__.update(state)
        _settle(self._tokenizer)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``, without those its template would add."""
        text.encode()  # the library would replace half a surrogate, silently
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # words without a token, and none for unknown ones
            raise ValueError(str(error)) from None
        return np.array(found.ids, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; the end of a document and unknown tokens are left out."""
        without = (self.eod, self._unknown)
        kept = [token for token in map(int, tokens) if token not in without]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))


def open_tokenizer(name: str, eod: str | None = None) -> Tokenizer:
    """Return the tokenizer that ``name`` means (see the module), with its ``eod`` if given.

    ``eod`` is an id, or for a tokenizer.json the name of a token. Raises UsageError for a name that
    means none or a library that is missing, BadDataError for a damaged file.
    """
    if name == "bytes":
        return ByteTokenizer(eod)
    if (inside := Path(name) / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(inside, eod)
    kind, _, rest = name.partition(":")
    if kind == "tiktoken" and not rest.endswith(".tiktoken"):
        return TiktokenTokenizer(_named_encoding(rest), rest, eod)
    if name.endswith(".tiktoken"):
        path = Path(rest if kind == "tiktoken" else name)
        return TiktokenTokenizer(_encoding_of(path), CL100K, eod)
    if name.endswith(".json"):
        return HuggingFaceTokenizer(Path(name), eod)
    raise UsageError(Text(_SETTING, f" {name}: unknown"), f"one of {KINDS}")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the ranks in a ``.tiktoken`` file: the bytes of a token in base64, and its id.

    Raises BadDataError, with the line, for a file that does not hold every id from 0 once.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
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


def _encoding_of(path: Path) -> Any:
    ranks = read_ranks(path)
    # Not tiktoken's own loader: it would copy the file to a cache and never read it again.
    return _library("tiktoken").Encoding(
        path.stem, pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


def _named_encoding(name: str) -> Any:
    library = _library("tiktoken")
    try:
        return library.get_encoding(name)
    except OSError as error:  # what requests raises is one, too
        given = Setting(_SETTING.name, f"{name}.tiktoken")
        file = Text(", or give the file: ", given) if name == CL100K else ""
        raise UsageError(
            Text(
                _SETTING,
                f" tiktoken:{name}: could not fetch its ranks: {type(error).__name__}",
            ),
            Text("set TIKTOKEN_CACHE_DIR to a folder where tiktoken has fetched it", file),
        ) from None
    except ValueError as error:
        known = ", ".join(library.list_encoding_names())
        first = str(error).splitlines()[0]
        found = Text(_SETTING, f" tiktoken:{name}: {first}")
        raise UsageError(found, f"one of {known}") from None


def _settle(tokenizer: Any) -> None:
    """Let a library's tokenizer do nothing but encode: the same tokens for a text, and all."""
    tokenizer.encode_special_tokens = True  # as text: no text shall end a document
    tokenizer.no_truncation()  # a file may ask for it, and texts would lose their ends
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None  # leaves out merges by chance: meant for training it


def _token_bytes(encoding: Any) -> Sequence[bytes]:
    tokens: Callable[[], list[bytes]] = encoding.token_byte_values
    return tokens()


def _chosen(wanted: str | None, names: dict[str, int], usual: int | None, size: int) -> int:
    """Return the id that ends documents: what is ``wanted`` (a name or an id), or the usual."""
    if wanted is None:
        if usual is None:
            raise UsageError(
                "the tokenizer names no end of document that flmgrow knows",
                Text("choose one by ", Setting("eod")),
            )
        return usual
    if wanted in names:
        return names[wanted]
    if wanted.isdecimal() and int(wanted) < size:
        return int(wanted)
    found = Text(Setting("eod"), f" {wanted}: no such token")
    raise UsageError(found, f"a token's name, or an id below {size}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = Text(_SETTING, f" {path}: {error.strerror}")
        raise UsageError(found, f"one of {KINDS}") from None


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(Text(_SETTING, f": needs the package {name}"), INSTALL) from None
