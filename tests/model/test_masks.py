"""Masks: their values, their JSON, and the line along which they rise."""

import numpy as np
import pytest
from pico import CONFIGS

from flmgrow.errors import BadCheckpointError
from flmgrow.model.axes import Axis
from flmgrow.model.masks import Dimension, Mask, mask_from_json, ramped, ranges

CONFIG = CONFIGS["gpt"]
FFN = Mask(Dimension.FFN, {Axis.FFN: np.array([3])}, 0.0, 10)
DEPTH = Mask(Dimension.DEPTH, {Axis.LAYER: np.array([1])}, 0.0, 4)
MASKS = {Dimension.FFN: FFN, Dimension.DEPTH: DEPTH}


def fresh(axis: Axis, *indices: int) -> dict[Axis, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return {axis: np.array(indices, np.int64)}


def heads(groups: list[int], queries: list[int], value: float = 0.0) -> Mask:
    indices = {**fresh(Axis.KV_GROUP, *groups), **fresh(Axis.QUERY_PER_GROUP, *queries)}
    return Mask(Dimension.HEADS, indices, value)


def test_a_head_is_fresh_if_its_group_or_its_place_is() -> None:
    sizes = {**CONFIG.sizes, Axis.KV_GROUP: 3, Axis.QUERY_PER_GROUP: 2}
    assert heads([2], [1], 0.25).values(sizes).tolist() == [[1, 0.25], [1, 0.25], [0.25, 0.25]]


def test_json_and_back() -> None:
    mask = Mask(Dimension.FFN, fresh(Axis.FFN, 3, 4, 5, 9), 0.5, 700)
    data = mask.to_json()
    assert data == {"value": 0.5, "ramp_steps": 700, "fresh": {"ffn": [[3, 6], [9, 10]]}}
    back = mask_from_json("ffn", data)
    assert back.fresh[Axis.FFN].tolist() == [3, 4, 5, 9]
    assert (back.value, back.ramp_steps, back.dimension) == (0.5, 700, Dimension.FFN)
    assert ranges(np.zeros(0, np.int64)) == []


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"value": 2.0, "ramp_steps": 1, "fresh": {"ffn": []}},
        {"value": 0.0, "ramp_steps": 1, "fresh": {"hidden": []}},
        {"value": "0", "ramp_steps": 1, "fresh": {"ffn": []}},
        {"value": 0.0, "ramp_steps": 1, "fresh": {"ffn": [[1, 2, 3]]}},
        {"value": 0.0, "ramp_steps": 1, "fresh": [1]},
    ],
)
def test_malformed_json_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(BadCheckpointError, match="ffn mask"):
        mask_from_json("ffn", data)


def test_an_index_outside_the_model_is_refused() -> None:
    with pytest.raises(BadCheckpointError, match="index 99 is too large"):
        Mask(Dimension.FFN, fresh(Axis.FFN, 99)).values(CONFIG.sizes)


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
