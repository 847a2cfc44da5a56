"""A corpus comes as text or JSON lines, plain or compressed, and is larger than memory.

:func:`find_sources` says which files a corpus consists of; :func:`read_documents` gives their
documents one after the other, as bytes that are not yet looked into, with the place where each
begins. :func:`text_of` looks into one, so that many threads can do so. What is wrong is said with
its file and line.

A ``.txt`` file is one document: a blank line ends a paragraph, and nothing in plain text tells a
document's end. A ``.jsonl`` file has one JSON object per line, and the text under a key of it.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from flmgrow.errors import BadDataError, UsageError

KINDS = (".txt", ".jsonl")
COMPRESSIONS = ("", ".gz", ".zst")
MAX_DOCUMENT = 256 << 20
BLOCK = 1 << 16


@dataclass(frozen=True)
class Source:
    """A file of a corpus; ``name`` is what it is called where no path of this machine may stand."""

    path: Path
    name: str

    @property
    def lines(self) -> bool:
        """Whether each line is a document."""
        return self.path.name.removesuffix(self.compression).endswith(".jsonl")

    @property
    def compression(self) -> str:
        """The ending that says how the file is compressed, or nothing."""
        return self.path.suffix if self.path.suffix in COMPRESSIONS else ""


class Document(NamedTuple):
    """A document as it lies in its file; ``line`` is 0 where the file is the document."""

    source: Source
    line: int
    data: bytes

    @property
    def place(self) -> str:
        """Where the document begins, as error lines say it."""
        return f"{self.source.path}:{self.line}" if self.line else str(self.source.path)


@dataclass
class Reading:
    """What is known of a source after it was read: its size and checksum (XXH3, 128 bits)."""

    size: int = 0
    xxh3_128: str = ""


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Return the files of ``paths`` in order; of a folder, all below it by name.

    Raises UsageError for a path that is missing or of another kind, or named twice.
    """
    found: list[Source] = []
    for path in paths:
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_source(p)]
            found += [Source(p, f"{path.name}/{p.relative_to(path)}") for p in below]
            if not below:
                raise UsageError(f"{path}: no file in it ends in {_endings()}")
        elif not path.is_file():
            raise UsageError(f"{path}: no such file")
        elif not _is_source(path):
            raise UsageError(f"{path}: unknown kind of file, wanted {_endings()}")
        else:
            found.append(Source(path, path.name))
    real = [source.path.resolve() for source in found]
    for index, path in enumerate(real):
        if path in real[:index]:
            raise UsageError(f"{found[index].path}: named twice", "weights of a blend repeat data")
    return found


def read_documents(
    source: Source, reading: Reading, progress: Callable[[int], None]
) -> Iterator[Document]:
    """Yield the documents of a file, and fill in ``reading`` at its end.

    ``progress`` gets the bytes of the file read since its last call. Lines without a character are
    no documents. Raises BadDataError for a file that is damaged or cut short, or a document above
    ``MAX_DOCUMENT`` bytes; OSError if the file cannot be read.
    """
    with source.path.open("rb", buffering=0) as file:
        raw = _Watched(file, progress)
        stream = io.BufferedReader(_DECOMPRESSORS[source.compression](raw, source), BLOCK)
        number = 0
        try:
            while data := _next(stream, source.lines):
                number += 1
                document = Document(source, number if source.lines else 0, data)
                if len(data) > MAX_DOCUMENT:
                    hint = "" if source.lines else "put its documents into a .jsonl file"
                    raise BadDataError(
                        f"{document.place}: more than {MAX_DOCUMENT} bytes in one document", hint
                    )
                if not source.lines or data.strip():
                    yield document
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadDataError(f"{source.path}: damaged or cut short: {error}") from None
        reading.size, reading.xxh3_128 = raw.size, raw.checksum.hexdigest()


def text_of(document: Document, key: str) -> str:
    """Return a document's text, of a JSON line what is under ``key``. Raises BadDataError."""
    try:
        text = document.data.decode()
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{document.place}: byte {error.start} is not UTF-8 ({document.data[error.start]:#04x})"
        ) from None
    return field_of(document, text, key, str) if document.source.lines else text


def field_of(document: Document, line: str, key: str, kind: type[Any]) -> Any:
    """Return what a JSON line has under ``key``, which must be a ``kind``. Raises BadDataError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{document.place}: not JSON: {error}") from None
    if not isinstance(value, dict) or key not in value:
        found = f"has {', '.join(map(str, value))}" if isinstance(value, dict) else "no object"
        raise BadDataError(f"{document.place}: {found[:200]}, wanted the key {key!r}")
    if not isinstance(value[key], kind):
        found = type(value[key]).__name__
        raise BadDataError(f"{document.place}: {key!r} is of type {found}, wanted {kind.__name__}")
    return value[key]


def _is_source(path: Path) -> bool:
    return path.name.removesuffix(Source(path, "").compression).endswith(KINDS)


def _endings() -> str:
    return f"{' or '.join(KINDS)}, plain or with {' or '.join(filter(None, COMPRESSIONS))}"


def _next(stream: io.BufferedReader, lines: bool) -> bytes:
    return stream.readline(MAX_DOCUMENT + 1) if lines else stream.read(MAX_DOCUMENT + 1)


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


class _Zstandard(io.RawIOBase):
    """A file of zstandard frames; unlike the library's own, it notices one that is cut short."""

    def __init__(self, raw: io.RawIOBase, source: Source) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError(
                f"{source.path}: needs the package zstandard", "pip install 'flmgrow[train]'"
            ) from None
        self._raw = raw
        self._new: Callable[[], Any] = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._input or self._raw.read(BLOCK) or b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._output = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise EOFError(str(error)) from None
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(self._output), len(buffer))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


_DECOMPRESSORS: dict[str, Callable[[_Watched, Source], Any]] = {
    "": lambda raw, _: raw,
    ".gz": lambda raw, _: gzip.GzipFile(fileobj=io.BufferedReader(raw, BLOCK), mode="rb"),
    ".zst": _Zstandard,
}
