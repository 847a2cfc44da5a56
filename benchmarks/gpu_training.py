"""What a step costs on one GPU, and what masks cost there, for a model of 1.3B parameters.

``python benchmarks/gpu_training.py [--rounds 2] [--steps 6]``. Sides take turns (A B A B), each
time in a process of its own, since both do not fit on the device: the trainer as it is, and with
masks of all four dimensions at 0.37 on half of their units. A step's time is the median after three
steps of warm-up. Needs about 40 GiB on the device.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from megatron_side import half_fresh, megatron_side
from training_work import Work

from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.model.flops import training_flops
from flmgrow.trainer.megatron.live_masks import LiveMasks

SIDES = ("plain", "masked")
BATCH, MICRO_BATCH, LENGTH = 16, 4, 2048
WARM_UP = 3
CONFIG = ModelConfig(
    layers=24, hidden=2048, ffn=8192, kv_groups=16, queries_per_group=1, head_dim=128, vocab=50304,
    max_positions=LENGTH, positions="xpos",
    multipliers=Multipliers(output=2.0, mup_base_width=256, attention_by_inverse_layer=True),
)  # fmt: skip


def main() -> None:
    """Measure, and print a line for each turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--side", choices=SIDES, help="take one turn of this side only")
    options = parser.parse_args()
    if options.side is not None:
        take_turn(options.side, options.steps)
        return
    print(f"{torch.cuda.get_device_name()}, {MICRO_BATCH} of {BATCH} x {LENGTH} tokens at once")
    for _ in range(options.rounds):
        for side in SIDES:
            words = [sys.executable, __file__, "--side", side, "--steps", str(options.steps)]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def take_turn(side: str, steps: int) -> None:
    """Take steps in this process, and print what the median one cost."""
    with TemporaryDirectory() as folder:
        work = Work(CONFIG, BATCH, torch.get_num_threads(), Path(folder, "weights.pt"))
        masks = half_fresh(CONFIG) if side == "masked" else {}
        live = LiveMasks(masks, CONFIG, torch.bfloat16)
        step = megatron_side(work, live, "bfloat16", MICRO_BATCH)
    seconds = [timed(step) for _ in range(WARM_UP + steps)][WARM_UP:]
    tokens = BATCH * LENGTH / median(seconds)
    flops = tokens * training_flops(CONFIG, LENGTH) / 1e12
    peak = torch.cuda.max_memory_allocated() / (1 << 30)
    print(
        f"{side:7}{median(seconds):7.3f} s/step {tokens:8.0f} tokens/s {flops:6.1f} TFLOP/s "
        f"{peak:5.1f} GiB",
        flush=True,
    )


def timed(step: object) -> float:
    """Return the seconds of a step; it ends with a number on the CPU, so nothing is under way."""
    assert callable(step)
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
