"""File systems that cannot rename or lock: written in place and marked, kept apart by leases."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, flmgrow
from output_folders import PLAN, SHARD, names, record_of, write
from pico import make_checkpoint
from ranks_of import in_threads

from flmgrow.errors import IncompleteCheckpointError, LostRankError, OutputExistsError
from flmgrow.formats.opening import open_checkpoint
from flmgrow.storage import durable, lease, marker
from flmgrow.storage.checksums import verify_files
from flmgrow.storage.lease import Lease
from flmgrow.storage.lock import LockHeldError
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.remote import marker as remote_marker
from flmgrow.storage.sign import Sign, read_sign, this_machine, this_process
from flmgrow.storage.world import ALONE, World
from flmgrow.trainer.data.corpus_files import open_corpus_files
from flmgrow.trainer.data.tokenizers import open_tokenizer

GROW = ("--ffn-hidden-size", "24", "--method", "copy")


def refuse(number: int, *_: object, **__: object) -> None:
    raise OSError(number, os.strerror(number))


@pytest.fixture
def no_folder_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that can rename a file, and refuses a folder that is not empty."""
    rename, call = Path.rename, durable._call_libc

    def of_files(path: Path, target: Path) -> Path:
        if path.is_dir():
            refuse(errno.EMFILE)
        return rename(path, target)

    def no_rename(name: str, *arguments: object) -> None:
        if name == "renameat2":
            refuse(errno.EMFILE)
        call(name, *arguments)

    monkeypatch.setattr(Path, "rename", of_files)
    monkeypatch.setattr(durable, "_call_libc", no_rename)


