"""What the disk gives back is held against what was written, while the file is being written."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import StorageError
from flmgrow.storage import checksums, read_back
from flmgrow.storage.durable import new_file
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.read_back import ReadBackFile

PLAN = {"source": "d41d"}
DATA = os.urandom(100_000)


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "WINDOW", 10_000)


def write(folder: OutputFolder, name: str) -> None:
    with folder.file(name, len(DATA)) as file:
        for start in range(0, len(DATA), 7_000):
            file.write(DATA[start : start + 7_000])


class BadDisk:
    """Has another bit at ``place`` of ``part`` once it was flushed, and says nothing."""

    def __init__(self, part: Path, place: int, patch: pytest.MonkeyPatch) -> None:
        self.part = part
        self.place = place
        self.done = False
        self.fsync = os.fsync
        patch.setattr(os, "fsync", self.flush)
        patch.setattr(os, "fdatasync", self.flush)

    def flush(self, descriptor: int) -> None:
        self.fsync(descriptor)
        if self.done or not self.part.exists() or self.part.stat().st_size < len(DATA):
            return
        with self.part.open("r+b") as file:
            file.seek(self.place)
            if (byte := file.read(1)) == DATA[self.place : self.place + 1]:
                file.seek(self.place)
                file.write(bytes([byte[0] ^ 1]))
                self.done = True


@given(sizes=st.lists(st.integers(0, 30_000), max_size=9), window=st.integers(1, 40_000))
def test_the_sum_is_that_of_the_file(
    sizes: list[int], window: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("read_back") / "file"
    data = memoryview(os.urandom(sum(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_back, "WINDOW", window)
        with new_file(path, len(data), kind=ReadBackFile) as file:
            for size in sizes:
                file.write(data[file.position : file.position + size])
    assert path.read_bytes() == data
    assert file.read_back == xxhash.xxh3_128_hexdigest(data)


@pytest.mark.parametrize("place", [0, 20_000, len(DATA) - 1])
@pytest.mark.parametrize("double_check", [True, False])
def test_a_disk_that_gives_back_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, double_check: bool
) -> None:
    """It is found out by the double check, and by nothing else."""
    out = tmp_path / "out"
    with OutputFolder(out, PLAN, double_check=double_check) as folder:
        disk = BadDisk(tmp_path / ".out.flmgrow/data/file.part", place, monkeypatch)
        if double_check:
            with pytest.raises(StorageError, match=r"data/file: is not what was written"):
                write(folder, "file")
            assert folder.finished == {}
        else:
            write(folder, "file")
            folder.commit({})
        assert disk.done
    assert out.exists() is not double_check


def test_it_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again if it was touched since, or another process had written it."""
    read: list[str] = []
    real = checksums.checksum_of

    def checksum_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
        read.append(path.name)
        return real(path, progress)

    monkeypatch.setattr(checksums, "checksum_of", checksum_of)
    with OutputFolder(tmp_path / "out", PLAN) as folder:
        write(folder, "before")
    with OutputFolder(tmp_path / "out", PLAN) as folder:
        assert read == ["before"]
        for name in ("file", "touched"):
            write(folder, name)
        os.utime(folder.finished_path("touched"))
        folder.commit({})
    assert read == ["before", "touched"]


@pytest.mark.parametrize("double_check", [True, False])
def test_a_flush_that_fails_ends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double_check: bool
) -> None:
    """It is told once, and neither repeated nor followed by an fsync that would lie."""
    calls: list[str] = []

    def fail(descriptor: int) -> None:
        calls.append("fdatasync")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append("fsync")
        real(descriptor)

    with OutputFolder(tmp_path / "out", PLAN, double_check=double_check) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(StorageError, match=r"file\.part: fdatasync failed"):
                write(folder, "file")
        assert calls[-1] == "fdatasync"
        assert calls.count("fdatasync") == 1
        write(folder, "file")
        folder.commit({})
    assert (tmp_path / "out/file").read_bytes() == DATA


def test_a_run_that_gives_up_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(descriptor: int) -> None:
        hangs.set()
        goes_on.wait(300)

    monkeypatch.setattr(os, "fdatasync", hang)

    def interrupted() -> None:
        with OutputFolder(tmp_path / "out", PLAN) as folder, folder.file("file", 20_000) as file:
            file.write(DATA[:12_000])
            assert hangs.wait(300)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    behind = [each for each in threading.enumerate() if each.daemon and "_run" in each.name]
    assert len(behind) == 1
    goes_on.set()
    behind[0].join(60)
    assert not behind[0].is_alive()
