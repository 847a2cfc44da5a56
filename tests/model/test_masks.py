"""Masks rise along a line, together or in turn, and a run that is resumed stays on it."""

import numpy as np
import pytest

from flmgrow.model.axes import Axis
from flmgrow.model.masks import Dimension, Mask, ramped

FFN = Mask(Dimension.FFN, {Axis.FFN: np.array([3])}, 0.0, 10)
DEPTH = Mask(Dimension.DEPTH, {Axis.LAYER: np.array([1])}, 0.0, 4)
MASKS = {Dimension.FFN: FFN, Dimension.DEPTH: DEPTH}


def values(steps: int, *, in_turn: bool = False) -> list[float]:
    return [mask.value for mask in ramped(MASKS, steps, in_turn=in_turn).values()]


def test_each_rises_linearly_over_its_own_ramp() -> None:
    assert [values(steps) for steps in (0, 1, 4, 7, 10, 99)] == [
        [0.0, 0.0], [0.1, 0.25], [0.4, 1.0], [0.7, 1.0], [1.0, 1.0], [1.0, 1.0],
    ]  # fmt: skip


def test_in_turn_one_waits_for_the_other() -> None:
    assert [values(steps, in_turn=True) for steps in (0, 1, 10, 11, 14, 99)] == [
        [0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.0, 0.25], [1.0, 1.0], [1.0, 1.0],
    ]  # fmt: skip


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("ramp", [3, 7, 10, 49, 5000])
def test_a_resumed_run_is_on_the_same_line(ramp: int, in_turn: bool) -> None:
    masks = {
        Dimension.FFN: Mask(Dimension.FFN, FFN.fresh, 0.0, ramp),
        Dimension.DEPTH: Mask(Dimension.DEPTH, DEPTH.fresh, 0.0, 13),
    }
    straight = ramped(masks, ramp + 5, in_turn=in_turn)
    for step in range(0, ramp + 5, max(1, ramp // 20)):
        stopped = ramped(masks, step, in_turn=in_turn)
        resumed = ramped(stopped, ramp + 5 - step, in_turn=in_turn)
        assert [mask.value for mask in resumed.values()] == [
            mask.value for mask in straight.values()
        ]


def test_a_value_between_two_steps_is_kept_and_reaches_1() -> None:
    between = {Dimension.FFN: FFN.at(1 / 3)}
    assert ramped(between, 0)[Dimension.FFN].value == 1 / 3
    assert ramped(between, 6)[Dimension.FFN].value < 1.0
    assert ramped(between, 7)[Dimension.FFN].value == 1.0
