"""A part of a corpus: a few megabytes of text, made into tokens in one process and put into a file.

The file holds what there is to say of the part, as JSON behind its length; then the tokens of each
document, counted; then all tokens. It is named by the part's number and a checksum of its text.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.documents import BadDocumentError, Document, text_of
from flmgrow.trainer.data.indexed import Lengths, token_dtype
from flmgrow.trainer.data.round_trip import missing, named
from flmgrow.trainer.data.tally import Tally
from flmgrow.trainer.data.tokenizer import Tokenizer, Tokens

PARTS = "parts"
PARTS_VERSION = 2
PART_BYTES = 4 << 20
LOST, CHANGED, ENDS = "lost", "changed", "ends inside"

_HEAD = struct.Struct("<q")


class Writable(Protocol):
    """A file that is being written."""

    def write(self, data: bytes) -> None:
        """Append ``data``."""


class PartsFolder(Protocol):
    """Where results go: :class:`flmgrow.storage.output.OutputFolder`, which this floor is below."""

    @property
    def finished(self) -> Mapping[str, Any]:
        """Records of the files that are complete, by name; earlier runs' at first."""

    def file(self, relative: str, size: int) -> AbstractContextManager[Writable]:
        """Give a file of ``size`` bytes to write; after the block it is finished."""

    def add_small(self, relative: str, data: bytes) -> None:
        """Write a small file whole."""

    def finished_path(self, relative: str) -> Path:
        """Return where a finished file lies, to be read again."""

    def drop(self, relative: str) -> None:
        """Remove a finished file, if there is one."""

    def commit(self, last: Mapping[str, bytes]) -> str:
        """Write the files ``last``, let all appear, and return what could not be tidied up."""


@dataclass(frozen=True)
class Recipe:
    """What decides on the tokens, beside the text.

    ``key`` is where JSON lines hold it. ``part_bytes`` changes no token.
    """

    tokenizer: Tokenizer
    key: str = "text"
    append_eod: bool = True
    part_bytes: int = PART_BYTES

    def to_json(self) -> Json:
        """Return it as data: two equal ones make equal tokens."""
        return {
            "tokenizer": self.tokenizer.identity,
            "key": self.key,
            "append_eod": self.append_eod,
            "part_bytes": self.part_bytes,
            "parts_version": PARTS_VERSION,
        }


@dataclass(frozen=True)
class CorpusPart:
    """A part that is on the disk; ``name`` is its file's, ``begin`` where its lengths begin there.

    ``bad`` are documents that are no text, ``missing`` what does not come back from tokens.
    """

    name: str
    begin: int
    documents: int
    empty: int
    tokens: int
    characters: int
    bad: Tally
    missing: Tally

    @property
    def tokens_begin(self) -> int:
        """The byte at which the part's tokens begin in its file."""
        return self.begin + 4 * self.documents


class PartBlocks(NamedTuple):
    """The blocks of a part's file."""

    head: bytes = b""
    lengths: bytes = b""
    tokens: bytes = b""


class Passage(NamedTuple):
    """The documents of a part, which is the corpus' part of that ``number``."""

    number: int
    documents: list[Document]

    @property
    def name(self) -> str:
        """Its file's name: what was made of the same text at the same place lies under it."""
        checksum = xxhash.xxh3_128()
        for document in self.documents:
            checksum.update(f"{document.name}\0{document.source.lines}{document.whole}".encode())
            checksum.update(struct.pack("<q", len(document.data)))
            checksum.update(document.data)
        return f"{PARTS}/{self.number:08}-{checksum.hexdigest()}"


def make_part(recipe: Recipe, text: Passage) -> PartBlocks:
    """Make the tokens of a part."""
    dtype = token_dtype(recipe.tokenizer.vocab_size).newbyteorder("<")
    bad, missing = Tally(), Tally()
    full: list[Tokens] = []
    characters = empty = 0
    for document in text.documents:
        try:
            content, tokens = _tokens_of(document, recipe)
        except BadDocumentError as error:
            bad.add(error.kind, document.name, 1, error.message, error.hint)
            continue
        characters += len(content)
        _compare(document, content, tokens, recipe.tokenizer, missing)
        if not len(tokens):
            empty += 1
        else:
            end = [np.int32(recipe.tokenizer.eod)] if recipe.append_eod else []
            full.append(np.append(tokens, end).astype(np.int32))
    lengths = np.array([len(tokens) for tokens in full], dtype="<i4")
    body = np.concatenate([*full, np.zeros(0, np.int32)]).astype(dtype)
    said = {
        "documents": len(full),
        "empty": empty,
        "tokens": len(body),
        "characters": characters,
        "bad": bad.state(),
        "missing": missing.state(),
    }
    content_of_head = json.dumps(said).encode()
    head = _HEAD.pack(len(content_of_head)) + content_of_head
    return PartBlocks(head, lengths.tobytes(), body.tobytes())


def _tokens_of(document: Document, recipe: Recipe) -> tuple[str, Tokens]:
    """Return a document's text and its tokens, without an end.

    Raises:
        BadDocumentError: It is no document.
    """
    text = text_of(document, recipe.key)
    try:
        return text, recipe.tokenizer.encode(text)
    except UnicodeEncodeError as error:
        message = f"not a text: {error}"
        raise BadDocumentError(document, "half a surrogate", message) from None
    except ValueError as error:
        message = f"the tokenizer cannot encode it: {error}"
        raise BadDocumentError(document, "not encoded", message) from None


def _compare(
    document: Document, text: str, tokens: Tokens, tokenizer: Tokenizer, found: Tally
) -> None:
    """Count what of a text does not come back from its tokens."""
    if not tokenizer.exact:
        lost, changed, first_lost, first_changed = missing(text, tokens, tokenizer)
        for kind, count, first in ((LOST, lost, first_lost), (CHANGED, changed, first_changed)):
            if count:
                message = f"{document.place}: {named(first)} does not come back from the tokenizer"
                found.add(kind, f"{document.name}, {named(first)}", count, message)
    if (tokens == tokenizer.eod).any():
        found.add(ENDS, document.name)


def part_of(name: str, made: PartBlocks) -> CorpusPart:
    """Return the part that ``made`` becomes in the file ``name``."""
    return _part(name, made.head[_HEAD.size :])


def write_part(name: str, made: PartBlocks, place: PartsFolder) -> None:
    """Write a part into a file of its own."""
    with place.file(name, sum(map(len, made))) as file:
        for block in made:
            file.write(block)


def read_part(name: str, place: PartsFolder) -> CorpusPart:
    """Return a part that an earlier run has written."""
    with place.finished_path(name).open("rb") as file:
        (size,) = _HEAD.unpack(file.read(_HEAD.size))
        return _part(name, file.read(size))


def _part(name: str, said: bytes) -> CorpusPart:
    """Return a part by what its file's head says."""
    found = json.loads(said)
    tallies = {key: Tally.restored(found[key]) for key in ("bad", "missing")}
    return CorpusPart(name, _HEAD.size + len(said), **{**found, **tallies})


def lengths_of(parts: Sequence[CorpusPart], place: PartsFolder) -> Iterator[Lengths]:
    """Yield the tokens in each document of ``parts``."""
    for part in parts:
        with place.finished_path(part.name).open("rb") as file:
            file.seek(part.begin)
            yield np.frombuffer(file.read(4 * part.documents), "<i4")
