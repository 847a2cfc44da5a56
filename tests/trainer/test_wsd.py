"""Warm-up, stable, decay: the rate is the one that is written down, and so after a stop."""

import shutil
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from stage_runs import make_data, metrics, saved
from trained_here import small, trained_in

STEPS, WARM, COOL = 12, 2, 4
PER_STEP = 8 * 32
PEAK, FLOOR = 4e-3, 1e-3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def content(data: Path, way: str, steps: int = STEPS) -> dict[str, Any]:
    rate = {
        "peak": PEAK, "floor": FLOOR, "warmup_samples": 8 * WARM, "style": "wsd",
        "cooldown_tokens": COOL * PER_STEP, "cooldown": way,
    }  # fmt: skip
    length = {"steps": None, "tokens": steps * PER_STEP}
    return small(data, learning_rate=rate, training=length, checkpoint={"every": 5})


def wanted(step: int, way: str) -> float:
    """The rate of a step, counted from 0: Megatron-LM's counts the steps before it."""
    if step < WARM:
        return PEAK * step / WARM
    share = max(0, step - (STEPS - COOL)) / COOL
    fallen = share if way == "linear" else sqrt(share)
    return FLOOR + (PEAK - FLOOR) * (1 - fallen)


def rates(folder: Path) -> list[float]:
    return [record["learning_rate"] for record in metrics(folder / "stage.yaml")]


@pytest.mark.parametrize("way", ["linear", "sqrt"])
def test_the_rate_is_the_one_that_is_written_down(way: str, data: Path, tmp_path: Path) -> None:
    trained_in(tmp_path, content(data, way))
    assert rates(tmp_path) == pytest.approx([wanted(step, way) for step in range(STEPS)])


@pytest.mark.slow
def test_a_stop_in_the_decay_changes_nothing(data: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    trained_in(whole, content(data, "sqrt"))
    shutil.copytree(whole, parted)
    for folder in (parted / "checkpoints").glob("iter_00000*"):
        if folder.name != "iter_0000010":  # in the middle of the decay
            shutil.rmtree(folder)
    (parted / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    trained_in(parted, content(data, "sqrt"))
    assert rates(parted) == rates(whole)
    assert saved(parted / "stage.yaml", STEPS) == saved(whole / "stage.yaml", STEPS)


@pytest.mark.slow
def test_a_longer_run_goes_on_from_the_stable_part(data: Path, tmp_path: Path) -> None:
    """Before the decay a run of any length is the same run."""
    trained_in(tmp_path / "short", content(data, "linear"))
    trained_in(tmp_path / "long", content(data, "linear", 2 * STEPS))
    stable = STEPS - COOL
    short, long = (
        [record["loss"] for record in metrics(tmp_path / name / "stage.yaml")]
        for name in ("short", "long")
    )
    assert short[:stable] == long[:stable]
    assert short[stable + 2 :] != long[stable + 2 : STEPS]
