"""Making tokens of a corpus takes hours on many cores, and must not depend on how many.

The corpus is read once, from front to back, and cut at bounds of documents into parts of a few
megabytes. Processes make tokens of parts (threads would wait for Python's lock at each document);
each part becomes a finished file, named by its number and a checksum of its text. A run that was
killed reads the corpus again, which is quick, and finds the parts it has made; text that changed
meanwhile has another name and is made anew. In the end the parts become ``data.bin`` and
``data.idx``.

Memory holds the text and tokens of ``workers`` + 2 parts, whatever the corpus, and a tokenizer in
each process; on the disk parts and result lie side by side until the end, twice the result's size.
"""

import json
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from flmgrow import __version__
from flmgrow.errors import BadDataError
from flmgrow.trainer.documents import Document, Reading, Source, read_documents, text_of
from flmgrow.trainer.indexed import Lengths, index_bytes, index_size, token_dtype
from flmgrow.trainer.processes import working
from flmgrow.trainer.tokenizers import Tokenizer

MANIFEST = "flmgrow-data.json"
VERSION = 1
PREFIX = "data"
PARTS = "parts"
PART_BYTES = 4 << 20
PART_DOCUMENTS = 1 << 16
PART_HEAD = struct.Struct("<qqq")  # documents, documents without text, tokens

Json = dict[str, Any]


class Writable(Protocol):
    """A file that is being written."""

    def write(self, data: bytes) -> None:
        """Append ``data``."""


class Place(Protocol):
    """Where results go: :class:`flmgrow.surgery.output.OutputFolder`, which this floor is below."""

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

    def commit(self, last: Mapping[str, bytes]) -> None:
        """Write the files ``last``, and let all appear."""


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
        }


@dataclass(frozen=True)
class _Part:
    """A part that is on the disk; ``name`` is its file's."""

    name: str
    documents: int
    empty: int
    tokens: int


class _Made(NamedTuple):
    """The blocks of a part's file."""

    head: bytes = b""
    lengths: bytes = b""
    tokens: bytes = b""


class _Text(NamedTuple):
    number: int
    documents: list[Document]

    @property
    def name(self) -> str:
        """Its file's name: tokens of the same text in the same place lie under it."""
        checksum = xxhash.xxh3_128()
        for document in self.documents:
            checksum.update(struct.pack("<?q", document.source.lines, len(document.data)))
            checksum.update(document.data)
        return f"{PARTS}/{self.number:08}-{checksum.hexdigest()}"


