"""A save takes no more memory beside the run's own than a few blocks, however large the states are.

This file, run as a script, is a rank of a stage that is saved twice: as ever, and, as a control,
with every block that is written kept until the end.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage_runs import environment, make_data, stage_data, write_stage

MODEL = {"num_layers": 4, "hidden_size": 384, "num_attention_heads": 4, "vocab_size": 8192}
PARAMETERS = 4 * 12 * 384**2 + 8192 * 384
STATES = 3 * 4 * PARAMETERS >> 20
"""MiB of all states; a replica keeps half of them."""


def resident(what: str) -> int:
    """MiB that this process holds: now (VmRSS), or held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) >> 10


def run_as_script() -> int:
    """Run one rank of a stage file, and print what saving takes beside what is held before."""
    from flmgrow.trainer import __main__
    from flmgrow.trainer.checkpoint.lending import LentStates
    from flmgrow.trainer.checkpoint.saving import Saving

    saving: Any = Saving
    lent: Any = LentStates
    honest, blocks, held = Saving.save, LentStates._blocks, []

    def holding(states: LentStates, array: Any) -> Iterator[Any]:
        for block in blocks(states, array):
            held.append(bytes(block))
            yield block

    def watched(*given: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        before = resident("VmRSS")
        result = honest(*given)
        return result, resident("VmHWM") - before

    def save(*given: Any) -> Any:
        _, taken = watched(*given)
        lent._blocks = holding
        result, control = watched(*given)
        lent._blocks = blocks
        found = {"rank": int(os.environ["RANK"]), "taken": taken, "control": control}
        sys.stdout.write(json.dumps(found) + "\n")
        return result

    saving.save = save
    return __main__.main()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("form", ["megatron", "torch_dist"])
def test_a_save_takes_a_few_blocks(form: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model": MODEL,
        "layout": {"dp": 2, "distributed_optimizer": True},
        "training": {"steps": 1, "batch": 2, "micro_batch": 1},
        "checkpoint": {"every": 1, "format": form},
    }
    stage = write_stage(tmp_path / "stage", stage_data(make_data(tmp_path / "data"), **changes))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*words, __file__, str(stage)],
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2] / "support")},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {told["rank"]: told for told in map(json.loads, done.stdout.splitlines())}
    assert sum(told["control"] for told in found.values()) > 0.9 * STATES, "who writes, holds them"
    assert max(told["taken"] for told in found.values()) < STATES / 4


if __name__ == "__main__":
    sys.exit(run_as_script())
