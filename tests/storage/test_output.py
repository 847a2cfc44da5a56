"""The output folder: complete or absent, resumed by the same command, never replaced."""

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from flmgrow.errors import (
    BadCheckpointError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from flmgrow.storage import durable, output
from flmgrow.storage.output import FileRecord, OutputFolder, verify_files

PLAN = {"source": "d41d", "options": {"tp": 4, "pp": 2}}
SHARD = "iter_0000004/mp_rank_00_000/model_optim_rng.pt"


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


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def open_files() -> int:
    return len(names(Path("/proc/self/fd")))


def interrupt(out: Path, stop: type[BaseException]) -> None:
    """Finish one file and stop in the middle of the second."""
    with OutputFolder(out, PLAN) as folder:
        write(folder, SHARD, b"first")
        with folder.file("second", 100) as file:
            file.write(b"x")
            raise stop


def write(folder: OutputFolder, name: str, data: bytes) -> None:
    with folder.file(name, len(data)) as file:
        file.write(data)


def begin(out: Path, plan: dict[str, Any] = PLAN) -> None:
    """An interrupted run that finished one file."""
    with OutputFolder(out, plan) as folder:
        write(folder, SHARD, b"first")


def record_of(path: str, data: bytes) -> FileRecord:
    return FileRecord(path, len(data), xxhash.xxh3_128_hexdigest(data))


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


class TestResuming:
    def test_finished_files_are_kept(self, out: Path, temp: Path) -> None:
        begin(out)
        inode = (temp / "data" / SHARD).stat().st_ino
        with OutputFolder(out, PLAN) as folder:
            assert dict(folder.finished) == {SHARD: record_of(SHARD, b"first")}
            write(folder, "second", b"second")
            folder.commit({})
        assert (out / SHARD).stat().st_ino == inode
        verify_files(out, [record_of(SHARD, b"first"), record_of("second", b"second")])

    def test_a_small_file_is_kept_too(self, out: Path) -> None:
        for _ in range(2):
            with OutputFolder(out, PLAN) as folder:
                folder.add_small("README.md", b"text")
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == ["README.md"]

    def test_unfinished_files_are_removed(self, out: Path, temp: Path) -> None:
        begin(out)
        data = temp / "data"
        (data / "torn.part").write_bytes(b"x")
        (data / "renamed_but_not_in_the_journal").write_bytes(b"x")
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]
            assert names(data) == ["iter_0000004"]

    @pytest.mark.parametrize("cut", [1, 10, 40])
    def test_a_torn_journal_line_is_ignored(self, out: Path, temp: Path, cut: int) -> None:
        begin(out)
        with OutputFolder(out, PLAN) as folder:
            write(folder, "torn", b"x")
        whole = (temp / "journal").read_bytes()
        (temp / "journal").write_bytes(whole[:-cut])
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]
            write(folder, "torn", b"x")
        assert (temp / "journal").read_bytes() == whole

    def test_a_damaged_line_ends_the_journal(self, out: Path, temp: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            for name in "abc":
                write(folder, name, b"x")
        lines = (temp / "journal").read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b'"size": 1', b'"size": 7')
        (temp / "journal").write_bytes(b"".join(lines))
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == ["a"]

    @pytest.mark.parametrize("change", ["missing", "short"])
    def test_a_finished_file_that_is_gone_is_written_again(
        self, out: Path, temp: Path, change: str
    ) -> None:
        begin(out)
        path = temp / "data" / SHARD
        path.unlink() if change == "missing" else path.write_bytes(b"fir")
        with OutputFolder(out, PLAN) as folder:
            assert folder.finished == {}
            write(folder, SHARD, b"first")
            folder.commit({})
        assert (out / SHARD).read_bytes() == b"first"

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
    def test_an_interruption_leaves_what_is_finished(
        self, out: Path, stop: type[BaseException]
    ) -> None:
        before = open_files()
        with pytest.raises(stop):
            interrupt(out, stop)
        assert open_files() == before
        assert not out.exists()
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]

    def test_another_plan_is_refused_and_shown(self, out: Path, temp: Path) -> None:
        begin(out)
        with pytest.raises(OutputExistsError) as caught:
            OutputFolder(out, {"source": "d41d", "options": {"tp": 8, "seed": 1, "pp": 2}})
        assert str(caught.value) == (
            f"{temp}: holds a half-done run of another plan: "
            "options.seed: none there, 1 here, options.tp: 4 there, 8 here"
        )
        assert "--restart" in caught.value.hint
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]

    def test_many_differences_are_not_all_shown(self, out: Path) -> None:
        begin(out, {f"key{index}": "x" * 200 for index in range(9)})
        with pytest.raises(OutputExistsError, match=r"key4: .*, and 4 more$") as caught:
            OutputFolder(out, {"key0": 1})
        assert len(str(caught.value)) < 800

    def test_the_order_of_keys_is_no_difference(self, out: Path) -> None:
        begin(out)
        with OutputFolder(out, dict(reversed(PLAN.items()))) as folder:
            assert list(folder.finished) == [SHARD]

    def test_restart_drops_our_own_leftovers(self, out: Path, temp: Path) -> None:
        begin(out)
        with OutputFolder(out, {"other": 1}, restart=True) as folder:
            assert folder.finished == {}
            assert names(temp / "data") == []
            write(folder, SHARD, b"another")
        with pytest.raises(OutputExistsError, match="other: 1 there, none here"):
            OutputFolder(out, PLAN)

    def test_a_damaged_plan_is_refused(self, out: Path, temp: Path) -> None:
        begin(out)
        (temp / "plan.json").write_bytes(b"{")
        with pytest.raises(OutputExistsError, match=r"its plan\.json is damaged"):
            OutputFolder(out, PLAN)

    def test_without_a_plan_nothing_is_trusted(self, out: Path, temp: Path) -> None:
        begin(out)
        (temp / "plan.json").unlink()
        with OutputFolder(out, PLAN) as folder:
            assert folder.finished == {}

    def test_a_file_that_vanishes_before_the_commit(self, out: Path, temp: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            (temp / "data" / SHARD).unlink()
            with pytest.raises(StorageError, match="vanished"):
                folder.commit({})
        assert not out.exists()


class TestNamesThatAreTaken:
    def test_an_existing_output_is_not_touched(self, out: Path, tmp_path: Path) -> None:
        out.mkdir()
        (out / "mine").write_bytes(b"x")
        with pytest.raises(OutputExistsError, match=r"/out: already exists$"):
            OutputFolder(out, PLAN, restart=True)
        assert names(tmp_path) == ["out"]
        assert names(out) == ["mine"]

    @pytest.mark.parametrize("kind", ["file", "dangling link"])
    def test_anything_of_that_name_counts(self, out: Path, kind: str) -> None:
        out.symlink_to("nowhere") if kind == "dangling link" else out.write_bytes(b"")
        with pytest.raises(OutputExistsError):
            OutputFolder(out, PLAN)

    def test_an_output_that_appears_meanwhile(self, out: Path, temp: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            out.mkdir()
            with pytest.raises(OutputExistsError, match="appeared while this run was writing"):
                folder.commit({"flmgrow.json": b"{}"})
        assert names(out) == []
        with pytest.raises(OutputExistsError, match=r"already exists; .* holds a half-done run"):
            OutputFolder(out, PLAN)
        out.rmdir()
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]
            folder.commit({"flmgrow.json": b"{}"})
        assert (out / SHARD).read_bytes() == b"first"
        assert not temp.exists()

    def test_leftovers_of_the_run_that_wrote_it_are_removed(
        self, out: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch, OutputFolder(out, PLAN) as folder:
            patch.setattr(output, "_remove_hidden", lambda _: False)
            assert "could not be removed" in folder.commit({})
        assert temp.exists()
        with pytest.raises(OutputExistsError, match="already exists; removed the leftovers"):
            OutputFolder(out, PLAN)
        assert not temp.exists()
        assert out.exists()

    def test_a_second_run_stops_at_once(self, out: Path) -> None:
        message = rf"/out: another run \(pid {os.getpid()} on .*\) is writing it"
        with OutputFolder(out, PLAN) as folder:
            with pytest.raises(OutputExistsError, match=message):
                OutputFolder(out, PLAN)
            with pytest.raises(OutputExistsError, match=message):
                OutputFolder(out, PLAN, restart=True)
            folder.commit({})

    def test_a_killed_run_leaves_no_lock(self, out: Path) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path\n"
            "from flmgrow.storage.output import OutputFolder\n"
            f"with OutputFolder(Path(sys.argv[1]), {PLAN!r}) as folder:\n"
            f"    folder.add_small({SHARD!r}, b'first')\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
        )
        ended = subprocess.run([sys.executable, "-c", script, out], check=False)
        assert ended.returncode == -15
        with OutputFolder(out, PLAN) as folder:
            assert list(folder.finished) == [SHARD]

    @pytest.mark.parametrize("plant", ["link", "dangling link", "file"])
    def test_a_planted_hidden_name_is_refused(
        self, out: Path, temp: Path, tmp_path: Path, plant: str
    ) -> None:
        victim = tmp_path / "victim"
        if plant == "link":
            victim.mkdir()
        temp.write_bytes(b"") if plant == "file" else temp.symlink_to(victim)
        with pytest.raises(StorageError, match="wanted one of our own"):
            OutputFolder(out, PLAN, restart=True)
        assert not victim.exists() or names(victim) == []

    def test_another_users_hidden_folder_is_refused(
        self, out: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        temp.mkdir()
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(StorageError, match="another user's folder"):
            OutputFolder(out, PLAN)
        assert names(temp) == []

    def test_a_planted_lock_is_not_followed(self, out: Path, temp: Path, tmp_path: Path) -> None:
        temp.mkdir()
        (tmp_path / "victim").write_bytes(b"kept")
        (temp / "lock").symlink_to(tmp_path / "victim")
        with pytest.raises(StorageError, match="lock: locking failed"):
            OutputFolder(out, PLAN)
        assert (tmp_path / "victim").read_bytes() == b"kept"

    @pytest.mark.parametrize("name", ["no/such/out", "..", "."])
    def test_names_that_cannot_be_made(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError):
            OutputFolder(tmp_path / name if name != "." else Path(), PLAN)


class TestFileSystems:
    def fail(self, monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
        real = durable._call_libc

        def call(name: str, *arguments: object) -> None:
            if name == function:
                raise OSError(number, os.strerror(number))
            real(name, *arguments)

        monkeypatch.setattr(durable, "_call_libc", call)

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
    def test_rename_without_the_flag(
        self, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        self.fail(monkeypatch, "renameat2", number)
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            out.mkdir()
            with pytest.raises(OutputExistsError, match="appeared"):
                folder.commit({"flmgrow.json": b"{}"})
            out.rmdir()
            folder.commit({"flmgrow.json": b"{}"})
        assert (out / SHARD).read_bytes() == b"first"

    @pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
    def test_no_reservation(self, out: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.fail(monkeypatch, "fallocate", number)
        with OutputFolder(out, PLAN) as folder:
            write(folder, "a", b"abc")
            assert "a" in folder.finished

    def test_a_library_without_the_calls(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(durable, "_libc", object())
        with OutputFolder(out, PLAN) as folder:
            write(folder, "a", b"abc")
            folder.commit({})
        assert names(out) == ["a"]

    @pytest.mark.parametrize(
        ("number", "remedy"),
        [
            (errno.ENOSPC, "free some space"),
            (errno.EDQUOT, "quota"),
            (errno.EFBIG, "ulimit -f"),
            (errno.EROFS, "writable"),
            (errno.EIO, "check the disk"),
        ],
    )
    def test_a_failure_names_the_file_and_the_way_out(
        self, out: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
    ) -> None:
        with OutputFolder(out, PLAN) as folder:
            self.fail(monkeypatch, "fallocate", number)
            with pytest.raises(StorageError) as caught:
                write(folder, SHARD, b"abc")
        assert str(caught.value).endswith(
            f"/{SHARD}.part: reserving 3 bytes failed: {os.strerror(number)}"
        )
        assert remedy in caught.value.hint
        assert caught.value.hint.endswith("run the same command again: it resumes")

    def test_a_failed_fsync_is_not_repeated(
        self, out: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = []

        def fsync(descriptor: int) -> None:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with OutputFolder(out, PLAN) as folder:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                with pytest.raises(StorageError, match=r"a\.part: fsync failed"):
                    write(folder, "a", b"abc")
            assert len(failed) == 1
            before = (temp / "data/a.part").stat().st_ino
            keeper = (temp / "data/a.part").open("rb")  # so that its number is not used again
            write(folder, "a", b"abc")
            assert (temp / "data/a").stat().st_ino != before
            keeper.close()

    def test_a_journal_that_failed_takes_no_more(
        self, out: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.fsync
        journal = (temp / "journal").stat

        def fsync(descriptor: int) -> None:
            if os.path.samestat(os.fstat(descriptor), journal()):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        with OutputFolder(out, PLAN) as folder:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                with pytest.raises(StorageError, match="journal: adding a line failed"):
                    write(folder, "a", b"abc")
            with pytest.raises(StorageError, match="an earlier fsync failed"):
                write(folder, "b", b"abc")
            assert folder.finished == {}

    def test_a_file_system_without_locks(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(StorageError, match="lock: locking failed: Function not implemented"):
            OutputFolder(out, PLAN)

    def test_free_space(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            folder.free_space_check(1)
            with pytest.raises(StorageError, match=rf"{out}: \d+ bytes are free, {1 << 62} are"):
                folder.free_space_check(1 << 62)

    def test_a_name_too_long_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="File name too long"):
            OutputFolder(tmp_path / ("x" * 250), PLAN)

    def test_writing_after_leaving_is_refused(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            pass
        with pytest.raises(StorageError, match="journal: adding a line failed"):
            write(folder, "late", b"x")


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
