"""Compressed text as a stream of bytes, and whatever is wrong with one told in the same way.

Each kind of compression has a decoder that notices a file cut short. Memory is a few hundred
kilobytes, but for what the file itself asks: a zstandard frame may look back over a window of up to
2 GiB (``zstd --long=31``, ``--ultra -22``), which the decoder then holds (:func:`window_of`).
"""

import importlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from flmgrow.errors import BadDataError, UsageError

BLOCK = 1 << 16
LARGEST_WINDOW = 1 << 31
USUAL_WINDOW = 1 << 27
"""What zstd's own decoder takes unasked."""

_FRAME_HEADER = 18
_DAMAGED = (EOFError, zlib.error)


def decompressed(raw: io.RawIOBase, compression: str, path: Path) -> io.BufferedReader:
    """Return the bytes in ``raw``, the file at ``path`` compressed in the way of its ending.

    The stream raises BadDataError for a file that is damaged or cut short.

    Raises:
        UsageError: Where the library of that compression is missing.
    """
    stream = _DECODERS[compression](_Begun(raw), path) if compression else raw
    return io.BufferedReader(_Telling(stream, path), BLOCK)


def window_of(path: Path) -> int:
    """Return the bytes that the first frame of a ``.zst`` file wants kept; 0 for no frame."""
    zstandard = _library("zstandard", path)
    with path.open("rb") as file:
        header = file.read(_FRAME_HEADER)
    try:
        return int(zstandard.get_frame_parameters(header).window_size)
    except zstandard.ZstdError:
        return 0


class _Telling(io.RawIOBase):
    """A stream whose errors name their file."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer) or 0)
        except _DAMAGED as error:
            self._refuse(error)
        except OSError as error:  # what gzip and bz2 raise has no number, the system's has
            if error.errno is not None:
                raise
            self._refuse(error)
        except MemoryError:
            raise BadDataError(
                "not enough memory to decompress it",
                "a .zst of a long window needs up to 2 GiB: compress it anew without --long",
                where=self._path,
            ) from None

    def _refuse(self, error: Exception) -> NoReturn:
        raise BadDataError(f"damaged or cut short: {error}", where=self._path) from None


class _Begun(io.RawIOBase):
    """A compressed file that has at least one byte, as what is nothing has when it is compressed.

    Some decoders take no bytes at all for no text: a download that never began would be empty.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._raw.readinto(buffer) or 0)
        if not count and not self._begun:
            raise EOFError("there is not a byte in it")
        self._begun = True
        return count


class _Zstandard(io.RawIOBase):
    """A file of zstandard frames; unlike the library's own, it notices one that is cut short."""

    def __init__(self, raw: io.RawIOBase, path: Path) -> None:
        zstandard = _library("zstandard", path)
        decoder = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._raw = raw
        self._new: Callable[[], Any] = decoder.decompressobj
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


class _Xz(io.RawIOBase):
    """A file of xz streams; the module's own error is told as that of any damage."""

    def __init__(self, raw: io.RawIOBase, path: Path) -> None:
        lzma = _library("lzma", path)
        self._stream = lzma.LZMAFile(io.BufferedReader(raw, BLOCK))
        self._error = lzma.LZMAError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._error as error:
            raise EOFError(str(error)) from None


def _gzip(raw: io.RawIOBase, path: Path) -> Any:
    return _library("gzip", path).GzipFile(fileobj=io.BufferedReader(raw, BLOCK), mode="rb")


def _bzip2(raw: io.RawIOBase, path: Path) -> Any:
    return _library("bz2", path).BZ2File(io.BufferedReader(raw, BLOCK))


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = "pip install 'flmgrow[train]'" if name == "zstandard" else f"a Python with {name}"
        raise UsageError(f"needs the package {name}", hint, where=path) from None


_DECODERS: dict[str, Callable[[io.RawIOBase, Path], Any]] = {
    ".gz": _gzip,
    ".zst": _Zstandard,
    ".xz": _Xz,
    ".bz2": _bzip2,
}
