"""Compressed files give their bytes; damaged is told only of what is damaged."""

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer.data.compressed import decompressed, window_of


def zstandard(data: bytes, window: int = 0) -> bytes:
    module: Any = pytest.importorskip("zstandard")
    if not window:
        return bytes(module.ZstdCompressor().compress(data))
    asked = module.ZstdCompressionParameters(window_log=window, enable_ldm=True)
    frame = module.ZstdCompressor(compression_params=asked).compressobj()
    return bytes(frame.compress(data) + frame.flush())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
PACKED = [ending for ending in COMPRESSORS if ending]
DATA = bytes(range(256)) * 1000


def read(data: bytes, ending: str) -> bytes:
    """Read them in pieces, as lines are."""
    stream = decompressed(io.BytesIO(data), ending, Path(f"a{ending}"))  # type: ignore[arg-type]
    return b"".join(iter(lambda: stream.read(7777), b""))


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("data", [b"", b"a", DATA])
def test_bytes_come_back(ending: str, data: bytes) -> None:
    assert read(COMPRESSORS[ending](data), ending) == data


@pytest.mark.parametrize("ending", PACKED)
def test_streams_one_after_the_other_are_one_file(ending: str) -> None:
    packed = COMPRESSORS[ending]
    assert read(packed(b"a") + packed(b"") + packed(DATA), ending) == b"a" + DATA


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_file_that_is_cut_short_is_noticed(ending: str, kept: float) -> None:
    whole = COMPRESSORS[ending](os.urandom(4096) * 30)
    with pytest.raises(BadDataError, match=rf"^a{ending}: damaged or cut short"):
        read(whole[: int(len(whole) * kept)], ending)


@pytest.mark.parametrize("ending", PACKED)
def test_a_file_without_a_byte_is_cut_short(ending: str) -> None:
    with pytest.raises(BadDataError, match=rf"^a{ending}: damaged or cut short"):
        read(b"", ending)
    assert read(COMPRESSORS[ending](b""), ending) == b""


@pytest.mark.parametrize("ending", PACKED)
def test_a_file_that_was_altered_is_noticed(ending: str) -> None:
    whole = bytearray(COMPRESSORS[ending](os.urandom(4096) * 3))
    whole[len(whole) // 2] ^= 0x10
    if ending == ".zst":  # its frames have a checksum where the program was asked for one
        whole[4:12] = bytes(8)
    with pytest.raises(BadDataError, match=rf"^a{ending}: damaged or cut short"):
        read(bytes(whole), ending)


@pytest.mark.parametrize("ending", PACKED)
def test_a_file_that_is_not_compressed_at_all_is_noticed(ending: str) -> None:
    with pytest.raises(BadDataError, match=rf"^a{ending}: damaged or cut short"):
        read(b"plain text, as it is", ending)


@pytest.mark.parametrize("window", [27, 28, 31])
def test_long_windows_are_read_and_known(window: int, tmp_path: Path) -> None:
    """``zstd --long=31``: the library's own limit is 2**27, and calls others damaged."""
    data = zstandard(b"document\n" * 999, window)
    assert read(data, ".zst") == b"document\n" * 999
    (tmp_path / "a.zst").write_bytes(data)
    assert window_of(tmp_path / "a.zst") == 1 << window


def test_a_skippable_frame_is_skipped() -> None:
    """Programs that compress in many threads write the sizes of their frames so."""
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    assert read(skippable + zstandard(b"a") + skippable + zstandard(b"b"), ".zst") == b"ab"


def test_what_is_no_frame_has_no_window(tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(b"x")
    assert window_of(tmp_path / "a.zst") == 0


def test_too_little_memory_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(gzip.GzipFile, "readinto", full)
    with pytest.raises(BadDataError, match=r"^a\.gz: not enough memory"):
        read(gzip.compress(b"a"), ".gz")


def test_an_error_of_the_disk_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error", "a.gz")

    monkeypatch.setattr(gzip.GzipFile, "readinto", broken)
    with pytest.raises(OSError, match="Input/output error"):
        read(gzip.compress(b"a"), ".gz")


@pytest.mark.parametrize(("name", "ending"), [("zstandard", ".zst"), ("bz2", ".bz2")])
def test_a_missing_library_is_named(
    name: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UsageError, match=f"needs the package {name}"):
        read(b"x", ending)
