"""One output written by several ranks: whoever is lost, the next launch goes on, of any size."""

from pathlib import Path
from typing import Any

import pytest
from output_folders import PLAN, names, record_of, write
from ranks_of import in_threads

from flmgrow.errors import LostRankError, OutputExistsError, StorageError
from flmgrow.storage.checksums import verify_files
from flmgrow.storage.journal import has_lines
from flmgrow.storage.launch import Launch, launch_folder
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.shares import shared_out
from flmgrow.storage.world import World

FILES = {f"iter/rank_{number}": b"x" * (number + 1) for number in range(7)}


def make(out: Path, world: World, files: dict[str, bytes] = FILES, plan: Any = PLAN) -> set[str]:
    """Write a rank's share of the files and commit; return what it wrote."""
    with OutputFolder(out, plan, world=world) as folder:
        rest = [name for name in files if name not in folder.finished]
        own = shared_out(rest, lambda name: len(files[name]), world.size)[world.rank]
        for name in own:
            write(folder, name, files[name])
        folder.unite()
        assert folder.finished.keys() == files.keys()
        folder.commit({"flmgrow.json": b"{}"} if world.first else {})
        return set(own)


def begin(out: Path, size: int, some: int, launch: str = "one") -> None:
    """Let ``size`` ranks finish ``some`` files each, and stop."""

    def work(world: World) -> None:
        with OutputFolder(out, PLAN, world=world) as folder:
            own = shared_out(FILES, lambda name: len(FILES[name]), world.size)[world.rank]
            for name in own[:some]:
                write(folder, name, FILES[name])
            folder.unite()

    assert in_threads(size, work, launch) == [None] * size


def check(out: Path) -> None:
    verify_files(out, [record_of(name, data) for name, data in FILES.items()])
    assert names(out) == ["flmgrow.json", "iter"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_share_the_files(size: int, tmp_path: Path) -> None:
    written = in_threads(size, lambda world: make(tmp_path / "out", world))
    assert set().union(*written) == FILES.keys()
    assert sum(map(len, written)) == len(FILES)
    check(tmp_path / "out")


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (1, 3), (2, 2)])
def test_the_next_launch_may_have_another_size(before: int, after: int, tmp_path: Path) -> None:
    out, hidden = tmp_path / "out", tmp_path / ".out.flmgrow"
    begin(out, before, some=1)
    kept = {path: path.stat().st_ino for path in (hidden / "data").rglob("rank_*")}
    assert len(kept) == before
    assert sum(path.name.startswith("journal") for path in hidden.iterdir()) == before
    written = in_threads(after, lambda world: make(out, world), "two")
    assert sum(map(len, written)) == len(FILES) - before
    check(out)
    moved = {out / path.relative_to(hidden / "data"): inode for path, inode in kept.items()}
    assert {path: path.stat().st_ino for path in moved} == moved


def test_journals_of_a_larger_launch_become_one(tmp_path: Path) -> None:
    out, hidden = tmp_path / "out", tmp_path / ".out.flmgrow"
    begin(out, 4, some=1)
    assert has_lines(hidden)
    (hidden / "journal").unlink()
    assert has_lines(hidden)
    begin(out, 1, some=0, launch="two")
    journals = [name for name in names(hidden) if name.startswith("journal")]
    assert journals == ["journal"]
    assert len((hidden / "journal").read_bytes().splitlines()) == 3


def test_a_file_that_rotted_is_written_again_whoever_wrote_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, 3, some=2)
    rotten = tmp_path / ".out.flmgrow" / "data" / "iter" / "rank_5"
    rotten.write_bytes(b"y" * 6)
    written = in_threads(2, lambda world: make(out, world), "two")
    assert "iter/rank_5" in set().union(*written)
    check(out)


def test_a_file_that_rots_before_the_commit_is_found_by_another_rank(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work(world: World) -> None:
        with OutputFolder(out, PLAN, world=world) as folder:
            write(folder, f"file{world.rank}", b"text")
            folder.unite()
            if world.rank == 1:
                folder.finished_path("file1").write_bytes(b"test")
            folder.ranks.exchange(None, len)
            folder.commit({})

    errors = in_threads(3, work)
    assert [type(error) for error in errors] == [StorageError] * 3
    assert "file1: is not what was written there" in str(errors[0])
    assert not out.exists()


def test_a_rank_lost_after_the_commit_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(folder: OutputFolder) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(OutputFolder, "_follow", lost)
    first, other = in_threads(2, lambda world: make(tmp_path / "out", world))
    assert isinstance(first, set), first
    assert isinstance(other, ZeroDivisionError)
    check(tmp_path / "out")


def test_of_two_launches_one_wins(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work(world: World) -> Any:
        launch, rank = divmod(world.rank, 2)
        return make(out, World(rank, 2, 2, f"launch{launch}", 60.0))

    done = in_threads(4, work)
    won = [isinstance(result, set) for result in done]
    assert won in ([True, True, False, False], [False, False, True, True]), done
    for lost in (done[rank] for rank in range(4) if not won[rank]):
        assert isinstance(lost, OutputExistsError), lost
    check(out)


def test_a_launch_whose_ranks_still_write_is_not_joined_by_another(tmp_path: Path) -> None:
    """Its rank 0 is gone, and with it the lock: the others may be in the middle of a file."""
    out, hidden = tmp_path / "out", tmp_path / ".out.flmgrow"

    hidden.mkdir(0o700)
    folder = launch_folder(hidden, World(0, 2, 2, "old"))
    folder.mkdir()
    first, other = (Launch(folder, World(rank, 2, 2, "old")) for rank in range(2))
    first._update(plan="plan")
    other.meet("plan")
    first.stop(KeyboardInterrupt())
    with pytest.raises(OutputExistsError, match=r"another run \(rank 1 of an earlier launch"):
        make(out, World())
    with pytest.raises(LostRankError):
        other.exchange(None, len)
    other.stop(None)
    make(out, World())
    check(out)


@pytest.mark.slow
def test_what_a_launch_that_did_not_meet_began_is_removed(tmp_path: Path) -> None:
    with pytest.raises(LostRankError, match="rank 1: not there"):
        make(tmp_path / "out", World(0, 2, 2, "one", 0.5))
    assert names(tmp_path) == []
