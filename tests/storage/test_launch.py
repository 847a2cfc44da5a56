"""Ranks that meet in a folder: what they exchange, and what becomes of one that fails or dies."""

import fcntl
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from ranks_of import in_threads, world
from sampling import first

from flmgrow.errors import (
    BadCheckpointError,
    FlmgrowError,
    LostRankError,
    StorageError,
    UsageError,
)
from flmgrow.storage import sign as signs
from flmgrow.storage.failure import described, raised
from flmgrow.storage.launch import Launch, launch_folder
from flmgrow.storage.ranks import flattened, meeting, ranks_in
from flmgrow.storage.sign import (
    BLINK,
    Other,
    Sign,
    is_held,
    read_sign,
    this_machine,
    this_process,
)
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import World


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_hear_what_rank_0_makes_of_what_each_gives(size: int, tmp_path: Path) -> None:
    def work(world: World) -> list[list[int]]:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.meet("plan")
            return [
                ranks.exchange([turn, world.rank], flattened) for turn in range(3)
            ]  # one after the other: nobody hears an earlier answer again

    expected = [[each for rank in range(size) for each in (turn, rank)] for turn in range(3)]
    assert in_threads(size, work) == [expected] * size


def test_rank_0_hears_of_bytes(tmp_path: Path) -> None:
    told: list[int] = []

    def work(world: World) -> None:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.watch(told.append)
            ranks.meet("plan")
            if not world.first:
                ranks.report(100)
                time.sleep(2.5)  # longer than a beat
            ranks.exchange(None, len)

    assert in_threads(3, work) == [None] * 3
    assert sum(told) == 200


