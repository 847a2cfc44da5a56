"""All that can go wrong, tried on the real commands: ``make faults``. Prints a table of figures.

``python tests/faults/whole.py [--step 1] [--rank-step 1] [--chains 1000] [--flips 1000]
[--only NAME]``. Of the calls, each ``--step``-th one is tried. Ends with 1 if a promise was broken.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faulty import (
    CASES,
    FAULTS,
    FORGETS_ALL,
    FORGETS_FILES,
    Case,
    Commands,
    commands_in,
    flipped_bits,
    kill_chain,
    make_case,
    power_cuts,
    started_at_once,
    sweep,
)
from power import Disk, can_cut_power

Found = tuple[int, list[str]]


def told(name: str, find: Callable[[], Found], must_break: bool) -> bool:
    """Print a line of the table; return whether all is as it must be."""
    begin = time.monotonic()
    count, broken = find()
    seconds = time.monotonic() - begin
    good = bool(broken) == must_break
    print(f"{name:58} {count:7} {len(broken):7} {seconds:8.0f}{'' if good else '  !'}", flush=True)
    for each in [] if good else broken[:5]:
        print(f"    {each}", flush=True)
    return good


def chains(case: Case, count: int) -> Found:
    """Return how many kills there were in so many chains."""
    chance, kills = Random(1), 0
    for _ in range(count):
        killed, broken = kill_chain(case, chance)
        kills += killed
        if broken:
            return kills, broken
    return kills, []


def starts(case: Case, count: int) -> Found:
    """Return what is wrong after eight runs at once, so many times."""
    return count * 8, [wrong for _ in range(count) for wrong in started_at_once(case)]


Trial = tuple[str, Callable[[], Found], bool]
"""Its name, what it does, and whether a promise must be broken by it."""


def trials(commands: Commands, wanted: argparse.Namespace) -> Iterator[Trial]:
    """Yield all that is to be tried."""
    cases = {name: make_case(name, commands, commands.places) for name in CASES}
    first = cases["expand legacy"]
    if can_cut_power(commands.places):
        cut = partial(power_cuts, first, Disk(commands.places))
        yield "power cuts", cut, False
        forgetting = {"no fsync": FORGETS_ALL, "fsync of folders alone": FORGETS_FILES}
        for name, memory in forgetting.items():
            yield f"power cuts, {name} (must break)", partial(cut, memory, 10), True
    else:
        print("power cuts: not tried, there is no root or no loop device")
    yield "flipped bits", partial(flipped_bits, first, Random(2), wanted.flips), False
    yield "starts, eight at once", partial(starts, first, 50), False
    yield "kills, in chains", partial(chains, first, wanted.chains), False
    for name, case in cases.items():
        for what in FAULTS:
            yield f"{name}: {what} at a call", partial(sweep, case, what, step=wanted.step), False
    for what in FAULTS:
        find = partial(sweep, first.flushed, what, step=wanted.step)
        yield f"{first.name}, flushed while written: {what} at a call", find, False
    for rank in (0, 1):
        for what in FAULTS:
            find = partial(sweep, first, what, 2, rank, wanted.rank_step)
            yield f"expand legacy, 2 ranks: {what} at a call of rank {rank}", find, False


def main() -> int:
    """Try everything, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--rank-step", type=int, default=1)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--only", default="", help="what has this in its name")
    wanted = parser.parse_args()
    print(f"{'':58} {'tried':>7} {'broken':>7} {'seconds':>8}")
    with commands_in() as commands:
        good = [told(*trial) for trial in trials(commands, wanted) if wanted.only in trial[0]]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
