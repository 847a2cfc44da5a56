"""Cores are counted as they may be used, not as the machine has them."""

import os
from pathlib import Path

import pytest

from flmgrow.storage import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, of which this process is bound to 16, and no control group."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8, 24)))
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_process_has_the_cores_that_it_is_bound_to(machine: Path) -> None:
    assert cores.usable_cores() == 16
    assert cores.bound_cores() == list(range(8, 24))


QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
"""Of the first version of control groups."""


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "450000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("4:cpu,cpuacct:/\n", {QUOTA: "200000", PERIOD: "100000"}, 2),
        ("4:cpu,cpuacct:/\n", {QUOTA: "-1", PERIOD: "100000"}, 16),
        ("4:cpuset:/\n", {QUOTA: "200000", PERIOD: "100000"}, 16),
        ("0::/\n", {"cpu.max": "what is this"}, 16),
    ],
)  # fmt: skip
def test_a_container_has_its_share(
    machine: Path, own: str, files: dict[str, str], count: int
) -> None:
    write(machine / "own", own)
    for name, text in files.items():
        write(machine / "groups" / name, text)
    assert cores.usable_cores() == count


def test_where_nobody_binds_the_machine_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.usable_cores() == 64
    assert cores.bound_cores() == []