def test_what_one_meets_all_raise_and_rank_0_tells(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.meet("plan")
            if world.rank == 2:
                raise BadCheckpointError("FILE: damaged", "use a copy")
            ranks.exchange(None, len)

    errors = in_threads(3, work)
    assert [type(error) for error in errors] == [BadCheckpointError] * 3
    assert str(errors[0]) == "rank 2: FILE: damaged"
    assert errors[0].hint == "use a copy"
    assert [error.told for error in errors] == [False, True, True]


def test_what_is_no_error_of_ours_loses_its_rank(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.meet("plan")
            if not world.first:
                raise ZeroDivisionError
            ranks.exchange(None, len)

    lost, own = in_threads(2, work)
    assert isinstance(lost, LostRankError)
    assert str(lost) == "rank 1: ended with ZeroDivisionError"
    assert isinstance(own, ZeroDivisionError)


def test_another_plan_is_refused(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.meet(f"plan {world.rank == 1}")
            ranks.exchange(None, len)

    errors = in_threads(3, work)
    assert [type(error) for error in errors] == [UsageError] * 3
    assert "rank 1: has another plan" in str(errors[0])


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with ranks_in(tmp_path / "hidden", World(world.rank, 3, 3, "one", 4.0)) as ranks:
            ranks.meet("plan")
            ranks.exchange(None, len)

    first, second = in_threads(2, work)
    assert isinstance(first, LostRankError)
    assert "rank 2: not there within 4 seconds, wanted 3 ranks" in str(first)
    assert isinstance(second, LostRankError)


STANDS_STILL = """
import os, signal, sys
from pathlib import Path
from flmgrow.storage import launch
from flmgrow.storage.ranks import ranks_in
from flmgrow.storage.world import World
launch.this_machine = lambda host=launch.this_machine(): sys.argv[3] or host
with ranks_in(Path(sys.argv[1]), World(1, 2, 2, "one", 60.0)) as ranks:
    ranks.meet("plan")
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    ranks.exchange(None, len)
"""


@pytest.mark.parametrize(
    ("signal", "machine", "told"),
    first(
        2,
        [
            ("SIGKILL", "", "has ended"),
            ("SIGSTOP", "", "no sign of life for 3 seconds"),
            ("SIGKILL", "another", "no sign of life for 3 seconds"),
        ],
    ),
)
def test_a_rank_that_died_or_stands_still_is_lost(
    signal: str, machine: str, told: str, tmp_path: Path
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, str(tmp_path / "h"), signal, machine]
    )

    def wait_for_it() -> None:
        with ranks_in(tmp_path / "h", world(0, 2)) as ranks:
            ranks.meet("plan")
            assert isinstance(ranks, Launch)
            ranks.world = world(0, 2, patience=3.0)
            ranks.exchange(None, len)

    try:
        with pytest.raises(LostRankError, match=f"rank 1: {told}"):
            wait_for_it()
    finally:
        other.kill()
        other.wait()


def test_who_did_not_look_itself_loses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may be suspended for hours, or its disk not answer: all ranks stand still then."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sign, other = Sign(tmp_path / "rank.1"), Other(tmp_path / "rank.1")
    sign.show({"host": "another"})
    other.look()
    now += 7200
    other.look()
    assert other.quiet <= BLINK
    for _ in range(600):
        now += 1.0
        other.look()
    assert 600 <= other.quiet <= 600 + BLINK
    sign.close()


def test_who_only_looks_holds_no_place(tmp_path: Path) -> None:
    """Two ranks may look at once; neither may take the other for the owner."""
    sign = Sign(tmp_path / "rank.1")
    assert is_held(tmp_path / "rank.1")
    sign.close()
    with (tmp_path / "rank.1").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(tmp_path / "rank.1")


def test_what_an_earlier_launch_left_is_no_rank(tmp_path: Path) -> None:
    """The same names, and a sign that says all is met and failed: nobody who shows it lives."""

    def work(world: World) -> int:
        with ranks_in(tmp_path / "hidden", world) as ranks:
            ranks.meet("plan")
            return ranks.exchange(world.rank, sum)

    assert in_threads(2, work) == [1, 1]
    folder = launch_folder(tmp_path / "hidden", world(0, 2))
    left = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(left) == 4
    for path in left:
        said = read_sign(path)
        if said is not None and "failed" in said:
            sign = Sign(path)
            sign.show(said | {"failed": {"kind": "UsageError", "message": "old", "hint": ""}})
            sign.close()
    late = threading.Timer(1.5, lambda: None)
    late.start()

    def one_is_late(world: World) -> int:
        if world.first:
            late.join()
        return work(world)

    assert in_threads(2, one_is_late) == [1, 1]


def ended_process() -> str:
    """The word for a process that was here."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return f"{process.pid} {this_process().partition(' ')[2]}"


def test_what_is_not_wiped_off_yet_was_said_by_nobody(tmp_path: Path) -> None:
    """A rank has just taken the place of one that had failed in an earlier launch."""
    path = tmp_path / "rank.1"
    said = {"host": this_machine(), "process": ended_process(), "failed": "by the earlier one"}
    sign = Sign(path)
    sign.show(said)  # as the earlier one did: the place is taken, and this still stands there
    other = Other(path)
    assert other.look() == said
    assert not other.fresh
    sign.show({"host": this_machine(), "process": this_process(), "failed": None})
    assert other.look()["failed"] is None
    assert other.fresh
    sign.close()


def test_what_was_read_of_a_free_place_is_of_nobody_who_took_it_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken = tmp_path / "rank.1", list[Sign]()
    sign = Sign(path)
    sign.show({"host": this_machine(), "process": this_process(), "failed": "by the earlier one"})
    sign.close()
    read = signs.read_sign

    def read_and_taken(path: Path) -> Json | None:
        found = read(path)
        taken.append(Sign(path))
        return found

    other = Other(path)
    with monkeypatch.context() as patch:
        patch.setattr(signs, "read_sign", read_and_taken)
        assert other.look()["failed"]
    assert not other.fresh
    taken[0].close()


def test_a_torn_line_says_nothing(tmp_path: Path) -> None:
    sign = Sign(tmp_path / "sign")
    sign.show({"a": 1})
    assert read_sign(tmp_path / "sign") == {"a": 1}
    whole = (tmp_path / "sign").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "torn").write_bytes(whole[:cut])
        assert read_sign(tmp_path / "torn") is None
    (tmp_path / "torn").write_bytes(whole.replace(b"1}", b"2}"))
    assert read_sign(tmp_path / "torn") is None
    with pytest.raises(BlockingIOError):
        Sign(tmp_path / "sign")
    sign.close()


def test_errors_keep_their_exit_code() -> None:
    class OwnError(StorageError):
        """What is defined elsewhere may be made in another way."""

        def __init__(self) -> None:
            super().__init__("what", "way")

    kinds: list[type[FlmgrowError]] = [FlmgrowError, UsageError, StorageError, LostRankError]
    for error in [*(kind("what", "way") for kind in kinds), OwnError()]:
        found = raised(described(error, 2))
        told = type(found).exit_code, str(found), found.hint
        assert told == (error.exit_code, "rank 2: what", "way")


# --- what killed launches leave where ranks meet

HELD = """
import sys, time
from pathlib import Path
from ranks_of import world
from flmgrow.storage.ranks import meeting
with meeting(Path(sys.argv[1]), world(int(sys.argv[2]), 2, "killed")) as ranks:
    ranks.meet("plan")
    print("met", flush=True)
    time.sleep(600)
"""


def met(place: Path, rank: int) -> "subprocess.Popen[str]":
    """Start a rank of a launch of two, which stays."""
    return subprocess.Popen(
        [sys.executable, "-c", HELD, str(place), str(rank)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "support")},
        stdout=subprocess.PIPE,
        text=True,
    )


def meet_and_part(place: Path) -> None:
    def work(world: World) -> None:
        with meeting(place, world) as ranks:
            ranks.meet("plan")

    assert in_threads(2, work, launch="next") == [None, None]


def test_the_next_launch_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    place = tmp_path / "hidden"
    runs = [met(place, rank) for rank in range(2)]
    try:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "met\n"
        meet_and_part(place)
        assert [path.name for path in place.iterdir()] == ["launch-killed"]  # its ranks live
        runs[0].kill()
        runs[0].wait()
        meet_and_part(place)
        assert [path.name for path in place.iterdir()] == ["launch-killed"]  # one of them does
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    meet_and_part(place)
    assert not place.exists()


@pytest.mark.parametrize("sign", [b"", b'{"host": "elsewhere"}', None], ids=str)
def test_what_may_be_of_another_machine_stays(sign: bytes | None, tmp_path: Path) -> None:
    other = tmp_path / "hidden" / "launch-other"
    other.mkdir(parents=True, mode=0o700)
    other.parent.chmod(0o700)
    if sign is not None:
        line = b"%08x %s\n" % (zlib.crc32(sign), sign) if sign else b""
        (other / "rank.0").write_bytes(line)
    meet_and_part(other.parent)
    assert other.is_dir()
    assert [path.name for path in other.parent.iterdir()] == ["launch-other"]
