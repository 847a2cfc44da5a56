"""Every call that changes the disk is made to fail, one at a time, and the promises are checked:

1. the output is absent, or complete and undamaged;
2. the source is as it was;
3. the same command again gives the same bytes, or finds the output complete;
4. nothing but the output is left then;
5. a failure is one line that says how to go on; a failed fsync is never a success.

The same check must catch protocols with a mistake in them, else it would prove nothing.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sampling import sample

from flmgrow.errors import FlmgrowError
from flmgrow.storage.checksums import FileRecord, verify_files

TOY = Path(__file__).with_name("toy_writer.py")
SYNCS = ("fsync", "fdatasync")
CALLS = "open pwrite close rename mkdir unlink rmdir ftruncate flock fallocate renameat2"
DEATHS = ("KILL", "TORN", "BYTES", "POWER")  # the last two: a power cut, see the toy
FAULTS = ("KILL", "BYTES", "POWER", "EIO", "ENOSPC", "EINTR")
SOURCE = random.Random(1).randbytes(60_000)
Reply = dict[str, Any]


class Toy:
    """The toy program, kept running; `folder` holds the source and the outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.write_bytes(SOURCE)
        self.cases = folder / "cases"
        self.process = subprocess.Popen(
            [sys.executable, TOY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.reference: dict[str, bytes] = {}

    def run(self, out: Path, **options: object) -> Reply:
        return self.run_many(out, **options)[0]

    def run_many(self, out: Path, **options: object) -> list[Reply]:
        request = {"source": str(self.source), "out": str(out), **options}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        replies: list[Reply] = json.loads(self.process.stdout.readline())
        return replies

    def new_case(self) -> Path:
        shutil.rmtree(self.cases, ignore_errors=True)
        self.cases.mkdir()
        return self.cases / "out"


@pytest.fixture(scope="module")
def toy() -> Iterator[Toy]:
    memory = Path("/dev/shm")
    fast = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        toy = Toy(Path(folder))
        with toy.process:
            out = toy.new_case()
            assert toy.run(out)["code"] == 0
            toy.reference = tree(out)
            yield toy


def tree(folder: Path) -> dict[str, bytes]:
    found = sorted(each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in found}


def damage(out: Path) -> str:
    """What is wrong with a visible output, by its own manifest."""
    try:
        records = [FileRecord(**each) for each in json.loads((out / "flmgrow.json").read_bytes())]
        verify_files(out, records)
    except (OSError, ValueError, FlmgrowError) as error:
        return f"visible but {error}"
    listed = {each.path for each in records} | {"flmgrow.json"}
    return "" if listed == tree(out).keys() and len(listed) == 4 else "visible, other files"


def after_failure(toy: Toy, out: Path, reply: Reply) -> Iterator[str]:
    """The promises that are broken right after a run that failed or was killed."""
    if out.exists() and (what := damage(out)):
        yield what
    if toy.source.read_bytes() != SOURCE:
        yield "the source was changed"
    if reply["code"] == 0 and not out.exists():
        yield "success without an output"
    if reply["code"] not in (0, 4, -9):
        yield f"ended with {reply['code']} {reply['errors']}"
    if reply["code"] == 4:
        errors = reply["errors"]
        if len(errors) != 1 or not errors[0].startswith(f"flmgrow: error: {toy.folder}/"):
            yield f"not one line naming the file: {errors}"
        if not out.exists() and "same command again: it resumes" not in errors[0]:
            yield f"does not say how to go on: {errors}"


def after_resuming(toy: Toy, out: Path, **options: object) -> Iterator[str]:
    """The promises that are broken when the same command is given again, undisturbed."""
    visible = out.exists()
    again = toy.run(out, **options)
    if again["code"] != (5 if visible else 0):
        yield f"the same command again ended with {again['code']} {again['errors']}"
    if tree(out) != toy.reference:
        yield "the result differs"
    if left := {each.name for each in out.parent.iterdir()} - {"out"}:
        yield f"left behind: {left}"


def sweep(toy: Toy, kind: str, what: str, variant: str = "good") -> tuple[int, list[str]]:
    """Fail the first, second, ... call of a kind, until a run makes no such call any more."""
    broken: list[str] = []
    for nth in range(1, 1000):
        out = toy.new_case()
        reply = toy.run(out, kind=kind, nth=nth, what=what, variant=variant)
        if reply["code"] == 0 and reply["counts"].get(kind, 0) < nth:
            return nth - 1, broken
        visible = out.exists()
        found = [*after_failure(toy, out, reply), *after_resuming(toy, out, variant=variant)]
        if what in DEATHS and reply["code"] != -9:
            found.append(f"did not die: {reply['errors']}")
        if kind == "exit" and not visible:
            found.append("a success is gone after a power cut")
        if kind in SYNCS and reply["code"] == 0:
            found.append("a failed fsync was called a success")
        broken += [f"{kind} {nth} {what}: {each}" for each in found]
    raise AssertionError("no end")


@pytest.mark.parametrize("what", sample(FAULTS, "KILL", "EIO"))
@pytest.mark.parametrize("kind", [*CALLS.split(), *SYNCS])
def test_any_call_may_fail(toy: Toy, kind: str, what: str) -> None:
    count, broken = sweep(toy, kind, what)
    assert count > 0
    assert broken == []


def test_a_power_cut_after_the_end_loses_nothing(toy: Toy) -> None:
    assert sweep(toy, "exit", "POWER") == (1, [])


def test_a_torn_write_is_written_again(toy: Toy) -> None:
    count, broken = sweep(toy, "pwrite", "TORN")
    assert count > 8
    assert broken == []


@pytest.mark.parametrize(
    ("variant", "kind", "what", "symptom"),
    [
        ("write_in_place", "pwrite", "KILL", "visible but"),
        ("rename_early", "pwrite", "KILL", "visible but"),
        ("rename_early", "rename", "EIO", "visible but"),
        ("trust_any_size", "pwrite", "KILL", "the result differs"),
        ("ignore_fsync", "fsync", "EIO", "called a success"),
        ("ignore_fdatasync", "fdatasync", "EIO", "called a success"),
        ("never_fsync", "unlink", "BYTES", "visible but"),
        ("never_fsync", "exit", "POWER", "success is gone"),
    ],
)
def test_a_broken_protocol_is_caught(
    toy: Toy, variant: str, kind: str, what: str, symptom: str
) -> None:
    _, broken = sweep(toy, kind, what, variant)
    assert any(symptom in each for each in broken)


def test_chains_of_kills_end_well(toy: Toy) -> None:
    chance = random.Random(2)
    resumed = 0
    for _ in range(60):
        out = toy.new_case()
        for _ in range(6):
            kind = chance.choice(["pwrite", "fsync", "rename", "open", "unlink"])
            fault = {"kind": kind, "nth": chance.randint(1, 12), "what": "KILL"}
            reply = toy.run(out, **fault)
            if out.exists():
                break
            assert list(after_failure(toy, out, reply)) == []
            resumed += 1
        assert list(after_resuming(toy, out)) == []
    assert resumed > 100


def stop_at_the_tracker(toy: Toy, what: str, **options: object) -> Path:
    """Leave a run that finished all but its last file."""
    trace = toy.run(toy.new_case())["trace"]
    end = [name for _, name in trace].index("latest_checkpointed_iteration.txt.part")
    nth = sum(kind == "pwrite" for kind, _ in trace[:end]) + 1
    out = toy.new_case()
    assert toy.run(out, kind="pwrite", nth=nth, what=what, **options)["code"] == -9
    return out


@pytest.mark.parametrize("what", ["KILL", "POWER"])
def test_resuming_keeps_the_finished_files(toy: Toy, what: str) -> None:
    out = stop_at_the_tracker(toy, what)
    again = toy.run(out)
    assert again["code"] == 0
    assert ["pwrite", "model_optim_rng.pt.part"] not in again["trace"]


@pytest.mark.parametrize("what", ["KILL", "POWER"])
@pytest.mark.parametrize("kind", ["unlink", "rmdir", "fsync", "rename", "mkdir"])
def test_a_restart_that_dies_mixes_nothing(toy: Toy, kind: str, what: str) -> None:
    other = toy.folder / "other"
    other.write_bytes(SOURCE[::-1])
    for nth in range(1, 9):
        out = stop_at_the_tracker(toy, "KILL", source=str(other))
        toy.run(out, restart=True, kind=kind, nth=nth, what=what)
        again = toy.run(out)
        if again["code"] == 5 and not out.exists():
            assert "holds a half-done run of another plan: source" in again["errors"][0]
            assert toy.run(out, restart=True)["code"] == 0
        assert tree(out) == toy.reference


def test_a_limit_on_the_size_of_files(toy: Toy) -> None:
    out = toy.new_case()
    reply = toy.run(out, limit=20_000)
    assert reply["code"] == 4
    assert "model_optim_rng.pt.part: reserving 30000 bytes failed: File too" in reply["errors"][0]
    assert "ulimit -f" in reply["errors"][0]
    assert list(after_failure(toy, out, reply)) == []
    assert list(after_resuming(toy, out)) == []


def test_of_eight_runs_at_once_one_succeeds(toy: Toy) -> None:
    for _ in range(5):
        out = toy.new_case()
        replies = toy.run_many(out, times=8, pause=0.005)
        assert sorted(each["code"] for each in replies) == [0] + [5] * 7
        winner = next(each["pid"] for each in replies if each["code"] == 0)
        losers = [each["errors"][0] for each in replies if each["code"] == 5]
        others = [each for each in losers if f"another run (pid {winner} on " not in each]
        assert all("already exists" in each or "just finishing" in each for each in others)
        assert damage(out) == ""
        assert list(after_resuming(toy, out)) == []


def test_each_step_waits_for_the_one_before(toy: Toy) -> None:
    """A power cut forgets what was not fsynced, so the order of the calls is the protocol."""
    trace = [tuple(each) for each in toy.run(toy.new_case())["trace"]]
    assert sum(call == "fdatasync" for call, _ in trace) == 6  # by the threads behind two writers
    trace = [each for each in trace if each[0] not in ("open", "close", "mkdir", "fdatasync")]
    trace = [(call, re.sub(r"\.\d+-\w{8}\.part", ".part", name)) for call, name in trace]
    first = trace.index(("pwrite", "model_optim_rng.pt.part"))
    part, folder = "model_optim_rng.pt.part", "mp_rank_00_000"
    assert trace[first - 2 : first + 8] == [
        ("unlink", part),
        ("fallocate", part),
        *[("pwrite", part)] * 3,
        ("fsync", part),
        ("rename", part),
        ("fsync", folder),
        ("pwrite", "journal"),
        ("fsync", "journal"),
    ]
    last = trace.index(("rename", "flmgrow.json.part"))
    assert trace[last - 1] == ("fsync", "flmgrow.json.part")
    assert set(trace[last + 1 : last + 6]) == {
        ("fsync", each) for each in ("data", "iter_0000004", "mp_rank_00_000", "mp_rank_01_000")
    }
    assert trace[last + 6 :] == [
        ("renameat2", "data"),
        ("fsync", "cases"),
        ("unlink", "journal"),
        ("unlink", "plan.json"),
        ("unlink", "lock"),
        ("rmdir", ".out.flmgrow"),
    ]
