"""What the trainer costs beside plain PyTorch, and what masks cost beside none, on a CPU.

``python benchmarks/bench_training.py [--threads 2] [--rounds 12]``. Three processes hold a model of
hidden size 512: the trainer's, which is megatron-core's; the same in plain PyTorch
(``plain_gpt.py``); and the trainer's with masks of all four dimensions on half of their units. They
take steps in turn (A B C A B C ...), as machines are noisy, and each round has ratios of its own,
of which the median is printed.

Two processes that compute the same differ by some percent for as long as they live, by where their
memory lies. That is too much for masks, which cost as little: what they cost is therefore measured
in one process, whose masks are at 1 in every other step, when the stock kernels run, and at 0.37 in
the steps between.

Before anything is measured the losses must be equal that should be, and only those.
"""

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterator
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
TRAINER, PLAIN, OPEN, MASKED = "trainer", "plain torch", "masks at 1", "masks at 0.37"
PROCESSES = ((TRAINER,), (PLAIN,), (OPEN, MASKED))
"""Whose steps each process takes, in turn."""
SAME = 1e-5
"""By how much losses of one model may differ, relatively."""


class Cost(NamedTuple):
    """Seconds of a step, CPU seconds of all its threads, and the loss before it."""

    wall: float
    cpu: float
    loss: float


Round = dict[str, list[Cost]]
KINDS: dict[str, Callable[[Cost], float]] = {
    "wall": lambda cost: cost.wall,
    "CPU": lambda cost: cost.cpu,
}


def build(sides: tuple[str, ...], work: Work) -> tuple[Step, ...]:
    """Build sides, in a process of their own: megatron-core on a CPU changes torch itself."""
    if sides == (PLAIN,):
        from plain_gpt import plain_side

        return (plain_side(work),)
    from megatron_side import masked_sides, megatron_side

    return (megatron_side(work),) if sides == (TRAINER,) else masked_sides(work)


def serve(sides: tuple[str, ...], work: Work, pipe: Connection) -> None:
    """Take as many steps of each side as told and answer with their costs; told 0, with MiB."""
    warnings.simplefilter("ignore")  # megatron-core names every package it does not find
    torch.set_num_threads(work.threads)
    steps = build(sides, work)
    pipe.send("ready")
    while count := pipe.recv():
        turns = [[measured(step) for step in steps] for _ in range(count)]
        pipe.send(dict(zip(sides, map(list, zip(*turns, strict=True)), strict=True)))
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
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
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
        with started(work) as pipes:
            check(taken(pipes, 2))
            rounds = [taken(pipes, options.steps) for _ in range(options.rounds)]
            peaks = [peak(pipe) for pipe in pipes]
    show(rounds, peaks, options.batch * options.length)


@contextmanager
def started(work: Work) -> Iterator[list[Connection]]:
    """Start the processes and yield how to talk to each."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for sides in PROCESSES:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(sides, work, theirs), daemon=True).start()
        theirs.close()
        ours.recv()
        pipes.append(ours)
    yield pipes


def taken(pipes: list[Connection], steps: int) -> Round:
    """Return what so many steps of each side cost, one process after the other."""
    costs: Round = {}
    for pipe in pipes:
        pipe.send(steps)
        costs |= pipe.recv()
    return costs


def peak(pipe: Connection) -> float:
    """End a process and return its peak memory in MiB."""
    pipe.send(0)
    mib: float = pipe.recv()
    return mib


def check(first: Round) -> None:
    """Stop unless all sides compute what they should: before a step, and after it."""
    losses = {side: [cost.loss for cost in costs] for side, costs in first.items()}
    trainer, plain, at_one, masked = losses.values()
    if not same(trainer, plain):
        raise SystemExit(f"WRONG: the losses differ: {trainer} and {plain}")
    if not same(trainer[:1], at_one[:1]):
        raise SystemExit(f"WRONG: masks at 1 change the loss: {trainer[0]} and {at_one[0]}")
    if same(at_one[:1], masked[:1]):
        raise SystemExit(f"WRONG: masks below 1 change nothing: {masked[0]}")


def same(some: list[float], others: list[float]) -> bool:
    """Return whether all losses are those of one model."""
    return all(abs(a - b) <= SAME * abs(b) for a, b in zip(some, others, strict=True))


def show(rounds: list[Round], peaks: list[float], tokens: int) -> None:
    """Print a row for each side, and the two ratios that matter."""
    print(f"{'':16}{'tokens/s':>10}{'s/step':>9}{'CPU s/step':>12}{'peak MiB':>10}")
    for sides, mib in zip(PROCESSES, peaks, strict=True):
        for side in sides:
            costs = [cost for one in rounds for cost in one[side]]
            wall, cpu = (median(map(kind, costs)) for kind in KINDS.values())
            print(f"{side:16}{tokens / wall:10.0f}{wall:9.3f}{cpu:12.3f}{mib:10.0f}")
    for label, kind in KINDS.items():
        speed, slower = ratios(rounds, PLAIN, TRAINER, kind), ratios(rounds, MASKED, OPEN, kind)
        print(
            f"by {label}: trainer / plain torch {median(speed):.3f} "
            f"(middle half {spread(speed, 1)}), "
            f"masks cost {100 * (median(slower) - 1):.1f} % "
            f"(middle half {spread([x - 1 for x in slower], 100)})"
        )


def ratios(
    rounds: list[Round], above: str, below: str, kind: Callable[[Cost], float]
) -> list[float]:
    """Return for each round what one side took, over what the other did."""
    return [sum(map(kind, one[above])) / sum(map(kind, one[below])) for one in rounds]


def spread(values: list[float], scale: float) -> str:
    """Return the range of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{scale * ordered[quarter]:.3g} to {scale * ordered[-1 - quarter]:.3g}"


if __name__ == "__main__":
    main()
