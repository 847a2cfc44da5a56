"""What the trainer costs beside plain PyTorch, and what masks cost beside none, on a CPU.

``python benchmarks/bench_training.py [--threads 2] [--rounds 12]``. Three processes hold a model of
hidden size 512: the trainer's, which is megatron-core's; the same in plain PyTorch
(``plain_gpt.py``); and the trainer's with masks of all four dimensions at 0.37, on half of their
units. They take steps in turn (A B C A B C ...), as machines are noisy, and each round has ratios
of its own, of which the median is printed. Before anything is measured the losses of the first two
must agree; that of the third must not.
"""

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from training_work import Step, Work

from flmgrow.model.config import ModelConfig

VOCAB = 8192
SIDES = ("trainer", "plain torch", "trainer, masked")
SAME = 1e-5
"""By how much losses of one model may differ, relatively."""


class Cost(NamedTuple):
    """Seconds of a step, CPU seconds of all its threads, and the loss before it."""

    wall: float
    cpu: float
    loss: float


Rounds = Mapping[str, list[list[Cost]]]
KINDS: dict[str, Callable[[Cost], float]] = {
    "wall": lambda cost: cost.wall,
    "CPU": lambda cost: cost.cpu,
}


def build(name: str, work: Work) -> Step:
    """Build a side, in a process of its own: megatron-core on a CPU changes torch itself."""
    if name == "plain torch":
        from plain_gpt import plain_side

        return plain_side(work)
    from megatron_side import megatron_side

    return megatron_side(work, masked=name == "trainer, masked")


def serve(name: str, work: Work, pipe: Connection) -> None:
    """Take as many steps as told and answer with their costs; told 0, answer with peak MiB."""
    warnings.simplefilter("ignore")  # megatron-core names every package it does not find
    torch.set_num_threads(work.threads)
    step = build(name, work)
    pipe.send("ready")
    while steps := pipe.recv():
        pipe.send([measured(step) for _ in range(steps)])
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10))


def measured(step: Step) -> Cost:
    """Take a step and return its cost."""
    wall, cpu = time.monotonic(), time.process_time()
    loss = step()
    return Cost(time.monotonic() - wall, time.process_time() - cpu, loss)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="of each side in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    config = ModelConfig(
        layers=options.layers, hidden=512, ffn=2048, kv_groups=8, queries_per_group=1,
        head_dim=64, vocab=VOCAB, max_positions=options.length,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        work = Work(config, options.batch, options.threads, Path(folder, "weights.pt"))
        with started(work) as sides:
            check({name: asked(pipe, 2) for name, pipe in sides.items()})
            rounds: Rounds = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, pipe in sides.items():
                    rounds[name].append(asked(pipe, options.steps))
            peaks = {name: peak(pipe) for name, pipe in sides.items()}
    show(rounds, peaks, options.batch * options.length)


@contextmanager
def started(work: Work) -> Iterator[dict[str, Connection]]:
    """Start a process for each side and yield how to talk to it."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in SIDES:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, work, theirs), daemon=True).start()
        theirs.close()
        pipes[name].recv()
    yield pipes


def asked(pipe: Connection, steps: int) -> list[Cost]:
    """Return what so many steps of a side cost."""
    pipe.send(steps)
    costs: list[Cost] = pipe.recv()
    return costs


def peak(pipe: Connection) -> float:
    """End a side and return its peak memory in MiB."""
    pipe.send(0)
    mib: float = pipe.recv()
    return mib


def check(first: Mapping[str, list[Cost]]) -> None:
    """Stop unless all sides compute what they should: before a step, and after it."""
    trainer, plain, masked = ([cost.loss for cost in costs] for costs in first.values())
    for step, (a, b, c) in enumerate(zip(trainer, plain, masked, strict=True)):
        if abs(a - b) > SAME * abs(b):
            raise SystemExit(f"WRONG: after {step} steps the losses are {a} and {b}")
        if abs(a - c) <= SAME * abs(a):
            raise SystemExit(f"WRONG: after {step} steps masks change nothing: {a} and {c}")


def show(rounds: Rounds, peaks: Mapping[str, float], tokens: int) -> None:
    """Print a row for each side, and the two ratios that matter."""
    print(f"{'':16}{'tokens/s':>10}{'s/step':>9}{'CPU s/step':>12}{'peak MiB':>10}")
    for name, costs in rounds.items():
        wall, cpu = (median(kind(cost) for one in costs for cost in one) for kind in KINDS.values())
        print(f"{name:16}{tokens / wall:10.0f}{wall:9.3f}{cpu:12.3f}{peaks[name]:10.0f}")
    trainer, plain, masked = rounds.values()
    for label, kind in KINDS.items():
        speed, slower = ratios(plain, trainer, kind), ratios(masked, trainer, kind)
        print(
            f"by {label}: trainer / plain torch {median(speed):.3f} "
            f"(middle half {spread(speed, 1)}), "
            f"masks cost {100 * (median(slower) - 1):.1f} % "
            f"(middle half {spread([x - 1 for x in slower], 100)})"
        )


def ratios(
    above: list[list[Cost]], below: list[list[Cost]], kind: Callable[[Cost], float]
) -> list[float]:
    """Return for each round what one side took, over what the other did."""
    return [
        sum(map(kind, one)) / sum(map(kind, other)) for one, other in zip(above, below, strict=True)
    ]


def spread(values: list[float], scale: float) -> str:
    """Return the range of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{scale * ordered[quarter]:.3g} to {scale * ordered[-1 - quarter]:.3g}"


if __name__ == "__main__":
    main()
