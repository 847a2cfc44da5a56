"""Replicas of a distributed optimizer write a distributed checkpoint together, each a share.

This file, run as a script, is a rank of a stage that may be killed in the middle of a save.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_states import states
from stage_runs import environment, make_data, metrics, saved, stage_data, train, write_stage
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

MODEL = {
    "num_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2,
    "activation": "swiglu", "normalization": "rmsnorm", "linear_bias": False,
}  # fmt: skip
LAYOUT = {"dp": 3, "distributed_optimizer": True}
STEPS = 2


def run_as_script() -> int:
    """Run one rank of a stage file; one that shall be ``KILLED`` writes a few blocks only."""
    from flmgrow.trainer import __main__
    from flmgrow.trainer.checkpoint import lending

    lent: Any = lending.LentStates
    blocks = lent._blocks
    left = 20 if os.environ["KILLED"] == os.environ["RANK"] else sys.maxsize

    def counted(states: Any, array: Any) -> Iterator[Any]:
        nonlocal left
        for block in blocks(states, array):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    lent._blocks = counted
    lending.BLOCK = 1 << 10
    return __main__.main()


def content(data: Path, form: str) -> dict[str, Any]:
    return stage_data(
        data,
        model=MODEL,
        layout=LAYOUT,
        training={"steps": STEPS, "batch": 12, "precision": "bfloat16"},
        checkpoint={"every": 1, "format": form},
    )


@pytest.mark.slow
def test_shares_hold_together_what_one_file_holds(tmp_path: Path) -> None:
    """The file is the legacy one of the same steps, which the first replica writes alone."""
    data, folders = make_data(tmp_path / "data"), {}
    for form in ("megatron", "torch_dist"):
        train(write_stage(tmp_path / form, content(data, form)))
        folders[form] = tmp_path / form / "checkpoints"
    one, shared = (states(folder) for folder in folders.values())
    assert one.keys() == shared.keys()
    for state, tensors in one.items():
        for name, values in tensors.items():
            assert values.tobytes() == shared[state][name].tobytes(), (state, name)
    folder = folders["torch_dist"] / f"iter_{STEPS:07d}"
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.distcp")}
    assert sorted(sizes) == ["__0_0.distcp", "__0_1.distcp", "__0_2.distcp"]
    assert max(sizes.values()) < 0.7 * sum(sizes.values())
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    read = torch.load(tmp_path / "whole.pt", weights_only=False)  # our own file
    values = read["optimizer.state.exp_avg.embedding.word_embeddings.weight"]
    assert values.numpy().tobytes() == one["exp_avg"]["embedding"].tobytes()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_a_lost_replica_ends_the_save_of_all(tmp_path: Path, killed: int) -> None:
    data = make_data(tmp_path / "data")
    stage = write_stage(tmp_path / "cut", content(data, "torch_dist"))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    support = str(Path(__file__).parents[2] / "support")
    done = subprocess.run(
        [*words, __file__, str(stage)],
        env={**environment(), "PYTHONPATH": support, "KILLED": str(killed)},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "another rank has ended or cannot be reached" in done.stderr
    assert not list((stage.parent / "checkpoints").glob("iter_*"))
    train(stage)
    whole = write_stage(tmp_path / "whole", content(data, "torch_dist"))
    train(whole)
    assert metrics(stage)[-1]["loss"] == metrics(whole)[-1]["loss"]
    assert saved(stage, STEPS) == saved(whole, STEPS)


if __name__ == "__main__":
    sys.exit(run_as_script())
