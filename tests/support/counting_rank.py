"""Counting the operations of a rank's batches by torch's own counter.

Run as a program (``python -m counting_rank STAGE``) it is a rank of that stage, and leaves the sum
beside the stage's file.
"""

import os
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flmgrow.trainer.__main__ import main


def _forward(query: Any, key: Any, *_: Any, **__: Any) -> int:
    return int(2 * 2 * prod(query) * key[-2])


def _backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
    return 2 * _forward(query, key)  # scores that the kernel computes again do not count


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""What torch does not count itself on a CPU."""


def counting(found: list[int]) -> Any:
    """Return what runs a batch as the trainer does, and adds its operations to ``found``."""
    from flmgrow.trainer.steps import run_batch

    def run_counted(*given: Any, **settings: Any) -> torch.Tensor:
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            sums = run_batch(*given, **settings)
        found.append(counter.get_total_flops())
        return sums

    return run_counted


def file_of(stage: Path, rank: int) -> Path:
    """Return the file that a rank leaves."""
    return stage.parent / f"rank{rank}.flops"


if __name__ == "__main__":
    from flmgrow.trainer import loop

    counted: list[int] = []
    vars(loop).update(run_batch=counting(counted))
    code = main()
    file_of(Path(sys.argv[1]), int(os.environ["RANK"])).write_text(str(sum(counted)))
    sys.exit(code)
