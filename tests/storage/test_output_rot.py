"""Disks lose bits after a file was finished, and clean-ups fail after the work is done."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import accepted, check_lines, flmgrow, names, stop_after
from damage import contents
from pico import CONFIGS, even, make_checkpoint

from flmgrow.errors import OutputExistsError, StorageError
from flmgrow.storage import durable, output
from flmgrow.storage.durable import AN_HOUR, write_small
from flmgrow.storage.output import OutputFolder

PLAN = {"source": "d41d"}
GROW = ("--ffn-hidden-size", "24", "--method", "copy")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    return tmp_path / ".out.flmgrow"


def write(folder: OutputFolder, name: str, data: bytes) -> None:
    with folder.file(name, len(data)) as file:
        file.write(data)


def rot(path: Path) -> None:
    """Flip a bit, and let nothing but the bytes tell of it."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_finished_file_that_rotted_is_written_again(out: Path, temp: Path) -> None:
    with OutputFolder(out, PLAN) as folder:
        write(folder, "good", b"good" * 1000)
        write(folder, "bad", b"bad!" * 1000)
    rot(temp / "data/bad")
    with OutputFolder(out, PLAN) as folder:
        assert list(folder.finished) == ["good"]
        assert not (temp / "data/bad").exists()
        write(folder, "bad", b"bad!" * 1000)
        assert folder.commit({}) == ""
    assert (out / "bad").read_bytes() == b"bad!" * 1000


def test_what_rots_before_the_commit_is_not_committed(out: Path, temp: Path) -> None:
    with OutputFolder(out, PLAN) as folder:
        write(folder, "file", b"file" * 1000)
        rot(temp / "data/file")
        with pytest.raises(StorageError, match=r"data/file: is not what was written") as caught:
            folder.commit({})
    assert "run the same command again" in caught.value.hint
    assert not out.exists()
    with OutputFolder(out, PLAN) as folder:
        assert folder.finished == {}


def test_the_command_writes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))
    out = tmp_path / "out"

    def stop() -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        stop_after(2, patch, stop)
        assert flmgrow("expand", source, out, *GROW).code == 4
    rot(next((tmp_path / ".out.flmgrow/data").rglob("*.pt")))
    accepted("expand", source, out, *GROW)
    accepted("expand", source, tmp_path / "whole", *GROW)
    assert_alike(out, tmp_path / "whole")


def assert_alike(one: Path, other: Path) -> None:
    for path in one.rglob("*.pt"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_a_half_done_run_without_a_finished_file_is_in_nobodys_way(out: Path) -> None:
    """As when a run was killed before it had anything, and another option is wanted."""
    with OutputFolder(out, {"tp": 1}):
        pass
    with OutputFolder(out, {"tp": 2}) as folder:
        write(folder, "file", b"file")
    with pytest.raises(OutputExistsError, match="another plan: tp: 2 there, 1 here"):
        OutputFolder(out, {"tp": 1})


# --- the end of a run that is done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama")


def test_a_clean_up_that_fails_is_told_and_the_same_command_is_done(
    source: Path, out: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(output, "remove_hidden", lambda _: False)
        outcome = accepted("expand", source, out, *GROW)
    assert f"note: {temp}: could not be removed, and may be; {out} is complete" in outcome.err
    assert temp.exists()
    before = contents(out)
    again = accepted("expand", source, out, *GROW)
    assert "found" in again.out
    assert again.err == ""
    assert contents(out) == before
    assert names(out.parent) == ["out", "source"]


def test_only_what_is_exactly_that_result_counts(source: Path, out: Path) -> None:
    accepted("expand", source, out, *GROW)
    accepted("expand", source, out, *GROW)
    other = flmgrow("expand", source, out, *GROW, "--seed", 3)
    assert other.code == 5
    check_lines(other.err, "out: already exists")
    rot(next(out.rglob("*.pt")))
    damaged = flmgrow("expand", source, out, *GROW)
    assert damaged.code == 5
    check_lines(damaged.err, "out: already exists")


# --- small files that several processes write at once


def test_many_writers_of_one_small_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    begin = threading.Barrier(6)

    def write_some(number: int) -> None:
        begin.wait()
        for _ in range(20):
            write_small(path, b"%d" % number * 1000)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write_some, range(6)))
    assert len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("call", ["rename", "fsync", "write_all", "reserve"])
def test_a_small_file_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    places: dict[str, object] = {"rename": Path, "fsync": os}
    monkeypatch.setattr(places.get(call, durable), call, fail)
    with pytest.raises((StorageError, OSError), match="No space left"):
        write_small(path, b"after")
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file.json"]


def test_parts_of_the_killed_are_removed_in_time(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f"file.json.{n}.part" for n in ("1-0123abcd", "2-0123abcd", "x"))
    for part in (old, new, other):
        part.write_bytes(b"half")
    long_ago = old.stat().st_mtime - AN_HOUR - 1
    for part in (old, other):
        os.utime(part, (long_ago, long_ago))
    write_small(tmp_path / "file.json", b"whole")
    assert names(tmp_path) == ["file.json", new.name, other.name]


def test_a_wrong_clock_removes_nobody_s_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, whose clock is right, is writing it just now."""
    part = tmp_path / "file.json.1-0123abcd.part"
    part.write_bytes(b"half")
    monkeypatch.setattr(time, "time", lambda: part.stat().st_mtime + 2 * AN_HOUR)
    write_small(tmp_path / "file.json", b"whole")
    assert part.exists()
