"""A model that grows keeps its effective multipliers, and one that does not keeps its very bits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS

from flmgrow.model.axes import Axis
from flmgrow.model.config import Multipliers

OUTPUTS = st.floats(0.01, 100)


@given(OUTPUTS, st.integers(1, 8192), st.integers(1, 512))
def test_sizes_that_stay_change_nothing(output: float, hidden: int, base: int) -> None:
    multipliers = Multipliers(output=output, mup_base_width=base)
    config = replace(CONFIGS["llama"], hidden=hidden, multipliers=multipliers)
    assert config.with_sizes(config.sizes) == config


@given(OUTPUTS, st.integers(1, 512), st.integers(1, 512))
def test_a_wider_model_keeps_its_logits(output: float, hidden: int, more: int) -> None:
    multipliers = Multipliers(output=output, mup_base_width=64)
    config = replace(CONFIGS["llama"], hidden=hidden, multipliers=multipliers)
    wider = config.with_sizes({**config.sizes, Axis.HIDDEN: hidden + more})
    assert wider.logit_factor == pytest.approx(config.logit_factor, rel=1e-15)
    assert wider.multipliers.output > output
