"""A picture of runs: what it shows is computed apart from drawing, and drawn the same each time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted, flmgrow
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.model.masks import Dimension
from flmgrow.stages.curves import Spent, curves, read_runs, smooth
from flmgrow.stages.plots import KINDS, MOST_POINTS, Look, loss_range, picture, thinned, tokens_text
from flmgrow.trainer.metrics import Record, StepRecord, ValidationRecord

pytest.importorskip("matplotlib")


def step(number: int, loss: float, stage: str, masks: Mapping[Dimension, float]) -> StepRecord:
    return StepRecord(
        step=number, samples=8 * number, tokens=256 * number, flops=1000 * number * number,
        loss=loss, language_loss=None, teacher_loss=None, grad_norm=1.0, learning_rate=1e-3,
        seconds=0.1, tokens_per_second=2560.0, model_tflops=0.1, utilisation=None, masks=masks,
        stage=stage,
    )  # fmt: skip


def stage_of(name: str, first: int, count: int, *, masked: int = 0) -> list[Record]:
    """A stage's records: falling losses, masks in the first steps, a validation at the end."""
    records: list[Record] = [
        step(n, 5.0 / n, name, {Dimension.FFN: 0.5} if n < first + masked else {})
        for n in range(first, first + count)
    ]
    last = first + count - 1
    return [*records, ValidationRecord(last, 256 * last, 1000 * last * last, 5.1 / last, name)]


def write_run(folder: Path, stages: Sequence[Sequence[Record]]) -> Path:
    """Write a run's folder, a folder for each stage."""
    for number, records in enumerate(stages, 1):
        path = folder / f"{number:02}-{records[0].stage}" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stages = [stage_of("small", 1, 40), stage_of("large", 41, 30, masked=10)]
    return write_run(tmp_path / "run", stages)


def test_stages_ramps_and_validation_are_told_apart(run: Path) -> None:
    ((small, large),) = [each.stages for each in read_runs([run])]
    assert (small.name, large.name) == ("small", "large")
    assert small.training.loss.tolist() == [5.0 / n for n in range(1, 41)]
    assert large.begin == Spent(256 * 40, 1000 * 1600)
    assert small.ramps == ()
    assert large.ramps == ((Spent(256 * 41, 1000 * 41**2), Spent(256 * 50, 1000 * 50**2)),)
    assert large.validation.tokens.tolist() == [256 * 70]
    assert large.validation.loss.tolist() == [pytest.approx(5.1 / 70)]


def test_folders_are_read_in_their_order(tmp_path: Path) -> None:
    stages = [stage_of(f"s{number}", 1 + 5 * number, 5) for number in range(12)]
    (found,) = read_runs([write_run(tmp_path / "run", stages)])
    assert [stage.name for stage in found.stages] == [f"s{number}" for number in range(12)]


def test_a_stage_and_a_file_are_runs_too(run: Path) -> None:
    for path in (run / "02-large", run / "02-large" / "metrics.jsonl"):
        (found,) = read_runs([path])
        assert [stage.name for stage in found.stages] == ["large"]
        assert found.name == "02-large"


def test_losses_that_are_not_finite_are_left_out() -> None:
    records = [step(1, 3.0, "a", {}), step(2, float("nan"), "a", {}), step(3, 2.0, "a", {})]
    (found,) = curves([records], "here")
    assert found.training.loss.tolist() == [3.0, 2.0]


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=60),
    st.integers(0, 20),
    st.floats(-2, 2),
    st.floats(-3, 3),
)
def test_smoothing_keeps_straight_lines_and_adds(
    values: list[float], half: int, slope: float, level: float
) -> None:
    """A straight line passes as it is, up to its ends; and the smoothed sum is the sum."""
    places = np.arange(len(values), dtype=np.float64)
    line = slope * places + level
    assert smooth(line, half) == pytest.approx(line, abs=1e-8)
    noisy = np.array(values)
    assert smooth(noisy + line, half) == pytest.approx(smooth(noisy, half) + line, abs=1e-8)