@pytest.fixture
def no_renames(no_folder_renames: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", partial(refuse, errno.ENOSYS))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", partial(refuse, errno.ENOLCK))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are told sooner."""
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "WATCH", 0.7)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


LAST = {"flmgrow.json": b"{}", "latest": b"4"}


def make(out: Path, world: World = ALONE) -> str:
    """Write two files, the second by the last rank; return what is noted."""
    with OutputFolder(out, PLAN, world=world) as folder:
        if SHARD not in folder.finished and world.first:
            write(folder, SHARD, b"first")
        if world.rank == world.size - 1:
            write(folder, "second", b"text")
        folder.unite()
        folder.commit(LAST)
        return folder.note


def check(out: Path) -> None:
    verify_files(out, [record_of(SHARD, b"first"), record_of("second", b"text")])
    assert names(out) == ["flmgrow.json", SHARD.split("/", maxsplit=1)[0], "latest", "second"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("lacking", ["no_folder_renames", "no_renames"])
def test_the_same_is_written_in_place(
    lacking: str, size: int, out: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(lacking)
    first, *_ = in_threads(size, lambda world: make(out, world))
    assert first == (
        f"{out}: its file system has no renaming (it is marked until it is whole, by "
        ".flmgrow/plan.json)"
    )
    check(out)


@pytest.mark.usefixtures("no_renames")
class TestMarks:
    def test_what_is_not_whole_is_marked_until_the_same_run_ends_it(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            (out / "stray").write_bytes(b"of a killed run")
        assert marker.is_marked(out)
        for place in (out, out / "iter_0000004"):
            with pytest.raises(IncompleteCheckpointError, match=f"{out}: is not complete"):
                open_checkpoint(place)
        with pytest.raises(OutputExistsError, match="half-done run of another plan"):
            OutputFolder(out, {"source": "other"})
        inode = (out / SHARD).stat().st_ino
        make(out)
        check(out)
        assert (out / SHARD).stat().st_ino == inode
        with pytest.raises(OutputExistsError, match="already exists"):
            OutputFolder(out, PLAN)

    def test_until_the_last_moment_of_the_commit(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remove = marker.remove

        def killed(path: Path) -> None:
            assert tree(path).keys() == {SHARD, "second", *LAST, marker.MARK}
            raise KeyboardInterrupt

        monkeypatch.setattr(marker, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            make(out)
        monkeypatch.setattr(marker, "remove", remove)
        with pytest.raises(IncompleteCheckpointError):
            open_checkpoint(out)
        with OutputFolder(out, PLAN) as folder:
            assert folder.finished.keys() == {SHARD, "second"}
            folder.commit(LAST)
        check(out)

    def test_a_foreign_folder_is_left_alone(self, out: Path) -> None:
        out.mkdir()
        (out / "precious").write_bytes(b"x")
        with pytest.raises(OutputExistsError, match="already exists"):
            OutputFolder(out, PLAN)
        assert names(out) == ["precious"]

    def test_what_cannot_be_resumed_goes_whole(self, out: Path) -> None:
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            folder.discard()
        assert names(out.parent) == []

    @pytest.mark.usefixtures("no_locks", "quick")
    def test_commands_write_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, out = make_checkpoint(tmp_path / "src", "llama"), tmp_path / "out"
        command = ("expand", source, out, *GROW)
        done = accepted(*command)
        lacks = "no locks (do not start two runs in the same seconds) and no renaming (it is"
        assert done.err.startswith(f"note: {out}: its file system has {lacks}")
        assert len(done.err.splitlines()) == 1
        assert accepted("verify", source, out).out.splitlines()[-1] == "equal"
        monkeypatch.undo()
        accepted("expand", source, tmp_path / "usual", *GROW)
        accepted("verify", source, tmp_path / "usual")
        assert tree(out).keys() == tree(tmp_path / "usual").keys()
        shards = "iter_0000030/mp_rank_00"
        assert tree(out / shards) == tree(tmp_path / "usual" / shards)
        assert flmgrow(*command, "--num-layers", 6).code == 5


@pytest.mark.usefixtures("no_renames")
def test_a_corpus_that_is_not_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two\n\nthree\n")
    command = ("data", "prepare", text, tmp_path / "out", "--tokenizer", "bytes")
    with monkeypatch.context() as patch:
        patch.setattr(marker, "remove", partial(refuse, errno.EIO))
        assert flmgrow(*command).code == 4
    assert marker.is_marked(tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / "corpus"):
        with pytest.raises(IncompleteCheckpointError):
            open_corpus_files(path, open_tokenizer("bytes"))
    assert accepted(*command).out.startswith("wrote")
    open_corpus_files(tmp_path / "out", open_tokenizer("bytes"))


def test_the_mark_is_that_of_object_stores() -> None:
    assert marker.MARK == remote_marker.PLAN


@pytest.mark.usefixtures("no_locks", "quick")
class TestLeases:
    def test_of_eight_that_begin_at_once_one_wins(self, tmp_path: Path) -> None:
        start = threading.Barrier(8)

        def take(_: int) -> Lease | None:
            start.wait()
            try:
                return Lease(tmp_path / "lease")
            except LockHeldError:
                return None

        with ThreadPoolExecutor(8) as pool:
            held = [each for each in pool.map(take, range(8)) if each is not None]
        assert len(held) == 1
        with pytest.raises(LockHeldError, match=f"pid {os.getpid()} on "):
            Lease(tmp_path / "lease")
        held[0].check()
        held[0].close()
        Lease(tmp_path / "lease").close()

    @pytest.mark.parametrize("machine", ["another", this_machine()])
    def test_one_that_shows_no_life_is_nobody_s(self, machine: str, tmp_path: Path) -> None:
        print_it = "from flmgrow.storage.sign import this_process; print(this_process())"
        dead = subprocess.run(
            [sys.executable, "-c", print_it], capture_output=True, text=True, check=True
        ).stdout.strip()
        sign = Sign(tmp_path / "lease")
        sign.show({"word": "old", "host": machine, "process": dead, "beat": 7, "ended": False})
        Lease(tmp_path / "lease").close()

    def test_one_that_lives_elsewhere_is_waited_for(self, tmp_path: Path) -> None:
        sign, ending = Sign(tmp_path / "lease"), threading.Event()

        def live() -> None:
            beats = 0
            while not ending.wait(0.1):
                beats += 1
                told = {"word": "other", "host": "another", "process": "1 ", "beat": beats}
                sign.show({**told, "ended": False})

        thread = threading.Thread(target=live)
        thread.start()
        try:
            with pytest.raises(LockHeldError, match="pid 1 on another"):
                Lease(tmp_path / "lease")
        finally:
            ending.set()
            thread.join()

    def test_who_lost_it_writes_nothing_more(self, out: Path) -> None:
        """It stood still for so long that another run has begun."""
        other = {"word": "other", "host": this_machine(), "process": this_process()}
        with OutputFolder(out, PLAN) as folder:
            write(folder, SHARD, b"first")
            sign = Sign(out.with_name(".out.flmgrow") / "lease")
            sign.show(other)
            assert folder._lease is not None
            folder._lease._thread.join(5)
            with pytest.raises(OutputExistsError, match="another run"):
                write(folder, "second", b"text")
            with pytest.raises(OutputExistsError, match="another run"):
                folder.commit({})
        assert read_sign(sign.path) == other

    def test_ranks_share_without_locks(self, out: Path) -> None:
        first, *_ = in_threads(3, lambda world: make(out, world))
        assert first.startswith(f"{out}: its file system has no locks"), first
        check(out)

    def test_a_dead_rank_of_this_machine_is_known_by_its_process(self, out: Path) -> None:
        def work(world: World) -> Any:
            with OutputFolder(out, PLAN, world=world) as folder:
                if not world.first:
                    folder.ranks._state["process"] = dead  # type: ignore[attr-defined]
                folder.ranks.exchange(None, len)
                threading.Event().wait(2)
                folder.ranks.exchange(None, len)

        dead = f"4194999 {this_process().partition(' ')[2]}"
        first, _ = in_threads(2, work)
        assert isinstance(first, LostRankError)
        assert str(first) == "rank 1: has ended"
