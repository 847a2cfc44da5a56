import errno
import os
import random
import stat
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.storage import crc, files, open_files
from flmgrow.storage.crc import crc32
from flmgrow.storage.files import MAX_OPEN_FILES, ReadOnlyFile


def open_below(folder: Path) -> int:
    """How many descriptors of this process are files in ``folder``."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += link.readlink().is_relative_to(folder)
        except OSError:  # the descriptor that lists the folder is gone by now
            continue
    return count


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(10_000)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    return path


def test_reads_ranges(path: Path, content: bytes) -> None:
    file = ReadOnlyFile(path)
    assert file.size == 10_000
    assert file.path == path
    assert file.read(100, 200) == content[100:300]
    assert file.read(10_000, 0) == b""
    target = bytearray(50)
    file.read_into(9_950, memoryview(target))
    assert target == content[-50:]
    file.close()


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_streams_ranges_in_pieces(path: Path, content: bytes, piece: int) -> None:
    file = ReadOnlyFile(path)
    pieces = [bytes(part) for part in file.chunks(10, 1000, piece)]
    assert b"".join(pieces) == content[10:1010]
    assert max(map(len, pieces)) <= piece
    assert list(file.chunks(5, 0)) == []
    file.close()


@pytest.mark.parametrize(("offset", "count"), [(0, 10_001), (10_001, 0), (-1, 5), (5, 1 << 60)])
def test_refuses_ranges_outside_the_file(path: Path, offset: int, count: int) -> None:
    file = ReadOnlyFile(path)
    with pytest.raises(BadCheckpointError, match=r"weights\.pt: truncated: wanted"):
        file.read(offset, count)
    with pytest.raises(BadCheckpointError, match=r"weights\.pt: truncated: wanted"):
        list(file.chunks(offset, count))
    file.close()


def test_short_reads_are_continued(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda number, views, offset: whole(number, [views[0][:7]], offset)
    )
    file = ReadOnlyFile(path)
    assert file.read(3, 1000) == content[3:1003]
    file.close()


def test_a_file_cut_after_opening_is_truncated(path: Path) -> None:
    file = ReadOnlyFile(path)
    os.truncate(path, 500)
    with pytest.raises(BadCheckpointError, match=r"weights\.pt: truncated.*ends at 500"):
        file.read(400, 200)
    file.close()


def unfit(kind: str, folder: Path) -> Path:
    path = folder / "unfit.pt"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(folder / "nowhere")
        case "device":
            return Path("/dev/null")
        case "under a file":
            path.touch()
            return path / "weights.pt"
        case "NUL":
            return folder / "a\0b"
        case "long":
            return folder / ("x" * 300)
    return path


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("missing", "does not exist"),
        ("dangling", "does not exist"),
        ("under a file", "is not a folder"),
        ("folder", "is a folder"),
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("loop", "loop of symbolic links"),
        ("NUL", "not a possible file name"),
        ("long", "name that is too long"),
    ],
)
def test_refuses_what_is_not_a_file(kind: str, found: str, tmp_path: Path) -> None:
    path = unfit(kind, tmp_path)
    with pytest.raises(BadCheckpointError, match=found) as refusal:
        ReadOnlyFile(path)
    assert refusal.value.message.startswith(str(path).replace("\0", "\\x00")[:200])
    assert open_below(tmp_path) == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, BadCheckpointError),
        (errno.EIO, StorageError),
        (errno.EMFILE, StorageError),
        (errno.ESTALE, StorageError),
    ],
)
def test_names_the_file_when_the_system_refuses(
    path: Path, code: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    file = ReadOnlyFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        with pytest.raises(kind, match=r"weights\.pt: "):
            file.read(0, 1)
    file.close()
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(kind, match=r"weights\.pt: "):
        ReadOnlyFile(path)


def test_opens_for_reading_only(path: Path) -> None:
    file = ReadOnlyFile(path)
    with files._open_files.borrow(file) as number:
        assert os.get_blocking(number) is False
        assert os.get_inheritable(number) is False
        assert stat.S_ISREG(os.fstat(number).st_mode)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(number, b"x")
    file.close()


def test_notices_a_changed_file(path: Path) -> None:
    file = ReadOnlyFile(path)
    file.check_unchanged()
    path.write_bytes(b"other")
    with pytest.raises(BadCheckpointError, match=r"weights\.pt: changed while"):
        file.check_unchanged()
    path.unlink()
    with pytest.raises(BadCheckpointError, match=r"weights\.pt: does not exist"):
        file.check_unchanged()
    file.close()


def test_refuses_another_file_when_opened_again(path: Path, content: bytes) -> None:
    file = ReadOnlyFile(path)
    file.close()
    assert file.read(0, 10) == content[:10]  # opened again
    file.close()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    with pytest.raises(BadCheckpointError, match="changed while"):
        file.read(0, 10)
    assert open_below(path.parent) == 0


def numbered_files(folder: Path, count: int) -> list[ReadOnlyFile]:
    opened = []
    for number in range(count):
        path = folder / f"{number}.pt"
        path.write_bytes(b"%08d" % number)
        opened.append(ReadOnlyFile(path))
    return opened


def test_two_hundred_files_open_at_most_64(tmp_path: Path) -> None:
    opened = numbered_files(tmp_path, 200)
    assert 0 < open_below(tmp_path) <= MAX_OPEN_FILES == 64
    for number in (0, 199, 5, 100):
        assert opened[number].read(0, 8) == b"%08d" % number
    assert open_below(tmp_path) <= MAX_OPEN_FILES
    for file in opened:
        file.close()
    assert open_below(tmp_path) == 0


class CountingOpenFiles(open_files.OpenFiles):
    """Counts at every change of descriptors, while nobody else can make one.

    A look at the folder of descriptors would see those that come and go while it looks.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        super().__init__(limit)
        self.folder = folder
        self.most = 0

    def _lend(self, *args: Any) -> None:
        super()._lend(*args)
        self.most = max(self.most, open_below(self.folder))


@pytest.mark.slow
def test_threads_never_lose_a_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than descriptors: each must wait for its turn, and read its own file."""
    counting = CountingOpenFiles(3, tmp_path)
    monkeypatch.setattr(files, "_open_files", counting)
    opened = numbered_files(tmp_path, 40)

    def read_many(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(100):
            number = choose.randrange(len(opened))
            assert opened[number].read(0, 8) == b"%08d" % number
            if choose.random() < 0.1:
                opened[number].close()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(read_many, range(12)))
    assert counting.most == 3
    for file in opened:
        file.close()
    assert open_below(tmp_path) == 0


def test_crc32_is_the_one_of_zip() -> None:
    data = random.Random(2).randbytes(1000)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(memoryview(data)[500:], crc32(data[:500])) == zlib.crc32(data)
    assert crc32(b"") == 0


def test_crc32_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    assert crc._best_crc32() is zlib.crc32
