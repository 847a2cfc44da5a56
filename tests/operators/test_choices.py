"""A word that nobody knows is refused where a value is made, and by every dispatch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pico import CONFIGS

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.model.axes import Axis, AxisMap
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.choices import METHODS, Method, chosen_methods
from flmgrow.operators.depth import grow_depth
from flmgrow.operators.dimension import DimensionGrowth
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow, parse_methods
from flmgrow.operators.units import grow_ffn, grow_heads
from flmgrow.operators.width import grow_width

MODEL = CONFIGS["tele"]
SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "method": (
        {"methods": {**parse_methods("zero"), Dimension.WIDTH: "zreo"}},
        "'zreo' is no method for width",
    ),
    "no methods": ({"methods": {}}, "no method for width"),
    "a method short": ({"methods": {Dimension.WIDTH: "zero"}}, "no method for heads"),
    "a dimension more": ({"methods": {**parse_methods("zero"), "size": "zero"}}, "'size' is no"),
    "another's method": (
        {"methods": {**parse_methods("zero"), Dimension.FFN: "stack"}},
        "'stack' is no method for ffn",
    ),
    "moments": ({"moments": "kepp"}, "moments kepp: wanted keep, reset or asymmetric"),
    "new layers": ({"new_layers": "rnadom"}, "new layers rnadom: wanted copy or random"),
    "second moment": ({"fresh_second_moment": "meen"}, "meen: wanted zero or mean"),
    "rows": ({"fresh_rows": "drown"}, "fresh rows drown: wanted mean or drawn"),
    "ramp": ({"ramp_steps": 0}, "ramp: 0, wanted at least 1"),
    "noise": ({"copy_noise": -0.1}, "noise is -0.1"),
    "no noise": ({"copy_noise": float("nan")}, "noise is nan"),
    "seed": ({"seed": -1}, "seed: -1, wanted"),
    "heads": ({"heads": 0}, "heads: 0, wanted at least 1"),
    "groups": ({"kv_groups": 0}, "kv_groups: 0, wanted"),
    "vocabulary": ({"vocab": -5}, "vocab: -5, wanted"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_in_one_line(slip: str) -> None:
    changed, says = SLIPS[slip]
    with pytest.raises(UsageError, match=says) as refusal:
        Target(**changed)
    assert "\n" not in f"{refusal.value.message}{refusal.value.hint}"
    data = {**Target().to_json(), **changed}
    with pytest.raises(BadCheckpointError, match="growth request") as blamed:
        Target.from_json(data)
    assert "\n" not in blamed.value.message


def test_what_is_right_is_taken_and_comes_back() -> None:
    for dimension, methods in METHODS.items():
        for method in methods:
            wanted = Target(methods={**parse_methods("mask"), dimension: method})
            assert Target.from_json(wanted.to_json()) == wanted
    words: Any = {str(dimension): "zero" for dimension in Dimension}
    assert set(chosen_methods(words).values()) == {Method.ZERO}


@pytest.mark.parametrize("words", [{"moments": "kepp"}, {"fresh_second_moment": "meen"}])
def test_a_growth_knows_its_words(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="wanted"):
        replace(grow(MODEL, Target(ffn=24), 56, 56), **words)
    with pytest.raises(UsageError, match="wanted"):
        Growth(MODEL, MODEL, **words)


def test_every_dispatch_ends_in_an_error() -> None:
    with pytest.raises(UsageError, match="'zreo' is no method for width"):
        grow_width(MODEL, 20, "zreo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'stack' is no method for ffn"):
        grow_ffn(MODEL, 24, Method.STACK, 0)
    with pytest.raises(UsageError, match="'zreo' is no method for heads"):
        grow_heads(MODEL, 6, 1, "zreo", 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'zreo' is no method for depth"):
        grow_depth(MODEL, 6, "zreo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="new layers rnadom"):
        grow_depth(MODEL, 6, Method.ZERO, new_layers="rnadom")  # type: ignore[arg-type]


def test_maps_and_factors_are_numbers_that_make_sense() -> None:
    source = np.arange(4, dtype=np.int64)
    slips: tuple[dict[str, Any], ...] = (
        {"noise": -1.0},
        {"noise": float("inf")},
        {"donor": source + 1},
    )
    for wrong in slips:
        with pytest.raises(ValueError, match=r"noise|donors"):
            AxisMap(4, source, **wrong)
    with pytest.raises(ValueError, match="donors"):
        AxisMap(4, source, donor=source[:2])
    with pytest.raises(BadCheckpointError, match="a ramp of 0 steps"):
        Mask(Dimension.FFN, {Axis.FFN: source}, ramp_steps=0)
    with pytest.raises(ValueError, match="epsilon"):
        DimensionGrowth({Axis.HIDDEN: AxisMap(4, source)}, eps_factor=0.0)


def test_a_method_of_another_dimension_is_led_to_its_own() -> None:
    with pytest.raises(UsageError) as caught:
        parse_methods("stack")
    assert caught.value.hint == "one of mask, zero, copy; stack is for depth alone: say depth=stack"
    assert parse_methods("depth=stack")[Dimension.DEPTH] == "stack"
