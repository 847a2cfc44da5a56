"""Intervals hold the true value as often as they say, and nothing is found where nothing is."""

from itertools import pairwise
from math import inf, isclose, log
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.studying.statistics import COVERAGE, LEVEL, Estimate, estimate, holm

STUDIES = 2000
NOISE = 3 * (LEVEL * COVERAGE / STUDIES) ** 0.5
"""Three standard deviations of a rate of 5 % that is counted in so many studies."""

values = st.lists(st.floats(-10, 10).map(lambda value: round(value, 6)), min_size=2, max_size=6)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_three_values_by_hand() -> None:
    """Mean 2, standard error 1/sqrt 3, and 4.302653 times that with two degrees of freedom."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.value == 2
    assert isclose(found.high - 2, 4.302653 / 3**0.5, rel_tol=1e-6)
    assert isclose(found.p, 0.0741799, rel_tol=1e-5)  # t = 3.4641: 1 - t / sqrt(t^2 + 2)


@given(values)
def test_the_interval_excludes_zero_exactly_where_p_is_small(found: list[float]) -> None:
    told = estimate(found)
    assert told.low <= told.value <= told.high
    if abs(told.p - LEVEL) > 1e-9 and told.low != told.high:
        assert (told.low > 0 or told.high < 0) == (told.p < LEVEL)


@given(values, st.floats(-5, 5), st.floats(0.1, 10))
def test_it_moves_and_stretches_with_the_values(
    found: list[float], by: float, times: float
) -> None:
    one, other = estimate(found), estimate([times * value + by for value in found])
    for name in ("value", "low", "high"):
        assert isclose(times * getattr(one, name) + by, getattr(other, name), abs_tol=1e-6)


def test_one_seed_bounds_nothing() -> None:
    found = estimate([2.0])
    assert (found.low, found.high, found.p) == (-inf, inf, 1.0)
    assert found.exponential().high == inf
    assert found.to_json() == {"value": 2.0, "low": None, "high": None, "seeds": 1, "p": 1.0}


def test_equal_values_are_no_difference_and_a_constant_one_is() -> None:
    assert estimate([0.0, 0.0, 0.0]).p == 1
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 3, 0.0)
    with pytest.raises(UsageError, match="no values"):
        estimate([])


def test_a_ratio_is_the_exponential_of_its_logarithm() -> None:
    found = estimate([log(2), log(8)]).exponential()
    assert isclose(found.value, 4)
    assert isclose(found.low * found.high, 16)


def test_holms_own_steps() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(p_values)
def test_corrected_values_keep_their_order_and_are_between_one_and_many(p: list[float]) -> None:
    corrected = holm(p)
    for one, other in zip(p, corrected, strict=True):
        assert one <= other <= min(1.0, len(p) * one + 1e-12) + 1e-12
    order = sorted(range(len(p)), key=lambda place: p[place])
    assert all(corrected[a] <= corrected[b] for a, b in pairwise(order))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_mean_in_95_of_100_studies(seeds: int) -> None:
    drawn = np.random.default_rng(seeds).normal(1.0, 0.02, (STUDIES, seeds))
    found = [estimate(list(row)) for row in drawn]
    rate = fmean(each.low <= 1.0 <= each.high for each in found)
    assert abs(rate - COVERAGE) < NOISE


def test_a_bootstrap_of_three_seeds_does_not() -> None:
    """Why there is none: the same studies, by the percentiles of all 27 draws."""
    draws = np.stack(np.meshgrid(*[range(3)] * 3), axis=-1).reshape(-1, 3)
    drawn = np.random.default_rng(3).normal(1.0, 0.02, (STUDIES, 3))
    means = drawn[:, draws].mean(-1)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    assert ((low <= 1.0) & (high >= 1.0)).mean() < 0.76


@pytest.mark.parametrize("rows", [1, 8])
def test_a_table_of_nothing_finds_something_in_5_of_100_studies_at_most(rows: int) -> None:
    """With rows that share a baseline, as arms do."""
    random = np.random.default_rng(rows)
    baseline = random.normal(0, 1, (STUDIES // 2, 1, 3))
    drawn = random.normal(0, 1, (STUDIES // 2, rows, 3)) - baseline
    found = [min(holm([estimate(list(row)).p for row in table])) < LEVEL for table in drawn]
    assert fmean(found) < LEVEL + NOISE * 2**0.5


def test_without_correction_it_finds_far_more() -> None:
    drawn = np.random.default_rng(8).normal(0, 1, (300, 8, 3))
    found = [min(estimate(list(row)).p for row in table) < LEVEL for table in drawn]
    assert fmean(found) > 5 * LEVEL
