"""The output folder: complete or absent, resumed by the same command, never replaced."""

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from output_folders import PLAN, SHARD, names, record_of, write

from flmgrow.errors import StorageError
from flmgrow.storage.checksums import verify_files
from flmgrow.storage.output import OutputFolder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    return tmp_path / ".out.flmgrow"


@pytest.fixture
def ordinary_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


class TestWriting:
    def test_the_output_appears_with_the_commit(self, out: Path, tmp_path: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            with folder.file(SHARD, 9) as file:
                file.write(b"abc")
                file.write(bytearray(b"def"))
                file.write(memoryview(b"xghix")[1:4])
                file.write(b"")
            folder.add_small("latest_checkpointed_iteration.txt", b"4\n")
            assert not out.exists()
            assert folder.finished[SHARD] == record_of(SHARD, b"abcdefghi")
            folder.commit({"flmgrow.json": b"{}"})
            assert out.exists()
        assert names(tmp_path) == ["out"]
        assert (out / SHARD).read_bytes() == b"abcdefghi"
        assert names(out) == [
            "flmgrow.json",
            "iter_0000004",
            "latest_checkpointed_iteration.txt",
        ]

    def test_sha256_is_taken_on_request_and_outlives_the_run(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            for name in ("plain", "summed"):
                with folder.file(name, 6, sha256=name == "summed") as file:
                    file.write(b"abc")
                    file.write(b"def")
        with OutputFolder(out, PLAN) as folder:
            assert folder.finished["plain"].sha256 == ""
            assert folder.finished["summed"].sha256 == hashlib.sha256(b"abcdef").hexdigest()

    def test_wider_numbers_are_written_as_bytes(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            with folder.file("a", 8) as file:
                file.write(memoryview(b"01234567").cast("I"))
                file.write(memoryview(b"").cast("I"))
            assert folder.finished["a"] == record_of("a", b"01234567")

    def test_an_empty_file_and_an_empty_output(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, "empty", b"")
            folder.commit({})
        assert (out / "empty").read_bytes() == b""

    def test_threads_write_at_once(self, out: Path) -> None:
        names = [f"iter_1/rank_{index % 7}/{index}.pt" for index in range(60)]
        with OutputFolder(out, PLAN) as folder:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda name: write(folder, name, name.encode() * 50), names))
            records = list(folder.finished.values())
            folder.commit({})
        assert {each.path for each in records} == set(names)
        verify_files(out, records)

    @pytest.mark.usefixtures("ordinary_umask")
    def test_the_hidden_folder_is_private_the_result_is_not(self, out: Path, temp: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"x")
            assert stat.S_IMODE(temp.stat().st_mode) == 0o700
            folder.commit({"flmgrow.json": b"{}"})
        assert stat.S_IMODE(out.stat().st_mode) == 0o750
        assert stat.S_IMODE((out / SHARD).parent.stat().st_mode) == 0o750
        assert stat.S_IMODE((out / SHARD).stat().st_mode) == 0o640
        assert stat.S_IMODE((out / "flmgrow.json").stat().st_mode) == 0o640

    def test_strays_are_not_committed(self, out: Path, temp: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            with pytest.raises(ValueError, match="planned"), folder.file("lost/a", 3):
                pass
            (temp / "data/link").symlink_to("/etc")
            folder.commit({"flmgrow.json": b"{}"})
        assert names(out) == ["flmgrow.json"]

    def test_short_writes_and_interruptions(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = os.pwrite, 0

        def short(descriptor: int, data: memoryview, position: int) -> int:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise InterruptedError
            return real(descriptor, data[: max(1, len(data) // 3)], position)

        monkeypatch.setattr(os, "pwrite", short)
        with OutputFolder(out, PLAN) as folder:
            write(folder, "a", bytes(range(256)) * 40)
            folder.commit({})
        assert calls > 20
        verify_files(out, [record_of("a", bytes(range(256)) * 40)])

    def test_a_file_system_that_takes_nothing(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with OutputFolder(out, PLAN) as folder:
            monkeypatch.setattr(os, "pwrite", lambda *_: 0)
            with pytest.raises(StorageError, match=r"a\.part: writing at byte 0 failed"):
                write(folder, "a", b"abc")


class TestDropping:
    """Files that a run needs on the way, and the output must not have."""

    def test_a_dropped_file_is_not_in_the_output(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, "parts/1", b"part")
            assert folder.finished_path("parts/1").read_bytes() == b"part"
            write(folder, "whole", folder.finished_path("parts/1").read_bytes())
            folder.drop("parts/1")
            folder.drop("never written")
            assert list(folder.finished) == ["whole"]
            folder.commit({})
        assert names(out) == ["whole"]

    def test_a_dropped_file_may_be_written_anew(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, "file", b"first")
            folder.drop("file")
            write(folder, "file", b"second")
        with OutputFolder(out, PLAN) as folder:
            assert folder.finished["file"] == record_of("file", b"second")

    def test_a_dropped_file_stays_away_after_a_resume(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, "file", b"first")
            folder.drop("file")
        with OutputFolder(out, PLAN) as folder:
            assert not folder.finished
            with pytest.raises(ValueError, match="not finished"):
                folder.finished_path("file")


class TestOurOwnMistakes:
    @pytest.mark.parametrize(
        "name", ["../a", "a/../../b", "/etc/a", "", ".", "a//b", "./a", "a/", "a\0", "a.part"]
    )
    def test_names_outside_are_refused(self, out: Path, name: str) -> None:
        with OutputFolder(out, PLAN) as folder:
            with pytest.raises(ValueError, match="not a relative path"):
                folder.add_small(name, b"x")
            with pytest.raises(ValueError, match="not a relative path"):
                folder.commit({name: b"x"})

    def test_the_planned_size_is_kept(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            planned = pytest.raises(ValueError, match="2 bytes were written, 3 planned")
            with planned, folder.file("a", 3) as file:
                file.write(b"ab")
            planned = pytest.raises(ValueError, match="more than the planned 3")
            with planned, folder.file("a", 3) as file:
                file.write(b"abcd")
            assert folder.finished == {}

    def test_a_file_is_written_once(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, "a", b"1")
            with pytest.raises(ValueError, match="already written"):
                write(folder, "a", b"1")
            with folder.file("b", 0):
                with pytest.raises(ValueError, match="being written"):
                    write(folder, "b", b"")
                with pytest.raises(ValueError, match="while files are being written"):
                    folder.commit({})
            with pytest.raises(ValueError, match="already written"):
                folder.commit({"a": b""})
            with pytest.raises(ValueError, match="two contents"):
                folder.add_small("a", b"2")
            folder.commit({})
            with pytest.raises(ValueError, match="already written"):
                write(folder, "c", b"1")