def prepare(
    sources: Sequence[Source],
    recipe: Recipe,
    place: Place,
    workers: int,
    progress: Callable[[int], None],
) -> Json:
    """Write ``data.bin``, ``data.idx`` and the manifest into ``place``, commit, return the latter.

    ``progress`` gets the bytes of sources read since its last call. Raises BadDataError for the
    first document that is wrong, or if there is none; StorageError and what else ``place`` raises.
    """
    if MANIFEST not in place.finished:
        for name in (f"{PREFIX}.bin", f"{PREFIX}.idx"):
            place.drop(name)  # of a killed run; whether the text is still the same is not known
        readings = [Reading() for _ in sources]
        texts = _texts(sources, readings, recipe.part_bytes, progress)
        parts = _make_parts(texts, recipe, place, workers)
        if not any(part.documents for part in parts):
            raise BadDataError(f"{sources[0].path}: no document with text in it or its like")
        _join(parts, recipe, place)
        manifest = _describe(sources, readings, recipe, parts, place)
        place.add_small(MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    found: Json = json.loads(place.finished_path(MANIFEST).read_bytes())
    for name in [name for name in place.finished if name.startswith(f"{PARTS}/")]:
        place.drop(name)
    place.commit({})
    return found


def _texts(
    sources: Sequence[Source],
    readings: Sequence[Reading],
    part_bytes: int,
    progress: Callable[[int], None],
) -> Iterator[_Text | BadDataError]:
    """Cut the corpus into parts, each of whole documents and, but for the last, large enough.

    A source that cannot be read on is the last thing given: parts before it may have errors, too.
    """
    gathered: list[Document] = []
    size = number = 0
    try:
        for source, reading in zip(sources, readings, strict=True):
            for document in read_documents(source, reading, progress):
                gathered.append(document)
                size += len(document.data)
                if size >= part_bytes or len(gathered) >= PART_DOCUMENTS:
                    yield _Text(number, gathered)
                    gathered, size, number = [], 0, number + 1
    except BadDataError as error:
        yield error
        return
    if gathered:
        yield _Text(number, gathered)


def _make_parts(
    texts: Iterator[_Text | BadDataError], recipe: Recipe, place: Place, workers: int
) -> list[_Part]:
    """Make tokens of all parts, a few at a time; of several errors the first in order is raised."""
    parts: list[_Part] = []
    waiting: deque[tuple[str, Callable[[], _Made] | None]] = deque()

    def take() -> None:
        name, made = waiting.popleft()
        parts.append(_write_part(name, made(), place) if made else _read_part(name, place))

    first = list(islice(texts, 2))
    with working(partial(_make, recipe), workers if len(first) > 1 else 1) as make:
        for text in chain(first, texts):
            if isinstance(text, BadDataError):
                waiting.append(("", partial(_fail, text)))
            elif (name := text.name) in place.finished:
                waiting.append((name, None))
            else:
                waiting.append((name, make(text)))
            if len(waiting) > workers + 1:
                take()
        while waiting:
            take()
    return parts


def _make(recipe: Recipe, text: _Text) -> _Made:
    """Make the tokens of a part."""
    dtype = token_dtype(recipe.tokenizer.vocab_size).newbyteorder("<")
    made = [_tokens_of(document, recipe) for document in text.documents]
    full = [tokens for tokens in made if len(tokens)]
    lengths = np.array([len(tokens) for tokens in full], dtype="<i4")
    body = np.concatenate([*full, np.zeros(0, np.int32)]).astype(dtype)
    head = PART_HEAD.pack(len(full), len(made) - len(full), len(body))
    return _Made(head, lengths.tobytes(), body.tobytes())


def _fail(error: BadDataError) -> _Made:
    raise error


def _write_part(name: str, made: _Made, place: Place) -> _Part:
    with place.file(name, sum(map(len, made))) as file:
        for block in made:
            file.write(block)
    return _Part(name, *PART_HEAD.unpack(made.head))


def _read_part(name: str, place: Place) -> _Part:
    with place.finished_path(name).open("rb") as file:
        return _Part(name, *PART_HEAD.unpack(file.read(PART_HEAD.size)))


def _tokens_of(document: Document, recipe: Recipe) -> Any:
    """Return a document's tokens; none, not even an end, if it has no text."""
    text = text_of(document, recipe.key)
    try:
        tokens = recipe.tokenizer.encode(text)
    except ValueError as error:
        raise BadDataError(f"{document.place}: not a text: {error}") from None
    if not len(tokens) or not recipe.append_eod:
        return tokens
    return np.append(tokens, np.int32(recipe.tokenizer.eod))


def _join(parts: Sequence[_Part], recipe: Recipe, place: Place) -> None:
    """Write what the parts hold as one corpus; memory holds one part."""
    dtype = token_dtype(recipe.tokenizer.vocab_size)
    documents = sum(part.documents for part in parts)
    tokens = sum(part.tokens for part in parts)
    with place.file(f"{PREFIX}.bin", tokens * dtype.itemsize) as file:
        for part in parts:
            content = place.finished_path(part.name).read_bytes()
            file.write(content[PART_HEAD.size + 4 * part.documents :])
    with place.file(f"{PREFIX}.idx", index_size(documents)) as file:
        for block in index_bytes(documents, dtype, lambda: _lengths(parts, place)):
            file.write(block)


def _lengths(parts: Sequence[_Part], place: Place) -> Iterator[Lengths]:
    for part in parts:
        with place.finished_path(part.name).open("rb") as file:
            file.seek(PART_HEAD.size)
            yield np.frombuffer(file.read(4 * part.documents), "<i4")


def _describe(
    sources: Sequence[Source],
    readings: Sequence[Reading],
    recipe: Recipe,
    parts: Sequence[_Part],
    place: Place,
) -> Json:
    files = [place.finished[f"{PREFIX}.{ending}"] for ending in ("bin", "idx")]
    return {
        "data_version": VERSION,
        "flmgrow": __version__,
        "tokenizer": recipe.tokenizer.identity,
        "key": recipe.key,
        "append_eod": recipe.append_eod,
        "dtype": token_dtype(recipe.tokenizer.vocab_size).name,
        "documents": sum(part.documents for part in parts),
        "documents_without_text": sum(part.empty for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "sources": [
            {"name": source.name, **asdict(reading)}
            for source, reading in zip(sources, readings, strict=True)
        ],
        "files": [{"path": f.path, "size": f.size, "xxh3_128": f.xxh3_128} for f in files],
    }
