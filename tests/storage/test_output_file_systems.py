"""What file systems refuse, lack or get wrong ends in one clear error, and can be resumed."""

import errno
import os
from pathlib import Path

import pytest
from output_folders import PLAN, SHARD, names, write

from flmgrow.errors import OutputExistsError, StorageError
from flmgrow.storage import durable, folders
from flmgrow.storage.output import OutputFolder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    return tmp_path / ".out.flmgrow"


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

    def test_what_another_machine_removed_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client of a file server remembers what it has looked up, until it opens a folder."""
        known: dict[Path, bool] = {}
        is_dir, opened, lexists = Path.is_dir, os.open, os.path.lexists

        def remembering(path: Path) -> bool:
            return known.setdefault(path, is_dir(path))

        def opening(path: Path, *arguments: int, **keywords: int) -> int:
            for each in [each for each in known if each.parent == Path(path)]:
                del known[each]
            return opened(path, *arguments, **keywords)

        monkeypatch.setattr(Path, "is_dir", remembering)
        monkeypatch.setattr(os.path, "lexists", lambda path: known.setdefault(path, lexists(path)))
        monkeypatch.setattr(os, "open", opening)
        folder = tmp_path / "iter" / "rank"
        folders.make_folders(tmp_path, folder)
        assert folder.is_dir()
        folder.rmdir()
        folder.parent.rmdir()
        assert folder.is_dir()  # it remembers
        folders.make_folders(tmp_path, folder)
        assert lexists(folder)
        assert not os.path.lexists(tmp_path / "out")
        (tmp_path / "out").mkdir()
        assert not os.path.lexists(tmp_path / "out")
        assert folders.is_there(tmp_path / "out")

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
