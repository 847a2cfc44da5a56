"""What steps tell of parts is drawn below the loss, where a stage logs it, and nowhere else."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_runs import step, write_run

from flmgrow.model.masks import Dimension
from flmgrow.stages.curves import RunCurves, curves, read_runs
from flmgrow.stages.part_panels import kinds_of
from flmgrow.stages.plots import Look, picture
from flmgrow.trainer.metrics.records import SetLoss, StepRecord, ValidationRecord

pytest.importorskip("matplotlib")


def told(number: int, *, masked: bool = True, **updates: float) -> StepRecord:
    masks: Mapping[Dimension, float] = {Dimension.FFN: number / 10} if masked else {}
    return replace(step(number, 5.0 / number, "large", masks), updates=updates)


def run_of(*records: StepRecord, name: str = "run") -> RunCurves:
    return RunCurves(name, curves([list(records)], name))


def test_each_part_is_a_trace_of_the_steps_that_tell_of_it() -> None:
    run = run_of(
        told(1, old=1e-3, fresh=1e-2),
        told(2, old=2e-3, fresh=float("nan")),
        told(3, masked=False, old=3e-3, fresh=3e-2),
    )
    parts = run.stages[0].parts
    assert list(parts["updates"]) == ["old", "fresh"]
    assert parts["updates"]["old"].values.tolist() == [1e-3, 2e-3, 3e-3]
    assert parts["updates"]["fresh"].values.tolist() == [1e-2, 3e-2]
    assert parts["updates"]["fresh"].tokens.tolist() == [256, 768]
    assert parts["masks"]["ffn"].values.tolist() == [0.1, 0.2]


def test_rows_are_those_that_there_is_something_for() -> None:
    assert kinds_of([run_of(told(1), told(2))]) == []
    assert kinds_of([run_of(told(1, old=1e-3), told(2, old=1e-3))]) == ["masks", "updates"]
    assert kinds_of([run_of(told(1, masked=False, old=1e-3))]) == ["updates"]


def test_validation_sets_have_a_row_of_their_own() -> None:
    sets = {"held-out": SetLoss(3.0, 1.5), "code": SetLoss(float("inf"))}
    record = ValidationRecord(1, 256, 1000, 3.0, "large", {}, 1.5, sets)
    run = RunCurves("run", curves([[told(1), record]], "run"))
    assert kinds_of([run]) == ["sets"]
    (trace,) = run.stages[0].parts["sets"].values()  # what is not finite cannot be drawn
    assert (trace.tokens.tolist(), trace.values.tolist()) == ([256], [3.0])
    assert "Validation loss" in text_of(run)
    assert "held-out" in text_of(run)


def text_of(*runs: RunCurves) -> str:
    svg = picture(list(runs), "svg", Look())
    assert svg == picture(list(runs), "svg", Look())
    return svg.decode()


def test_a_run_has_its_parts_by_name() -> None:
    drawn = text_of(run_of(*(told(n, old=1e-3, fresh=1e-2 / n) for n in range(1, 9))))
    for words in ("Mask", "Update relative to weight", ">ffn<", ">old<", ">fresh<"):
        assert words in drawn
    assert "Update" not in text_of(run_of(told(1), told(2)))


def test_of_several_runs_each_part_has_its_name() -> None:
    runs = [run_of(told(1, old=1e-3), told(2, old=1e-3), name=name) for name in ("one", "two")]
    drawn = text_of(*runs)
    assert ">one: old<" in drawn
    assert ">two: old<" in drawn


def test_dimensions_have_a_row_of_their_own() -> None:
    ratios = {"width": {"old": 1e-3, "fresh": 2e-3}, "depth": {"old": 0.0, "fresh": 4e-3}}
    steps = [replace(told(n, old=1e-3), updates_by_dimension=ratios) for n in (1, 2)]
    run = run_of(*steps)
    assert kinds_of([run]) == ["masks", "updates", "dimensions"]
    assert run.stages[0].parts["dimensions"]["depth fresh"].values.tolist() == [4e-3, 4e-3]
    drawn = text_of(run)
    for words in ("The same by dimension", ">width old<", ">depth fresh<"):
        assert words in drawn
    assert ">depth old<" not in drawn  # frozen: it has no place on a logarithmic scale


def test_a_file_of_metrics_brings_them_back(tmp_path: Path) -> None:
    (found,) = read_runs([write_run(tmp_path / "run", [[told(1, old=1e-3, fresh=2e-3)]])])
    assert found.stages[0].parts["updates"]["fresh"].values.tolist() == [2e-3]
