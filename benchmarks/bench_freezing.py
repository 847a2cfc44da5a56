"""What freezing spares of the time of a step, beside the operations that it spares.

    python benchmarks/bench_freezing.py [--rounds 12] [--steps 2] [--threads 1]

The largest model of ``configs/tiny.yaml`` is trained with nothing frozen, and with layers and the
table frozen, in one process by turns (A B C D A B C D ...), as machines are noisy. Each round has
ratios of its own, in CPU seconds, of which the median is printed, with the quarters beside it.
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from training_work import Step, Work

from flmgrow.model.config import ModelConfig

CONFIG = ModelConfig(
    layers=4, hidden=128, ffn=512, kv_groups=8, queries_per_group=1, head_dim=16, vocab=257,
    max_positions=128, positions="xpos",
)  # fmt: skip
BATCH, MICRO_BATCH = 16, 4
TABLE = {"tensors": "embedding"}
SIDES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "layers 0-1": [{"layers": "0-1"}],
    "layers 0-1, table": [{"layers": "0-1"}, TABLE],
    "layers 0 and 2, table": [{"layers": [0, 2]}, TABLE],
    "layers 0-2, table": [{"layers": "0-2"}, TABLE],
}
"""What is frozen: the first one is what the others are compared with."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="of each side in a round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # megatron-core names every package it does not find
    from megatron_side import frozen_side

    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        work = Work(CONFIG, BATCH, options.threads, Path(folder, "weights.pt"))
        built = {name: frozen_side(work, rules, MICRO_BATCH) for name, rules in SIDES.items()}
    steps = {name: step for name, (step, _) in built.items()}
    for step in steps.values():
        step()  # the first one makes the optimizer's states
    rounds = [
        {name: cpu_seconds(step, options.steps) for name, step in steps.items()}
        for _ in range(options.rounds)
    ]
    first, *_ = SIDES
    whole = built[first][1]
    print(f"{'frozen':<24}{'CPU s':>8}{'of all':>8}{'quarters':>16}{'FLOPs':>8}")
    for name, (_, flops) in built.items():
        low, middle, high = quantiles((each[name] / each[first] for each in rounds), n=4)
        seconds = quantiles((each[name] for each in rounds), n=4)[1] / options.steps
        spread = f"{low:.3f}-{high:.3f}"
        print(f"{name:<24}{seconds:>8.3f}{middle:>8.3f}{spread:>16}{flops / whole:>8.3f}")


def cpu_seconds(step: Step, count: int) -> float:
    """Return the CPU seconds of all threads that so many steps take."""
    begin = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
