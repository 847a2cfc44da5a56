"""All that can go wrong, tried on the real commands: ``make faults``. Prints a table of figures.

``python tests/faults/whole.py [--step 1] [--rank-step 1] [--chains 1000] [--flips 1000]``. Every
mutating call is every ``--step``-th one. Ends with 1 if a promise was broken.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faulty import (
    CASES,
    FAULTS,
    FORGETS_ALL,
    FORGETS_FILES,
    REMEMBERS,
    Case,
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


def told(name: str, find: Callable[[], Found], must_break: bool = False) -> bool:
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


def main() -> int:
    """Try everything, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--rank-step", type=int, default=1)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=1000)
    wanted = parser.parse_args()
    good = []
    print(f"{'':58} {'tried':>7} {'broken':>7} {'seconds':>8}")
    with commands_in() as commands:
        cases = {name: make_case(name, commands, commands.places) for name in CASES}
        first = cases["expand legacy"]
        if can_cut_power(commands.places):
            disk = Disk(commands.places)
            for name, memory in {
                "power cuts": REMEMBERS,
                "power cuts, no fsync (must break)": FORGETS_ALL,
                "power cuts, fsync of folders alone (must break)": FORGETS_FILES,
            }.items():
                step = 1 if memory == REMEMBERS else 10
                cut = lambda m=memory, s=step: power_cuts(first, disk, m, s)  # noqa: E731
                good.append(told(name, cut, memory != REMEMBERS))
        else:
            print("power cuts: not tried, there is no root or no loop device")
        good.append(told("flipped bits", lambda: flipped_bits(first, Random(2), wanted.flips)))
        good.append(told("starts, eight at once", lambda: starts(first, 50)))
        good.append(told("kills, in chains", lambda: chains(first, wanted.chains)))
        for name, case in cases.items():
            for what in FAULTS:
                one = lambda c=case, w=what: sweep(c, w, step=wanted.step)  # noqa: E731
                good.append(told(f"{name}: {what} at a call", one))
        for rank in (0, 1):
            for what in FAULTS:
                two = lambda r=rank, w=what: sweep(first, w, 2, r, wanted.rank_step)  # noqa: E731
                good.append(told(f"expand legacy, 2 ranks: {what} at a call of rank {rank}", two))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
