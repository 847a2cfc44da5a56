"""The same command resumes; what has another plan or another owner is not touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from output_folders import PLAN, SHARD, begin, interrupt, names, open_files, record_of, write

from flmgrow.errors import OutputExistsError, StorageError, UsageError
from flmgrow.storage import output
from flmgrow.storage.checksums import verify_files
from flmgrow.storage.output import FIRST_TELLS, OutputFolder
from flmgrow.storage.world import World


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    return tmp_path / ".out.flmgrow"


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
        assert "restart=True" in caught.value.hint
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

    @pytest.mark.parametrize(("rank", "waited"), [(0, []), (1, [FIRST_TELLS])])
    def test_rank_0_has_time_to_tell(
        self, out: Path, monkeypatch: pytest.MonkeyPatch, rank: int, waited: list[float]
    ) -> None:
        """Else torchrun, which ends all with the first that leaves, would let it tell of that."""
        slept: list[float] = []
        monkeypatch.setattr("time.sleep", slept.append)
        out.mkdir()
        with pytest.raises(OutputExistsError) as found:
            OutputFolder(out, PLAN, world=World(rank, 2, launch="test"))
        assert (slept, found.value.told) == (waited, rank > 0)

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
            patch.setattr(output, "remove_hidden", lambda _: False)
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
