"""The files of a finished output are compared with what its manifest says of them."""

import errno
import os
from pathlib import Path

import pytest
import xxhash
from output_folders import PLAN, SHARD, write

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.storage.checksums import FileRecord, verify_files
from flmgrow.storage.output import OutputFolder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    return tmp_path / ".out.flmgrow"


class TestVerifyFiles:
    @pytest.fixture
    def records(self, out: Path) -> list[FileRecord]:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, bytes(3 << 20))
            write(folder, "b.pt", b"b" * 100)
            records = list(folder.finished.values())
            folder.commit({})
        return records

    def test_an_undamaged_folder(self, out: Path, records: list[FileRecord]) -> None:
        read: list[int] = []
        verify_files(out, records, read.append)
        assert sum(read) == (3 << 20) + 100
        assert len(read) == 4

    def test_missing(self, out: Path, records: list[FileRecord]) -> None:
        (out / SHARD).unlink()
        with pytest.raises(BadCheckpointError, match=rf"{SHARD}: missing, manifest says 3145728"):
            verify_files(out, records)

    @pytest.mark.parametrize("size", [99, 101])
    def test_size(self, out: Path, records: list[FileRecord], size: int) -> None:
        os.truncate(out / "b.pt", size)
        with pytest.raises(BadCheckpointError, match=rf"b\.pt: {size} bytes, manifest says 100$"):
            verify_files(out, records)

    def test_any_flipped_bit(self, out: Path, records: list[FileRecord]) -> None:
        whole = (out / "b.pt").read_bytes()
        for bit in range(0, 800, 7):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (out / "b.pt").write_bytes(damaged)
            with pytest.raises(BadCheckpointError) as caught:
                verify_files(out, records)
            assert str(caught.value) == (
                f"{out}/b.pt: damaged: xxh3 {xxhash.xxh3_128_hexdigest(damaged)}, "
                f"manifest says {records[1].xxh3_128}"
            )

    @pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
    def test_a_manifest_cannot_point_outside(self, out: Path, path: str) -> None:
        with pytest.raises(BadCheckpointError, match="outside the folder"):
            verify_files(out, [FileRecord(path, 1, "")])

    def test_a_disk_that_cannot_be_read(
        self, out: Path, records: list[FileRecord], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def advise(*_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "posix_fadvise", advise)
        with pytest.raises(StorageError, match=f"{SHARD}: reading failed"):
            verify_files(out, records)
