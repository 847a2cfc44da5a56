"""Commands whose ranks are processes: one speaks, all end alike, and what is lost is resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import accepted, check_lines, flmgrow
from pico import make_checkpoint
from ranks_of import ended, start
from sampling import first

GROWTH = ("--ffn-hidden-size", 32, "--num-layers", 6, "--method", "zero", "--tp", 4, "--pp", 2)

KILLED_AT_THE_SECOND_FILE = """
import os, signal
from flmgrow.surgery.execute import Executor
write, files = Executor._write, []
def counted(self, *arguments):
    files.append(arguments)
    if len(files) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *arguments)
Executor._write = counted
"""


STOPPED_AT_THE_SECOND_FILE = KILLED_AT_THE_SECOND_FILE.replace("SIGKILL", "SIGTERM")


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "src", "llama")


def test_a_killed_rank_ends_all_and_another_number_of_ranks_resumes(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("expand", source, out, *GROWTH)
    programs = ["", KILLED_AT_THE_SECOND_FILE, ""]
    first, killed, other = ended(
        [start(rank, 3, command, program=program) for rank, program in enumerate(programs)]
    )
    assert (first[0], killed[0], other[0]) == (8, -9, 8)
    check_lines(first[2], r"error: rank 1: has ended\nhint: run the same command again, with any")
    assert first[1] == other[1] == other[2] == ""
    done = list((tmp_path / ".out.flmgrow" / "data").rglob("*.pt"))
    assert 1 <= len(done) < 8
    inodes = {path.parent.name: path.stat().st_ino for path in done}
    first, other = ended([start(rank, 2, command, "two") for rank in range(2)])
    assert (first[0], other[0]) == (0, 0), (first, other)
    assert first[1].startswith("wrote")
    assert other[1] == other[2] == ""
    assert first[2].splitlines()[0] == "note: 2 ranks, started by FLMGROW_RANK, share the work"
    found = {path.parent.name: path.stat().st_ino for path in out.rglob("*.pt")}
    assert inodes.items() <= found.items()
    accepted("expand", source, tmp_path / "alone", *GROWTH)
    assert tree(out) == tree(tmp_path / "alone")
    assert not (tmp_path / ".out.flmgrow").exists()


def test_a_killed_rank_0_is_told_of_by_another(source: Path, tmp_path: Path) -> None:
    command = ("expand", source, tmp_path / "out", *GROWTH)
    programs = [KILLED_AT_THE_SECOND_FILE, "", ""]
    first, *others = ended(
        [start(rank, 3, command, program=program) for rank, program in enumerate(programs)]
    )
    assert first[0] == -9
    assert [code for code, _, _ in others] == [8, 8]
    check_lines(others[0][2], r"^error: rank 0: has ended\nhint: run the same command again")
    assert others[1][2] == ""


@pytest.mark.parametrize("stopped", first(1, [0, 1]))
def test_an_interrupt_of_one_rank_ends_all_and_is_told_once(
    stopped: int, source: Path, tmp_path: Path
) -> None:
    """The next launch has the same name, and finds what this one left where ranks meet."""
    out = tmp_path / "out"
    command = ("expand", source, out, *GROWTH)
    programs = ["", ""]
    programs[stopped] = STOPPED_AT_THE_SECOND_FILE
    ranks = ended([start(rank, 2, command, program=programs[rank]) for rank in range(2)])
    assert [code for code, _, _ in ranks] == ([143, 8] if stopped == 0 else [8, 143])
    told = [line for line in ranks[0][2].splitlines() if not line.startswith("note: ")]
    assert told[0] == ("error: interrupted" if stopped == 0 else "error: rank 1: was interrupted")
    assert told[1].startswith("hint: ")
    assert "resumes" in told[1]
    assert len(told) == 2
    assert ranks[1][1] == ranks[1][2] == ""
    assert not out.exists()
    assert list((tmp_path / ".out.flmgrow").glob("launch-*/rank.*"))
    late = "import time; time.sleep(2)"
    again = ended([start(rank, 2, command, program="" if rank else late) for rank in range(2)])
    assert [code for code, _, _ in again] == [0, 0], again
    accepted("expand", source, tmp_path / "alone", *GROWTH)
    assert tree(out) == tree(tmp_path / "alone")


def test_what_one_rank_meets_before_they_meet_is_told_once(source: Path, tmp_path: Path) -> None:
    sources = [source, tmp_path / "unseen"]
    first, other = ended(
        [
            start(rank, 2, ("reshard", src, tmp_path / "out", "--tp", 2))
            for rank, src in enumerate(sources)
        ]
    )
    assert (first[0], other[0]) == (3, 3)
    check_lines(first[2], f"error: rank 1: {sources[1]}: no such folder")
    assert other[2] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_wrong_option_is_told_once(tmp_path: Path) -> None:
    ranks = [start(rank, 3, ("reshard", "src", tmp_path / "out", "--pt", 2)) for rank in range(3)]
    first, *others = ended(ranks)
    assert [code for code, _, _ in (first, *others)] == [2, 2, 2]
    check_lines(first[2], "error: No such option: --pt")
    assert [told for _, _, told in others] == ["", ""]


def test_a_batch_job_is_no_launch(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    done = accepted("reshard", source, tmp_path / "out", "--tp", 2)
    note = "note: SLURM_NTASKS is 8, but srun did not start this command: one process does all"
    assert done.err.splitlines()[0] == note


def test_some_shards_are_told_of(source: Path, tmp_path: Path) -> None:
    command = ("expand", source, tmp_path / "out", *GROWTH)
    done = accepted(*command, "--only-shards", "0-1,mp_rank_03_*")
    data = tmp_path / ".out.flmgrow" / "data"
    assert "4 of 8 shards" in done.out
    assert str(data) in done.out
    assert len(list(data.rglob("*.pt"))) == 4
    refused = flmgrow(*command, "--only-shards", "8")
    assert refused.code == 2
    check_lines(refused.err, "--only-shards 8: no such shard, there are 8, counted from 0")
    accepted(*command)
    accepted("verify", source, tmp_path / "out")


def test_ranks_verify_as_one_does(source: Path, tmp_path: Path) -> None:
    accepted("expand", source, tmp_path / "out", *GROWTH)
    alone = accepted("verify", source, tmp_path / "out")
    receipt = tree(tmp_path / "out")
    for file in (tmp_path / "out").rglob("flmgrow.json"):
        told = json.loads(file.read_bytes())
        assert (told["receipt"] is None) == (file.parent != tmp_path / "out")
    first, other = ended(
        [start(rank, 2, ("verify", source, tmp_path / "out")) for rank in range(2)]
    )
    assert (first[0], first[1], other) == (0, alone.out, (0, "", ""))
    assert tree(tmp_path / "out") == receipt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


@pytest.mark.slow
def test_torchrun_starts_ranks(source: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3"]
    command = ["--module", "flmgrow", "expand", source, tmp_path / "out", *GROWTH]

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*torchrun, *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert done.stderr.count("note: 3 ranks, started by torchrun") == 1
    accepted("expand", source, tmp_path / "alone", *GROWTH)
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    refused = run(*command, "--tp", 2)
    assert refused.returncode == 1
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {tmp_path / 'out'}: already exists"]