@given(st.integers(1, 40), st.integers(1, 12))
def test_smoothing_is_a_line_fitted_to_neighbours(seed: int, half: int) -> None:
    values = np.random.default_rng(seed).normal(size=50)
    found = smooth(values, half)
    for place in range(50):
        low, high = max(0, place - half), min(50, place + half + 1)
        slope, level = np.polyfit(np.arange(low, high), values[low:high], 1)
        assert found[place] == pytest.approx(slope * place + level, abs=1e-8)


@given(st.integers(MOST_POINTS + 1, 20_000), st.booleans(), st.integers(0, 100))
def test_thinning_keeps_the_extremes(count: int, log: bool, seed: int) -> None:
    x = np.arange(1.0, count + 1)
    y = np.random.default_rng(seed).normal(size=count)
    x_few, y_few = thinned(x, y, log=log)
    assert len(x_few) == len(y_few) <= MOST_POINTS
    assert (y_few.min(), y_few.max()) == (y.min(), y.max())
    assert (np.diff(x_few) >= 0).all()


def test_the_first_losses_may_leave_the_frame(run: Path) -> None:
    runs = read_runs([run])
    low, high = loss_range(runs, whole=False)
    assert low < 5.0 / 70 < high < 5.0
    assert loss_range(runs, whole=True)[1] > 4.0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1500, "1.5K"), (5e8, "500M"), (1.5e9, "1.5B"), (2e12, "2T")]
)
def test_tokens_have_units(count: float, text: str) -> None:
    assert tokens_text(count) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", [False, True])
def test_the_same_run_is_the_same_picture(run: Path, kind: str, log: bool) -> None:
    runs = read_runs([run])
    once = picture(runs, kind, Look(log))
    assert once == picture(runs, kind, Look(log))
    assert once.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert once != picture(runs, kind, Look(log, "a title"))


def test_a_picture_names_its_stages(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "loss.svg"
    assert accepted("plot", run, "--out", out, "--title", "how it went").out == f"{out}\n"
    text = out.read_text()
    words = ("small", "large", "how it went", "Tokens", "FLOPs", "validation", "masks below 1")
    for word in words:
        assert f">{word}" in text or word in text, word


def test_runs_are_compared_by_name(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [stage_of("alone", 1, 60)])
    out = tmp_path / "compared.svg"
    accepted("plot", run, other, "--out", out)
    assert ">run</text>" in out.read_text()
    assert ">other</text>" in out.read_text()


def test_the_picture_lies_in_the_run_if_nothing_is_said(run: Path) -> None:
    assert accepted("plot", run).out == f"{run / 'loss.png'}\n"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert accepted("plot", run / "01-small" / "metrics.jsonl").code == 0
    assert (run / "01-small" / "loss.png").is_file()


def refusals(run: Path, tmp_path: Path) -> dict[str, tuple[list[Any], int, str]]:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(json.dumps(asdict(step(1, 1.0, "a", {}))) + "\nnonsense\n")
    return {
        "another kind": ([run, "--out", tmp_path / "x.bmp"], 2, "unknown kind of picture"),
        "no run": ([tmp_path / "missing"], 2, "no metrics in it"),
        "nothing told yet": ([empty], 3, "holds no loss of any step"),
        "damaged": ([damaged], 3, "damaged.jsonl:2: holds no record"),
        "too many": ([run] * 7, 2, "7 runs, wanted at most 6"),
    }


@pytest.mark.parametrize(
    "case", ["another kind", "no run", "nothing told yet", "damaged", "too many"]
)
def test_what_cannot_be_drawn_is_refused(case: str, run: Path, tmp_path: Path) -> None:
    words, code, message = refusals(run, tmp_path)[case]
    outcome = flmgrow("plot", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.rglob("loss.png"))


def test_matplotlib_is_named_where_it_is_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    outcome = flmgrow("plot", run)
    assert outcome.code == 2
    assert "hint: pip install 'flmgrow[plot]'" in outcome.err
