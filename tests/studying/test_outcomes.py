"""What cannot be measured cannot be held."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flmgrow.errors import UsageError
from flmgrow.studying.outcomes import (
    Arm,
    Expense,
    GrowthInArm,
    MeasuredStudy,
    Outcome,
    Reading,
    StepLoss,
)

READING = Reading(step=10, tokens=100, flops=1e6, loss=2.0)
GROWN = GrowthInArm("b", "mask", 50, 5e5, 2.1, 2.1, (StepLoss(-1, 2.2), StepLoss(0, 2.1)))
OUTCOME = Outcome("grown", 1, 1000, (READING,), (GROWN,), 3.5, True, False)
ARM = Arm("grown", "in two stages", (500, 1000), 100, 1e6, False)
SCRATCH = Arm("scratch", "from scratch", (1000,), 100, 2e6, True)


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (READING, {"loss": float("nan")}),
        (READING, {"loss": 0.0}),
        (READING, {"flops": float("inf")}),
        (READING, {"tokens": -1}),
        (READING, {"step": 1.5}),
        (GROWN, {"before": float("inf")}),
        (GROWN, {"around": (StepLoss(0, 2.0), StepLoss(0, 2.0))}),
        (OUTCOME, {"readings": ()}),
        (OUTCOME, {"readings": (READING, READING)}),
        (OUTCOME, {"seconds": -1.0}),
        (OUTCOME, {"parameters": 0}),
        (ARM, {"sizes": ()}),
        (ARM, {"flops": 0.0}),
        (ARM, {"scratch": True}),
    ],
)
def test_what_is_impossible_is_refused(value: Any, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(value, **change)


def test_what_diverged_has_no_final_loss() -> None:
    assert OUTCOME.final is READING
    diverged = replace(OUTCOME, diverged=True)
    with pytest.raises(UsageError, match=r"grown, seed 1: diverged"):
        _ = diverged.final
    assert replace(diverged, readings=()).readings == ()


def test_what_a_training_took_is_told_along_each_axis() -> None:
    assert [OUTCOME.spent(axis) for axis in Expense] == [1e6, 100, 3.5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arms": (ARM, ARM)}, "arm grown is there twice"),
        ({"axes": ()}, "along no axis"),
        ({"outcomes": (OUTCOME, OUTCOME)}, "outcome of grown, seed 1 is there twice"),
        ({"arms": (SCRATCH,)}, "is no arm of the study"),
        ({"arms": (SCRATCH, ARM, Arm("other", "", (999,), 1, 1.0, True))}, "2 sizes"),
        ({"arms": (SCRATCH, ARM, replace(SCRATCH, name="b"))}, "scratch of 100 tokens is there"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(change: dict[str, Any], told: str) -> None:
    study = MeasuredStudy((ARM, SCRATCH), (OUTCOME,), (Expense.FLOPS,))
    with pytest.raises(UsageError, match=told):
        replace(study, **change)


def test_outcomes_are_found_by_arm_in_the_order_of_seeds() -> None:
    other = replace(OUTCOME, seed=0)
    study = MeasuredStudy((ARM, SCRATCH), (OUTCOME, other), (Expense.FLOPS,))
    assert study.by_arm == {"grown": (other, OUTCOME), "scratch": ()}


def test_it_is_plain_data() -> None:
    told = json.loads(json.dumps(MeasuredStudy((ARM,), (OUTCOME,), (Expense.FLOPS,)).to_json()))
    assert told["outcomes"][0]["growths"][0]["around"][0] == {"step": -1, "loss": 2.2}
    assert told["axes"] == ["flops"]
