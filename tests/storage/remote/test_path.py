"""Paths that stand for objects, over obstore's store in memory."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.storage.checksums import checksum_of
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.remote import ranges, store
from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.path import RemotePath, open_folder
from flmgrow.storage.remote.store import FoundObject

DATA = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "a/one.pt": DATA, "a/b/two.pt": DATA[::-1], "a/empty": b""}


@pytest.fixture(scope="module")
def memory() -> Iterator[MemoryStore]:
    found = MemoryStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_store", lambda *_: found)
        patch.setattr(ranges, "BLOCK", 1000)
        patch.setattr(ranges, "MOST_BLOCKS", 3)
        patch.setattr(ranges, "PIECE", 1500)
        yield found


@pytest.fixture
def folder(memory: MemoryStore) -> RemotePath:
    for name, data in FILES.items():
        obstore.put(memory, f"ckpt/{name}", data)
    return open_folder(Path("s3://bucket/ckpt"))


def test_a_folder_looks_as_on_the_disk(folder: RemotePath, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    def seen(root: Path) -> list[object]:
        return [
            (str(path.relative_to(root)), path.is_dir(), path.is_dir() or path.stat().st_size)
            for path in sorted(root.rglob("*"))
        ]

    assert seen(folder) == seen(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "config.json"]
    assert [str(path) for path in folder.glob("a/*.pt")] == ["s3://bucket/ckpt/a/one.pt"]
    assert not (folder / "b").exists()
    assert os.path.lexists(folder / "a" / "b")
    assert (folder / "config.json").read_text() == "{}"
    assert str((folder / "a" / ".." / "x").resolve()) == "s3://bucket/ckpt/x"


def test_paths_never_lead_to_files_of_this_machine(folder: RemotePath) -> None:
    out = folder.joinpath(*[".."] * 30, *Path(__file__).parts[1:])
    assert Path(__file__).exists()
    assert not out.exists()
    with pytest.raises(BadCheckpointError, match="does not exist"):
        ReadOnlyFile(out)


def test_a_likeness_is_never_taken_for_the_object(folder: RemotePath) -> None:
    assert Path(os.fspath(folder / "a" / "one.pt")).read_bytes() == b""
    with pytest.raises(BadCheckpointError, match="is a folder"):
        ReadOnlyFile(folder / "a")


def test_what_writes_is_refused(folder: RemotePath) -> None:
    for mode in ("w", "ab", "r+b", "x"):
        with pytest.raises(OSError, match="object store"):
            folder.joinpath("config.json").open(mode)


@given(st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 4000)), max_size=8))
def test_ranges_are_those_of_the_bytes(pairs: list[tuple[int, int]]) -> None:
    memory = store._store("s3", "bucket", 1)
    obstore.put(memory, "other/one.pt", DATA)
    file = ReadOnlyFile(open_folder(Path("s3://bucket/other")) / "one.pt")
    for start, count in pairs:
        if start + count <= len(DATA):
            assert file.read(start, count) == DATA[start : start + count]
        else:
            with pytest.raises(BadCheckpointError, match="truncated"):
                file.read(start, count)
    assert b"".join(bytes(part) for part in file.chunks(0, len(DATA), 700)) == DATA


def test_streams_seek_and_sum_as_files_do(folder: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(DATA)
    assert checksum_of(folder / "a" / "one.pt") == checksum_of(tmp_path / "one.pt")
    with (folder / "a" / "one.pt").open("rb") as file:
        assert file.seek(-10, os.SEEK_END) == len(DATA) - 10
        assert file.read() == DATA[-10:]
        assert file.seek(5) == 5
        assert file.read(3) == DATA[5:8]


def test_an_object_that_changed_is_refused(memory: MemoryStore, folder: RemotePath) -> None:
    file = ReadOnlyFile(folder / "a" / "one.pt")
    assert file.read(0, 10) == DATA[:10]
    file.check_unchanged()
    obstore.put(memory, "ckpt/a/one.pt", DATA[::-1])
    with pytest.raises(BadCheckpointError, match=r"one.pt: changed"):
        file.read(5000, 10)
    with pytest.raises(BadCheckpointError, match=r"one.pt: changed"):
        file.check_unchanged()
    obstore.delete(memory, "ckpt/a/one.pt")
    with pytest.raises(BadCheckpointError, match=r"one.pt: changed"):
        file.check_unchanged()
    with pytest.raises(BadCheckpointError, match=r"one.pt: does not exist"):
        file.read(7000, 10)


def test_threads_that_want_one_block_ask_for_it_once(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ready = threading.Barrier(8)

    def read_range(_: object, __: object, start: int, count: int) -> memoryview:
        asked.append(start)
        return memoryview(DATA[start : start + count])

    monkeypatch.setattr(ranges, "read_range", read_range)
    file, found = ReadOnlyFile(folder / "a" / "one.pt"), list[bytes]()
    file.close()

    def read() -> None:
        ready.wait()
        found.append(file.read(2100, 50))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA[2100:2150]] * 8
    assert asked == [2000]


def test_who_reads_on_finds_the_next_blocks_on_their_way(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that requests are made while others wait for their answers: here, up to four at a time."""
    lock, waiting, most = threading.Lock(), 0, 0

    def read_range(_: object, __: object, start: int, count: int) -> memoryview:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.02)
        with lock:
            waiting -= 1
        return memoryview(DATA[start : start + count])

    monkeypatch.setattr(ranges, "MOST_BLOCKS", 8)
    monkeypatch.setattr(ranges, "read_range", read_range)
    file = ReadOnlyFile(folder / "a" / "one.pt")
    file.close()
    assert b"".join(bytes(part) for part in file.chunks(0, len(DATA), 100)) == DATA
    assert 2 <= most <= ranges.AHEAD + 1


def test_what_was_not_asked_for_fails_nobody(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = store.read_range, threading.Event()

    def read_range(address: Address, found: FoundObject, start: int, count: int) -> memoryview:
        if start == 2000 and not failed.is_set():
            failed.set()
            raise StorageError("once")
        return real(address, found, start, count)

    monkeypatch.setattr(ranges, "read_range", read_range)
    file = ReadOnlyFile(folder / "a" / "one.pt")
    file.close()
    assert file.read(0, 10) == DATA[:10]
    assert file.read(1000, 10) == DATA[1000:1010]
    assert failed.wait(5)
    time.sleep(0.05)
    assert file.read(2000, 10) == DATA[2000:2010]


def test_a_block_that_failed_is_asked_for_again(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ReadOnlyFile(folder / "a" / "one.pt")
    file.close()
    with monkeypatch.context() as patch:
        patch.setattr(ranges, "read_range", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            file.read(0, 5)
    assert file.read(0, 5) == DATA[:5]


def test_no_more_blocks_are_kept_than_said(folder: RemotePath) -> None:
    file = ReadOnlyFile(folder / "a" / "one.pt")
    for start in range(0, len(DATA) - 10, 500):
        file.read(start, 10)
    assert len(ranges._blocks.kept) == ranges.MOST_BLOCKS


def test_a_second_look_forgets_what_is_gone(memory: MemoryStore, folder: RemotePath) -> None:
    obstore.delete(memory, "ckpt/a/b/two.pt")
    again = open_folder(Path("s3://bucket/ckpt"))
    assert not (again / "a" / "b").exists()
    with pytest.raises(BadCheckpointError, match="does not exist"):
        ReadOnlyFile(again / "a" / "b" / "two.pt")


def test_a_full_disk_is_told(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StorageError, match=r"listing failed: .*No space left on device"):
        open_folder(Path("s3://bucket/ckpt"))
