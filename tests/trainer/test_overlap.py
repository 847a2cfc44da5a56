"""Gradients that are summed over replicas while others are still computed are the same gradients,
and weights that are brought together while layers compute the same weights.

A tiny model fits into one bucket of gradients, and nothing overlaps there. So this file, run as a
script, is a rank of a stage whose buckets are small.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optimizer_states import states
from stage_runs import (
    MODEL,
    STEPS,
    environment,
    make_data,
    metrics,
    saved,
    stage_data,
    train,
    write_stage,
)

from flmgrow.formats.history.training_file import TRAINING
from flmgrow.storage.content_sum import SUM

BUCKET = 3000
"""Parameters, of about 30,000."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2},
    "dp2 distributed": {"dp": 2, "distributed_optimizer": True},
    "dp2 vpp2": {"dp": 2, "pp": 2, "vpp": 2, "distributed_optimizer": True},
}


def run_as_script() -> int:
    """Run one rank of a stage file, and print how many buckets it has."""
    from flmgrow.trainer import __main__, components

    def counted(*given: Any, **settings: Any) -> Any:
        model = honest(*given, **settings)
        count = sum(len(buffer.buckets) for buffer in model.buffers)
        sys.stdout.write(f"buckets {count}\n")
        if "UNFINISHED" in os.environ:
            model.finish_grad_sync = lambda *_, **__: None
        return model

    used = vars(components)
    honest = used["DistributedDataParallel"]
    used["DistributedDataParallel"] = counted
    kind = "DistributedDataParallelConfig"
    used[kind] = partial(used[kind], bucket_size=BUCKET)
    return __main__.main()


def stage_of(folder: Path, layout: dict[str, Any], overlaps: bool) -> Path:
    data = folder / "data"
    if not data.exists():
        make_data(data)
    # Unclipped: the norm is a sum over shards, in another order where there are more of them.
    changes = {"optimizer": {"clip_grad": 0}, "model": {**MODEL, "num_layers": 4}}
    layout = {**layout, "overlap_grad_reduce": overlaps}
    layout["overlap_param_gather"] = overlaps and bool(layout.get("distributed_optimizer"))
    return write_stage(folder / str(overlaps), stage_data(data, layout=layout, **changes))


def run_with_small_buckets(
    stage: Path, ranks: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    own = {"PYTHONPATH": str(Path(__file__).parents[1] / "support"), **variables}
    return subprocess.run(
        [*words, f"--nproc-per-node={ranks}", __file__, str(stage)],
        env={**environment(), **own}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def without_sums(content: bytes) -> dict[str, Any]:
    """A training state without what it says of the files beside it, and of itself."""
    state: dict[str, Any] = json.loads(content)
    return {name: value for name, value in state.items() if name not in ("files", SUM)}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_overlapping_changes_nothing(name: str, tmp_path: Path) -> None:
    plain, overlapped = (stage_of(tmp_path, LAYOUTS[name], overlaps) for overlaps in (False, True))
    train(plain)
    done = run_with_small_buckets(overlapped, 2 * LAYOUTS[name].get("pp", 1))
    assert done.returncode == 0, done.stderr
    assert max(int(line.split()[1]) for line in done.stdout.splitlines()) > 2
    wanted, found = metrics(plain), metrics(overlapped)
    assert [record["loss"] for record in found] == [record["loss"] for record in wanted]
    norms = [record["grad_norm"] for record in wanted]
    assert [record["grad_norm"] for record in found] == pytest.approx(norms, rel=1e-6)
    assert len(norms) == STEPS
    one, other = saved(plain, STEPS), saved(overlapped, STEPS)
    assert without_sums(one[TRAINING]) == without_sums(other[TRAINING])
    # The arguments of the run, and sums of all files, tell of the setting itself; buckets decide on
    # which replica writes what.
    written = {path for path in one.keys() | other.keys() if path.endswith(".distcp")}
    differing = {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}
    assert differing - written <= {"common.pt", "integrity.json", TRAINING, ".metadata"}
    both = [states(stage.parent / "checkpoints") for stage in (plain, overlapped)]
    tensors = [{(s, n): v.tobytes() for s in each for n, v in each[s].items()} for each in both]
    assert tensors[0] == tensors[1]


@pytest.mark.long
@pytest.mark.slow
def test_sums_that_nobody_waits_for_do_not_pass(tmp_path: Path) -> None:
    """The control, in which the first step's sums are not even begun."""
    plain, unfinished = (stage_of(tmp_path, LAYOUTS["dp2"], overlaps) for overlaps in (False, True))
    train(plain)
    done = run_with_small_buckets(unfinished, 2, UNFINISHED="yes")
    found = metrics(unfinished) if done.returncode == 0 else []
    assert [record["loss"] for record in found] != [record["loss"] for record in metrics(plain)]


if __name__ == "__main__":
    sys.exit(run_as_script())
