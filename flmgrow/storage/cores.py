"""How many cores are there to be used, which are often fewer than the machine has.

A process may be bound to some of them (``taskset``, a scheduler, a pool of several trainings), and
a container may have a share of their time only. Whoever starts as many threads as the machine has
cores then has them wait for one another.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may keep busy, at least one."""
    return max(1, min(len(bound_cores()) or os.cpu_count() or 1, *_allowed()))


def bound_cores() -> list[int]:
    """Return the cores that this process may run on; none where nobody says."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _allowed() -> Iterator[int]:
    """Yield how many cores' time the control groups that this process is in may use."""
    yield 1 << 16
    for folder in _groups():
        numbers = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(numbers) == 2 and min(numbers) > 0:  # of a group without a limit: max, or -1
            quota, period = numbers
            yield max(1, quota // period)


def _groups() -> Iterator[Path]:
    """Yield the folders of the control groups, of both versions, and of those above them."""
    try:
        lines = _OWN.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = _GROUPS / "cpu" if kinds else _GROUPS
        own = PurePosixPath(path.lstrip("/"))
        yield from (root / each for each in (own, *own.parents))


def _numbers(file: Path) -> list[int]:
    """Return the whole numbers in a file; none if it is not there, or says something else."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
