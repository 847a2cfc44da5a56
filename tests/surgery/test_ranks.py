"""What comes out is the same, to the byte, however many ranks have made it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hf_folders import make_folder
from pico import even, make_checkpoint
from pico_dist import make_dist_checkpoint
from pico_model import CONFIGS
from ranks_of import in_threads
from sampling import sample

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import encode
from flmgrow.formats.opening import open_checkpoint
from flmgrow.operators.target import Target, parse_methods
from flmgrow.storage.world import World
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import FileRequest, LayoutRequest
from flmgrow.surgery.plan import GrowthPlan, make_plan
from flmgrow.surgery.requests import Files, plan_import_of, plan_layout_of
from flmgrow.surgery.shards import chosen_shards, shards_of

Planned = Callable[[Checkpoint], GrowthPlan]

GROWN = Target(hidden=24, layers=6, ffn=34, methods=parse_methods("width=copy,depth=zero,ffn=mask"))


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def grown(form: str | None = None, version: str | None = None) -> Planned:
    files = FileRequest(format=form, torch_dist_version=version)
    return lambda source: make_plan(source, GROWN, LayoutRequest(tp=2, pp=2), files)


def hf(source: Checkpoint) -> GrowthPlan:
    zero = Target(layers=6, ffn=33, methods=parse_methods("zero"))
    files = Files(format="huggingface", shard_size=4096).request(source)
    return make_plan(source, zero, LayoutRequest(), files)


def laid_out(source: Checkpoint) -> GrowthPlan:
    return plan_layout_of(source, LayoutRequest(tp=1, pp=4))


def imported(source: Checkpoint) -> GrowthPlan:
    return plan_import_of(source, LayoutRequest(tp=2), Files(format="torch_dist"))


def exported(source: Checkpoint) -> GrowthPlan:
    return plan_layout_of(source, LayoutRequest(), Files(format="huggingface", shard_size=4096))


def legacy(path: Path) -> Path:
    return make_checkpoint(path / "a", "llama", even(CONFIGS["llama"], tp=2), optimizer=True)


def dist(path: Path) -> Path:
    return make_dist_checkpoint(path, "llama", 2)


def hugging(path: Path) -> Path:
    return make_folder(path / "hf", shards=2)


CASES: dict[str, tuple[Callable[[Path], Path], Planned]] = {
    "expand": (legacy, grown()),
    "expand to torch_dist": (legacy, grown("torch_dist")),
    "expand torch_dist": (dist, grown(version="0.19")),
    "expand to huggingface": (legacy, hf),
    "reshard": (legacy, laid_out),
    "import": (hugging, imported),
    "export": (dist, exported),
}


def run(source: Path, plan: Planned, out: Path, world: World, **how: Any) -> Any:
    with open_checkpoint(source) as opened:
        execution = Execution(workers=2, world=world, **how)
        return Executor(plan(opened), execution).run(out)


@pytest.mark.parametrize("case", sample(CASES, "expand", "expand torch_dist", "export"))
def test_any_number_of_ranks_writes_the_same_bytes(case: str, tmp_path: Path) -> None:
    make, plan = CASES[case]
    source = make(tmp_path)
    alone = run(source, plan, tmp_path / "1", World())
    wanted = tree(tmp_path / "1")
    for size in (2, 3, 4):
        out = tmp_path / str(size)
        manifests = in_threads(size, partial(run, source, plan, out))
        assert tree(out) == wanted
        assert [encode(manifest) for manifest in manifests] == [encode(alone)] * size
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_progress_is_that_of_all(tmp_path: Path) -> None:
    source, told = legacy(tmp_path), dict[int, list[int]]()

    def work(world: World) -> Any:
        told[world.rank] = []
        return run(source, laid_out, tmp_path / "out", world, progress=told[world.rank].append)

    in_threads(2, work)
    with open_checkpoint(source) as opened:
        total = laid_out(opened).total_bytes
    assert sum(told[0]) == total
    assert 0 < sum(told[1]) < total


def test_a_damaged_source_is_told_of_once_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = legacy(tmp_path)
    write = Executor._write

    def refuse(self: Executor, *arguments: Any) -> None:
        if self.execution.world.rank == 1:
            raise BadCheckpointError("FILE: TENSOR: damaged")
        write(self, *arguments)

    monkeypatch.setattr(Executor, "_write", refuse)
    errors = in_threads(3, lambda world: run(source, laid_out, tmp_path / "out", world))
    assert [type(error) for error in errors] == [BadCheckpointError] * 3
    assert str(errors[0]) == "rank 1: FILE: TENSOR: damaged"
    assert [error.told for error in errors] == [False, True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_some_shards_may_be_written_first(size: int, tmp_path: Path) -> None:
    source, plan, out = legacy(tmp_path), grown("torch_dist"), tmp_path / "out"
    run(source, plan, tmp_path / "whole", World())

    def some(world: World) -> list[str]:
        with open_checkpoint(source) as opened:
            made = plan(opened)
            chosen = chosen_shards(made, "1,0")
            records = Executor(made, Execution(world=world)).write_some(out, chosen)
        return [record.path for record in records]

    found = in_threads(size, some)
    assert found == [found[0]] * size
    assert len(found[0]) == 2
    assert not out.exists()
    data = tmp_path / ".out.flmgrow" / "data"
    inodes = {path: (data / path).stat().st_ino for path in found[0]}
    assert {path: (data / path).read_bytes() for path in found[0]} == {
        path: (tmp_path / "whole" / path).read_bytes() for path in found[0]
    }
    in_threads(3, lambda world: run(source, plan, out, world))
    assert tree(out) == tree(tmp_path / "whole")
    assert {path: (out / path).stat().st_ino for path in found[0]} == inodes


def test_a_run_of_many_ranks_is_found(tmp_path: Path) -> None:
    source = legacy(tmp_path)
    in_threads(2, lambda world: run(source, laid_out, tmp_path / "out", world))

    def found(world: World) -> Any:
        with open_checkpoint(source) as opened:
            execution = replace(Execution(), world=world)
            return Executor(laid_out(opened), execution).found(tmp_path / "out")

    first, second = in_threads(2, found)
    assert encode(first) == encode(second)


def test_shards_are_named_by_number_file_or_folder(tmp_path: Path) -> None:
    with open_checkpoint(legacy(tmp_path)) as opened:
        plan = make_plan(opened, GROWN, LayoutRequest(tp=2, pp=2))
        shards = shards_of(plan)
        assert len(shards) == 4
        assert chosen_shards(plan, "0-1, 3") == [shards[0], shards[1], shards[3]]
        assert chosen_shards(plan, "mp_rank_01_*") == shards[2:]
        assert chosen_shards(plan, shards[1].path) == [shards[1]]
