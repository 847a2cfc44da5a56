"""Spreads and means that an interrupted run has found are not looked for again."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted, flmgrow, stop_after
from pico import CONFIGS, even, make_checkpoint

from flmgrow.errors import StorageError
from flmgrow.surgery.kept_statistics import KeptStatistics
from flmgrow.surgery.statistics import Statistics

GROW = ("--hidden-size", 18, "--num-query-groups", 6, "--ffn-hidden-size", 24, "--method", "copy")
PLAN: Mapping[str, object] = {"source": "d41d"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    return make_checkpoint(tmp_path / "source", "llama", layout, optimizer=True)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read to find spreads and means, since it was last cleared."""
    found: list[str] = []
    for name in ("_std", "_means"):
        real: Callable[..., Any] = getattr(Statistics, name)

        def watched(
            self: Statistics, tensor: str, *rest: object, real: Callable[..., Any] = real
        ) -> Any:
            found.append(f"{self._state} {tensor} {rest}")
            return real(self, tensor, *rest)

        monkeypatch.setattr(Statistics, name, watched)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let a run end after three of four files; return what it has kept."""

    def stop() -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        stop_after(3, patch, stop)
        assert flmgrow("expand", source, out, *GROW).code == 4
    return list(out.with_name(f".{out.name}.flmgrow").glob("statistics.*"))


def test_a_resumed_run_looks_for_nothing_twice(
    source: Path, tmp_path: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted("expand", source, tmp_path / "whole", *GROW)
    everything = sorted(looked)
    looked.clear()
    assert len(interrupted(source, tmp_path / "out", monkeypatch)) == 1
    before = set(looked)
    looked.clear()
    accepted("expand", source, tmp_path / "out", *GROW)
    assert len(before) > len(looked)
    assert not before & set(looked)
    assert sorted([*before, *looked]) == everything
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / ".out.flmgrow").exists()


def test_what_was_damaged_is_found_anew(
    source: Path, tmp_path: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted("expand", source, tmp_path / "whole", *GROW)
    (kept,) = interrupted(source, tmp_path / "out", monkeypatch)
    before = len(set(looked))
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    looked.clear()
    accepted("expand", source, tmp_path / "out", *GROW)
    assert before // 4 < len(looked) < before
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_disk_that_takes_none_is_no_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        accepted("expand", source, tmp_path / "out", *GROW)


def keep(folder: Path, plan: Mapping[str, object], key: str, values: object) -> None:
    kept = KeptStatistics(folder, plan)
    kept.add(key, np.array(values))
    kept.close()


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((3, 1, 5)) * 1e-300
    keep(tmp_path, PLAN, "mean", values)
    keep(tmp_path, PLAN, "std", 0.1)
    found = KeptStatistics(tmp_path, PLAN)
    mean, std = found.get("mean"), found.get("std")
    assert mean is not None
    assert std is not None
    assert (mean.shape, mean.tobytes()) == (values.shape, values.tobytes())
    assert float(std) == 0.1


def test_that_of_another_plan_does_not_count(tmp_path: Path) -> None:
    keep(tmp_path, {"source": "other"}, "std", 0.1)
    assert KeptStatistics(tmp_path, PLAN).get("std") is None
    assert KeptStatistics(tmp_path, {"source": "other"}).get("std") is not None


def test_a_torn_line_and_those_behind_it_do_not_count(tmp_path: Path) -> None:
    keep(tmp_path, PLAN, "a", 1.0)
    (path,) = tmp_path.iterdir()
    first, line = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line[:-5] + line)
    assert KeptStatistics(tmp_path, PLAN).get("a") is None
