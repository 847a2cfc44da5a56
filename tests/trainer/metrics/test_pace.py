"""The time that is left counts what is done between steps, as often as it comes."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.trainer.metrics.pace import SAVING, VALIDATION, Pace
from flmgrow.trainer.stage.file import StageFile

COUNTS = st.integers(1, 60)


def stage(**changes: dict[str, Any]) -> StageFile:
    """A stage, with changes to its sections."""
    content: dict[str, Any] = {
        "name": "small",
        "data": {"sequence_length": 32, "corpora": [{"path": "x"}], "validation_share": 0.1},
        "training": {"steps": 100, "batch": 8},
        "learning_rate": {"peak": 1e-3},
        **changes,
    }
    return StageFile.model_validate(content)


def timed(pace: Pace, kind: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, seconds])
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(now))
        with pace.timed(kind):
            pass


def test_before_anything_was_timed_steps_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(stage(log={"validation_every": 7}, checkpoint={"every": 3}), 100)
    assert pace.left(40, 2.0) == 120.0
    timed(pace, SAVING, 10.0, monkeypatch)
    timed(pace, VALIDATION, 4.0, monkeypatch)
    # 42, 49, ..., 98 and 100; 42, 45, ..., 99 and 100.
    assert pace.left(40, 2.0) == 120.0 + 10 * 4.0 + 21 * 10.0
    timed(pace, SAVING, 1.0, monkeypatch)
    assert pace.left(40, 2.0) == 120.0 + 10 * 4.0 + 21 * 1.0


@given(every=COUNTS, validates=st.none() | COUNTS, last=COUNTS, data=st.data())
def test_what_is_due_is_what_the_loop_does(
    every: int, validates: int | None, last: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, last))
    pace = Pace(stage(log={"validation_every": validates}, checkpoint={"every": every}), last)
    for kind in (VALIDATION, SAVING):
        pace._seconds[kind] = 1.0

    def times(every: int | None) -> int:
        return sum(
            every is not None and (now == last or now % every == 0) for now in range(step, last + 1)
        )

    assert pace.left(step, 0.0) == times(every) + times(validates)


def test_without_a_number_of_steps_it_is_saved_at_the_end_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = Pace(stage(), 100)
    timed(pace, SAVING, 10.0, monkeypatch)
    assert pace.left(60, 1.0) == 50.0
