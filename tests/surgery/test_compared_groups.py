"""Param groups of two optimizers are compared as groups of parameters, wherever they stand."""

from dataclasses import replace
from typing import Any

import pytest
from pico import CONFIGS

from flmgrow.formats.checkpoint import OptimizerState
from flmgrow.model.mup import KIND, Kind
from flmgrow.operators.growth import Growth
from flmgrow.surgery.optimizer_metadata import compare_counted

DECAYED = {"lr": 1e-3, "eps": 1e-8, "wd_mult": 1.0, "step": 3}
PLAIN = {**DECAYED, "wd_mult": 0.0, "lr": 2e-3}
OWN_MUP = {**DECAYED, "lr": 5e-4, "eps": 5e-9}
"""Beside DECAYED, of hidden matrices: no setting says so, the place behind it alone."""
NAMED = [{**DECAYED, KIND: str(kind)} for kind in (Kind.HIDDEN, Kind.HEAD)]


GROWTH = Growth(CONFIGS["tele"], CONFIGS["tele"])


def compared(source: list[Any], result: list[Any]) -> tuple[bool, str]:
    state = OptimizerState(
        groups=tuple(source), step=None, mixed_precision=False, dtypes={}, gradient_dtype=None
    )
    same, detail = compare_counted(state, replace(state, groups=tuple(result)), GROWTH)
    return same, str(detail)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ([DECAYED, PLAIN], [PLAIN, DECAYED]),
        (NAMED, NAMED[::-1]),
        ([DECAYED, OWN_MUP, PLAIN], [PLAIN, DECAYED, OWN_MUP]),
    ],
    ids=["decay", "kinds", "megatron-core's own muP"],
)
def test_settings_that_say_whose_they_are_may_stand_anywhere(
    source: list[Any], result: list[Any]
) -> None:
    assert compared(source, result) == (
        True,
        f"step 3, {len(source)} param groups as in the source",
    )


def test_of_groups_that_only_their_order_tells_apart_it_counts() -> None:
    """Exchanged, hidden matrices would go on with the learning rate of all others."""
    same, detail = compared([DECAYED, OWN_MUP, PLAIN], [OWN_MUP, DECAYED, PLAIN])
    assert not same
    assert "lr of param group 0" in detail


def test_settings_that_went_to_another_group_are_found() -> None:
    exchanged = [{**PLAIN, "wd_mult": 1.0}, {**DECAYED, "wd_mult": 0.0}]
    same, detail = compared([DECAYED, PLAIN], exchanged)
    assert not same
    assert "lr of param group 0" in detail
