"""Reading the documents of text and JSON lines files, plain or compressed.

A corpus is larger than memory. :func:`read_documents` gives the documents of a file one after the
other, as bytes that are not yet looked into, with the place where each begins. :func:`text_of`
looks into one, so that many processes can do so. What is wrong with one is a
:class:`BadDocumentError`: it has a place, and a kind, by which such documents can be counted.

A ``.txt`` file is one document: a blank line ends a paragraph, and nothing in plain text tells a
document's end. A file of JSON lines has one object per line, and the text under a key of it; so has
a table in each of its rows. A byte order mark (U+FEFF) at the start of either is no text, and left
out.
"""

import io
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from flmgrow.errors import BadDataError
from flmgrow.storage.checksums import checksum_of
from flmgrow.storage.encodings import encoding_hint
from flmgrow.text import Found, Text, Wanted
from flmgrow.trainer.data.compressed import decompressed
from flmgrow.trainer.data.sources import TextSource
from flmgrow.trainer.data.table_rows import read_rows

MAX_DOCUMENT = 256 << 20
_MISSING = object()
_WANTED = {str: "a text", bool: "true or false"}


class Document(NamedTuple):
    """A document as it lies in its file; ``line`` is 0 where the file is the document.

    ``whole`` is False where it is longer than ``MAX_DOCUMENT`` and the rest was passed over.
    """

    source: TextSource
    line: int
    data: bytes
    whole: bool = True

    @property
    def place(self) -> str:
        """Where the document begins, as error lines say it."""
        return f"{self.source.path}:{self.line}" if self.line else str(self.source.path)

    @property
    def name(self) -> str:
        """The place of the document without a path of this machine."""
        return f"{self.source.name}:{self.line}" if self.line else self.source.name


class BadDocumentError(BadDataError):
    """A document that is no text; ``kind`` says in a few words what is wrong with it."""

    def __init__(self, document: Document, kind: str, message: str, hint: str = "") -> None:
        self.kind = kind
        super().__init__(message, hint, document.place)


@dataclass
class SourceReading:
    """What is known of a source after it was read: its size and checksum (XXH3, 128 bits)."""

    size: int = 0
    xxh3_128: str = ""


def read_documents(
    source: TextSource,
    reading: SourceReading,
    progress: Callable[[int], None],
    key: str = "text",
) -> Iterator[Document]:
    """Yield the documents of a file, and fill in ``reading`` at its end.

    ``progress`` gets the bytes of the file read since its last call. Lines without a character are
    no documents. Of a table only the column with ``key`` is read.

    Raises:
        BadDataError: For a file that is damaged or cut short.
        OSError: If the file cannot be read.
        StorageError: If a table cannot be read once more, for its checksum.
    """
    if source.is_table:
        for number, row in enumerate(read_rows(source.path, key, progress), 1):
            yield Document(source, number, row, len(row) <= MAX_DOCUMENT)
        reading.size = source.path.stat().st_size
        reading.xxh3_128 = checksum_of(source.path, cached=True)
        return
    with source.path.open("rb", buffering=0) as file:
        raw = _Watched(file, progress)
        stream = decompressed(raw, source.compression, source.path)
        number = 0
        while data := _next(stream, source.lines):
            number += 1
            whole = len(data) <= MAX_DOCUMENT
            if not whole:
                _pass_over(stream, source.lines, data)
                data = b""
            text = data.removeprefix(BOM_UTF8) if number == 1 else data
            if not whole or (text.strip() if source.lines else text):
                yield Document(source, number if source.lines else 0, text, whole)
        reading.size, reading.xxh3_128 = raw.size, raw.checksum.hexdigest()


def text_of(document: Document, key: str) -> str:
    """Return a document's text, of a JSON line what is under ``key``.

    Raises:
        BadDocumentError: It is no document.
    """
    if not document.whole:
        hint = "" if document.source.lines else "put its documents into a .jsonl file"
        message = f"more than {MAX_DOCUMENT} bytes in one document"
        raise BadDocumentError(document, "too long", message, hint)
    try:
        text = document.data.decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8 ({document.data[error.start]:#04x})"
        hint = encoding_hint(document.data)
        raise BadDocumentError(document, "not UTF-8", found, hint) from None
    return field_of(document, text, key, str) if document.source.lines else text


def field_of(document: Document, line: str, key: str, kind: type[str] | type[bool]) -> Any:
    """Return what a JSON line has under ``key``, which must be of a ``kind``.

    ``meta.text`` is the key ``text`` of the object under ``meta``, unless a key is called so.

    Raises:
        BadDocumentError: It is no document.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = _is_cut(line, error)
        hint = "wanted one JSON object on each line" if document.line == 1 else ""
        raise BadDocumentError(
            document,
            "cut line" if cut else "not JSON",
            f"not JSON{', cut short' if cut else ''}: {error}",
            hint,
        ) from None
    if not isinstance(value, dict):
        what = Text(Found("no object"), Wanted(f"the key {key!r}"))
        raise BadDocumentError(document, "no object", what)
    inner = _under(value, key)
    if inner is _MISSING:
        found = f"has {', '.join(map(str, value))}"[:200]
        what = Text(Found(found), Wanted(f"the key {key!r}"))
        raise BadDocumentError(document, f"no {key!r}", what)
    if not isinstance(inner, kind):
        found = "null" if inner is None else f"of type {type(inner).__name__}"
        what = Text(f"{key!r} is ", Found(found))
        raise BadDocumentError(document, what, Text(what, Wanted(_WANTED[kind])))
    return inner


def _under(value: dict[str, Any], key: str) -> object:
    """Return what an object has under ``key``, or under the path of keys that its dots make."""
    if key in value:
        return value[key]
    first, dot, rest = key.partition(".")
    inner = value.get(first, _MISSING)
    return _under(inner, rest) if dot and isinstance(inner, dict) else _MISSING


def _is_cut(line: str, error: Exception) -> bool:
    """Whether a line that is no JSON would be the beginning of some."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(line.rstrip())


def _next(stream: io.BufferedReader, lines: bool) -> bytes:
    return stream.readline(MAX_DOCUMENT + 1) if lines else stream.read(MAX_DOCUMENT + 1)


def _pass_over(stream: io.BufferedReader, lines: bool, data: bytes) -> None:
    """Read what is left of a document that begins with ``data``."""
    while data and not (lines and data.endswith(b"\n")):
        data = _next(stream, lines)


class _Watched(io.RawIOBase):
    """A file that counts and sums what is read of it."""

    def __init__(self, file: io.FileIO, progress: Callable[[int], None]) -> None:
        self.size = 0
        self.checksum = xxhash.xxh3_128()
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.checksum.update(memoryview(buffer)[:count])
        self.size += count
        self._progress(count)
        return count
