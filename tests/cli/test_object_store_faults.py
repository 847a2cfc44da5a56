"""Results in an object store, whatever happens on the way: servers fail, runs are killed, two come.

Each kind of request is made to fail: refused, or done and its answer lost; for a while or for good.
In the end the objects are those of a run without faults, or the run has said in one line why not,
and the same command completes it.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome, accepted, check_lines, flmgrow
from object_store import SECRET, ObjectStore
from object_stores import THOROUGH_STORES
from pico import make_checkpoint
from remote_results import (
    MARKER,
    check_complete,
    check_incomplete,
    files_of,
    in_a_process,
    objects_of,
    served_in_small_parts,
    write,
)
from sampling import first, sample

NUMBERS = itertools.count()


@pytest.fixture(scope="module", params=THOROUGH_STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with served_in_small_parts(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "legacy", "llama", dtype="float32")


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    accepted("reshard", source, out, "--tp", "2")
    return files_of(out)


@pytest.fixture(autouse=True)
def _as_it_was(remote: ObjectStore) -> Iterator[None]:
    yield
    remote.faults.clear()


@pytest.fixture
def key() -> str:
    """The key of an output: one for each test, without words that patterns of faults look for."""
    return f"{next(NUMBERS)}/out"


# --- killed, and of two writers


@pytest.mark.parametrize(
    ("kind", "path"),
    first(
        1,
        [
            ("part", "mp_rank_01"),
            ("completion", "mp_rank_01"),
            ("PUT", r"\.flmgrow/complete"),
            ("deletion", ""),
        ],
    ),
)
def test_a_killed_run_resumes_at_once(
    kind: str,
    path: str,
    remote: ObjectStore,
    source: Path,
    wanted: dict[str, bytes],
    key: str,
    tmp_path: Path,
) -> None:
    address = remote.address(key)
    killed: list[subprocess.Popen[str]] = []
    remote.fail(kind, path, status=500, before=lambda: killed[0].kill())
    killed.append(in_a_process(remote, "reshard", source, address, "--tp", "2"))
    killed[0].communicate(timeout=900)
    assert killed[0].returncode == -signal.SIGKILL
    if kind != "deletion":
        check_incomplete(remote, key, tmp_path)
    begin = len(remote.requests)
    assert write(remote, source, key).code == 0
    assert not any(re.match("PUT.*mp_rank_00", each) for each in remote.requests[begin:])
    found = objects_of(remote, key)
    assert json.loads(found.pop(MARKER))["files"] == len(wanted)
    assert found == wanted


@pytest.mark.parametrize(("kind", "path"), first(1, [("PUT", "mp_rank_01"), ("list", "")]))
def test_an_interrupt_is_answered_while_the_server_hangs(
    kind: str, path: str, remote: ObjectStore, source: Path, wanted: dict[str, bytes], key: str
) -> None:
    reached, over = threading.Event(), threading.Event()

    def hang() -> None:
        reached.set()
        over.wait(300)

    remote.fail(kind, path, before=hang)
    run = in_a_process(remote, "reshard", source, remote.address(key), "--tp", "2")
    try:
        assert reached.wait(300)
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=900)[1]  # 2 seconds are given to the tidying up
    finally:
        over.set()
    assert run.returncode == 130
    assert "error: interrupted" in err
    assert write(remote, source, key).code == 0
    found = objects_of(remote, key)
    assert json.loads(found.pop(MARKER))["files"] == len(wanted)
    assert found == wanted


@pytest.mark.slow
def test_of_two_writers_one_wins(
    remote: ObjectStore, source: Path, wanted: dict[str, bytes], key: str
) -> None:
    command = ("reshard", source, remote.address(key), "--tp", "2")
    runs = [in_a_process(remote, *command) for _ in range(2)]
    told = sorted((run.communicate(timeout=900)[1], run.returncode) for run in runs)
    codes = sorted(code for _, code in told)
    assert codes in ([0, 5], [0, 0]), told  # who comes when the other is done finds it
    for err, code in told:
        if code == 5:
            check_lines(err, r"another run \(pid \d+ on .*\) is writing it|already exists")
    check_complete(remote, key, wanted)


def test_a_second_writer_loses_while_the_first_is_at_it(
    remote: ObjectStore, source: Path, wanted: dict[str, bytes], key: str
) -> None:
    command = ("reshard", source, remote.address(key), "--tp", "2")
    seconds: list[Outcome] = []

    def second() -> None:
        if not seconds:
            run = in_a_process(remote, *command)
            err = run.communicate(timeout=900)[1]
            seconds.append(Outcome(run.returncode, "", err))

    remote.fail("PUT", "mp_rank_01", before=second)
    accepted(*command)
    assert seconds[0].code == 5
    check_lines(seconds[0].err, rf"another run \(pid {os.getpid()} on ")
    check_complete(remote, key, wanted)


def test_a_run_whose_lease_is_lost_stops_and_deletes_nothing(
    remote: ObjectStore, source: Path, key: str
) -> None:
    lease = f"{key}/.flmgrow/lease"
    other = json.dumps({"holder": "another", "pid": 1, "host": "elsewhere"}).encode()
    remote.fail("PUT", "flmgrow.json", before=lambda: remote.put(lease, other))
    outcome = write(remote, source, key)
    assert outcome.code == 5
    check_lines(outcome.err, "another run has begun to write it")
    found = objects_of(remote, key)
    assert found[".flmgrow/lease"] == other
    assert MARKER not in found
    assert "iter_0000030/mp_rank_00/model_optim_rng.pt" in found


# --- what the server does

KINDS = [
    ("list", ""),
    ("PUT", "lease"),
    ("GET", "lease"),
    ("PUT", "plan.json"),
    ("begin", "mp_rank_00"),
    ("part", "mp_rank_00"),
    ("completion", "mp_rank_00"),
    ("HEAD", "mp_rank_00"),
    ("PUT", "journal"),
    ("PUT", "tracker|latest"),
    ("PUT", "flmgrow.json"),
    ("PUT", "complete"),
    ("deletion", ""),
]
A_FEW = [("PUT", "lease"), ("completion", "mp_rank_00"), ("PUT", "complete")]


def skip_what_is_not_asked(remote: ObjectStore, kind: str) -> None:
    if kind.islower() and kind not in remote.KINDS:
        pytest.skip(f"{remote.SCHEME}:// has no such request")


@pytest.mark.parametrize("late", sample([False, True], True))
@pytest.mark.parametrize(("kind", "path"), sample(KINDS, *A_FEW))
def test_what_passes_is_waited_for(
    kind: str,
    path: str,
    late: bool,
    remote: ObjectStore,
    source: Path,
    wanted: dict[str, bytes],
    key: str,
) -> None:
    skip_what_is_not_asked(remote, kind)
    times = 1 if kind == "deletion" else 2  # there is little patience with what may be left undone
    remote.fail(kind, path, status=503, times=times, late=late)
    outcome = write(remote, source, key)
    assert (outcome.code, outcome.err) == (0, "note: left out: rng_state\n")
    assert remote.faults[0].times == 0
    lost = late and kind == "begin"  # the number of an upload that has begun
    check_complete(remote, key, wanted, uploads=lost)


@pytest.mark.parametrize("status", sample([500, 403], 500))
@pytest.mark.parametrize(("kind", "path"), sample(KINDS, *A_FEW))
def test_what_does_not_pass_is_one_line_and_resumed(
    kind: str,
    path: str,
    status: int,
    remote: ObjectStore,
    source: Path,
    wanted: dict[str, bytes],
    key: str,
) -> None:
    skip_what_is_not_asked(remote, kind)
    remote.fail(kind, path, status=status, times=1000)
    outcome = write(remote, source, key)
    assert SECRET not in outcome.err
    assert "Signature" not in outcome.err
    tidying = kind == "deletion"
    assert outcome.code == (0 if tidying else 4), outcome
    if tidying:
        assert re.search(r"note: .*\.flmgrow: holds leftovers", outcome.err)
    else:
        check_lines(outcome.err, rf"{remote.address(key)}.* failed: ")
        assert MARKER not in objects_of(remote, key)
    remote.faults.clear()
    assert write(remote, source, key).code == 0
    check_complete(remote, key, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["refused", "done all the same"])
def test_a_run_that_loses_its_server_at_any_request_is_resumed(
    late: bool, remote: ObjectStore, source: Path, wanted: dict[str, bytes], key: str
) -> None:
    """As a kill at that moment is for the store; of all requests, one run after the other."""
    codes: list[int] = []
    while not codes or codes[-1]:
        own = f"{key}/{len(codes)}"
        remote.most, remote.late = len(remote.requests) + len(codes) + 1, late
        try:
            codes.append(write(remote, source, own).code)
        finally:
            remote.most = None
        if MARKER not in objects_of(remote, own):
            assert flmgrow("inspect", remote.address(own)).code == 3
        assert write(remote, source, own).code == 0
        found = objects_of(remote, own)
        assert json.loads(found.pop(MARKER))["files"] == len(wanted)
        assert found == wanted
    assert len(codes) > 20
    assert set(codes[:-1]) == {4}
