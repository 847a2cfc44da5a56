"""Results in an object store that several ranks write: the bytes that one writes, and as safe."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, refused
from object_store import ObjectStore, one_of_each
from object_stores import THOROUGH_STORES
from ranks_of import ended, in_threads, start
from remote_results import (
    check_complete,
    check_incomplete,
    files_of,
    objects_of,
    served_in_small_parts,
)

from flmgrow.errors import LostRankError, StorageError
from flmgrow.formats.opening import open_checkpoint
from flmgrow.storage.outputs import named_output
from flmgrow.storage.world import World
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.requests import Files, plan_layout_of

SHARDS = LayoutRequest(tp=2, pp=2)
HOLD = """
import time
from flmgrow.storage.remote import writing
put = writing.NewRemoteObject.finish
def slow(self):
    time.sleep(120)
    put(self)
writing.NewRemoteObject.finish = slow
"""
"""A rank whose uploads do not come to an end."""


@pytest.fixture(scope="module", params=THOROUGH_STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with served_in_small_parts(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return one_of_each(tmp_path_factory.mktemp("sources"))


def written(source: Path, form: str, out: Path, world: World) -> Any:
    with open_checkpoint(source) as opened:
        files = Files(format=form, shard_size=4096)
        layout = LayoutRequest() if form == "huggingface" else SHARDS
        plan = plan_layout_of(opened, layout, files)
        return Executor(plan, Execution(workers=1, world=world)).run(out)


@pytest.mark.parametrize("form", ["megatron", "torch_dist", "huggingface"])
def test_any_number_of_ranks_writes_the_same_bytes(
    form: str, remote: ObjectStore, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["legacy"]
    written(source, form, tmp_path / "out", World())
    wanted = files_of(tmp_path / "out")
    for size in (1, 2, 3):
        key = f"{form}/{size}/out"
        out = named_output(Path(remote.address(key)))
        made = in_threads(size, partial(written, source, form, out))
        assert [type(each).__name__ for each in made] == ["Manifest"] * size
        check_complete(remote, key, wanted)


def test_each_uploads_its_own(remote: ObjectStore, sources: dict[str, Path]) -> None:
    """Else the test above would pass if one of them did all."""
    wrote: dict[int, int] = {}

    def work(world: World) -> Any:
        told: list[int] = []
        with open_checkpoint(sources["legacy"]) as opened:
            executor = Executor(plan_layout_of(opened, SHARDS), Execution(world=world))
            write = executor._write

            def noted(*given: Any) -> None:
                told.append(1)
                write(*given)

            vars(executor)["_write"] = noted
            executor.run(named_output(Path(remote.address("shared/out"))))
        wrote[world.rank] = len(told)

    in_threads(2, work)
    assert wrote == {0: 2, 1: 2}


def test_another_number_of_ranks_resumes(
    remote: ObjectStore, sources: dict[str, Path], tmp_path: Path
) -> None:
    source, key = sources["legacy"], "resumed/out"
    out = named_output(Path(remote.address(key)))

    def stopped(world: World) -> Any:
        with open_checkpoint(source) as opened:
            plan = plan_layout_of(opened, SHARDS)
            executor = Executor(plan, Execution(world=world))
            write, count = executor._write, iter(range(9))

            def once(*given: Any) -> None:
                if world.rank == 1 and next(count):
                    raise StorageError("stopped here")
                write(*given)

            vars(executor)["_write"] = once
            return executor.run(out)

    failed = in_threads(2, stopped)
    assert ["stopped here" in str(error) for error in failed] == [True, True]
    check_incomplete(remote, key, tmp_path)
    noted = remote.keys(f"{key}/.flmgrow/journal/")
    assert noted
    begin = len(remote.requests)
    again = in_threads(3, partial(_laid_out, source, out))
    assert [type(each).__name__ for each in again] == ["Manifest"] * 3
    written_anew = {each for each in remote.requests[begin:] if "mp_rank" in each and "PUT" in each}
    assert len({each.split("?")[0] for each in written_anew}) == 4 - len(noted)
    _laid_out(source, tmp_path / "out", World())
    check_complete(remote, key, files_of(tmp_path / "out"), uploads=True)


def _laid_out(source: Path, out: Path, world: World) -> Any:
    with open_checkpoint(source) as opened:
        return Executor(plan_layout_of(opened, SHARDS), Execution(world=world)).run(out)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.slow
def test_a_killed_rank_leaves_a_run_that_resumes(
    lost: int, remote: ObjectStore, sources: dict[str, Path], tmp_path: Path
) -> None:
    key = f"killed/{lost}/out"
    sizes = ("--tp", "2", "--pp", "2")
    out = remote.address(key)
    command = ("reshard", sources["legacy"], out, *sizes, "--rank-timeout", "60")
    launch = f"killed {lost}"
    runs = [
        start(rank, 2, command, launch, program=HOLD if rank == lost else "") for rank in range(2)
    ]
    until = time.monotonic() + 60
    while not remote.keys(f"{key}/.flmgrow/journal/") and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(runs[lost].pid, signal.SIGKILL)
    (code, _, err) = ended(runs)[1 - lost]
    assert code == LostRankError.exit_code
    assert f"rank {lost}: has ended" in err
    check_incomplete(remote, key, tmp_path)
    runs = [start(rank, 3, command, f"{launch} again") for rank in range(3)]
    assert [code for code, _, _ in ended(runs)] == [0, 0, 0]
    accepted("reshard", sources["legacy"], tmp_path / "out", *sizes)
    check_complete(remote, key, files_of(tmp_path / "out"), uploads=True)


@pytest.mark.slow
def test_ranks_of_several_machines_want_a_place_to_meet(
    sources: dict[str, Path],
    remote: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLMGROW_WORLD_SIZE", "2")
    monkeypatch.setenv("FLMGROW_RANK", "0")
    address = remote.address("machines/out")
    command = ("reshard", sources["legacy"], address, "--tp", "2")
    pattern = "ranks of several machines cannot meet.*--scratch names"
    refused(2, pattern, *command, place=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLMGROW_WORLD_SIZE")
        patch.delenv("FLMGROW_RANK")
        scratch = ("--scratch", tmp_path)
        runs = [start(rank, 2, (*command, *scratch), "machines") for rank in range(2)]
        assert [code for code, _, _ in ended(runs)] == [0, 0]
    assert ".flmgrow/complete" in objects_of(remote, "machines/out")
    assert list(tmp_path.iterdir()) == []
