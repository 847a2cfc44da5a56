"""What can be held is valid: values that somebody asks with check themselves when they are made."""

from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings
from flmgrow.operators.target import Target
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import FileRequest, LayoutRequest
from flmgrow.surgery.requests import Files

LLAMA = CONFIGS["llama"]
NO_SIZES = (0, -3, 48.0, True, "48", nan)
NO_NUMBERS = (nan, inf, -inf, "1", None, True)


def refuses(make: Any, **wrong: object) -> None:
    with pytest.raises(UsageError):
        make(**wrong)


@pytest.mark.parametrize("size", NO_SIZES)
def test_sizes_are_whole_numbers(size: object) -> None:
    for name in ("layers", "hidden", "ffn", "heads", "kv_groups", "vocab", "ramp_steps"):
        refuses(Target, **{name: size})
    for name in ("layers", "hidden", "ffn", "kv_groups", "vocab", "head_dim", "max_positions"):
        refuses(lambda **wrong: replace(LLAMA, **wrong), **{name: size})
    for name in ("tp", "pp", "vpp", "padded_vocab"):
        refuses(LayoutRequest, **{name: size})
    refuses(Execution, workers=size)
    refuses(Execution, max_memory=size)
    refuses(Multipliers, mup_base_width=size)


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_factors_are_finite_numbers(number: object) -> None:
    refuses(Target, copy_noise=number)
    refuses(Multipliers, embedding=number)
    refuses(Multipliers, output=number)
    refuses(RotarySettings, base=number)
    refuses(RotarySettings, xpos_scale_base=number)
    refuses(lambda **wrong: replace(LLAMA, **wrong), norm_eps=number)
    if number is not None:
        refuses(Execution, init_std=number)
        refuses(Multipliers, attention=number)
        refuses(RotarySettings, scaling_factor=number)
        refuses(RotarySettings, interpolation=number)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Target, {"seed": -1}),
        (Target, {"seed": 0.5}),
        (Target, {"copy_noise": -1e-9}),
        (Execution, {"init_std": -0.1}),
        (Execution, {"replicated": "some"}),
        (LayoutRequest, {"pipeline_layers": (3, -1)}),
        (LayoutRequest, {"pipeline_layers": (1.5, 1.5)}),
        (FileRequest, {"dtype": "float8"}),
        (Files, {"dtype": "float8"}),
        (Files, {"shard_size": 0}),
        (RotarySettings, {"base": 0}),
        (RotarySettings, {"scaling_factor": -8.0}),
        (RotarySettings, {"percent": 1.01}),
        (RotarySettings, {"xpos_centre": -1}),
    ],
)
def test_what_is_not_possible_cannot_be_held(make: Any, wrong: dict[str, object]) -> None:
    refuses(make, **wrong)


@pytest.mark.parametrize("name", ["norm", "activation", "positions"])
def test_words_of_a_model_are_known_ones(name: str) -> None:
    wrong: dict[str, Any] = {name: "groupnorm"}
    with pytest.raises(UsageError, match=f"{name} groupnorm: unknown") as error:
        replace(LLAMA, **wrong)
    assert getattr(LLAMA, name) in error.value.hint


def test_valid_values_are_held() -> None:
    for config in CONFIGS.values():
        assert isinstance(config, ModelConfig)
    Target(hidden=int(np.int64(48)), seed=0, copy_noise=0.0)
    Target(hidden=np.int64(48))  # type: ignore[arg-type]
    LayoutRequest(tp=1, pp=2, pipeline_layers=(0, 4))
    Execution(init_std=0.0, workers=3)


@given(st.integers(), st.integers(-5, 5))
def test_whole_numbers_from_the_least_on(value: int, least: int) -> None:
    if value >= least:
        check_whole("size", value, least)
    else:
        with pytest.raises(UsageError, match=f"size: {value}, wanted at least {least}"):
            check_whole("size", value, least)


@given(st.floats(), st.floats(-3, 3))
def test_finite_numbers_above_a_bound(value: float, bound: float) -> None:
    if bound < value < inf:
        check_finite("factor", value, above=bound)
    else:
        with pytest.raises(UsageError, match="factor is"):
            check_finite("factor", value, above=bound)
