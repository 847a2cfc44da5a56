"""Between the runs from scratch the frontier is monotone; beyond them it says nothing."""

from math import exp, isclose, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.studying.frontier import EQUAL, Beyond, Frontier

ends = st.lists(
    st.tuples(st.floats(1.0, 1e3), st.floats(1.0, 4.0)),
    min_size=2, max_size=5, unique_by=lambda end: round(log(end[0]), 2),
)  # fmt: skip
part = st.floats(0, 1)


def within(low: float, high: float, share: float) -> float:
    return min(max(low + share * (high - low), low), high)


@given(ends)
def test_runs_that_fall_are_met(points: list[tuple[float, float]]) -> None:
    frontier = Frontier.of(points)
    for amount, loss in zip(frontier.amounts, frontier.losses, strict=True):
        found = frontier.loss_at(amount)
        assert not isinstance(found, Beyond)
        assert isclose(found, loss, abs_tol=1e-9)


@given(ends, part, part)
def test_it_never_rises(points: list[tuple[float, float]], one: float, other: float) -> None:
    frontier = Frontier.of(points)
    low, high = (
        within(frontier.amounts[0], frontier.amounts[-1], share) for share in sorted((one, other))
    )
    first, second = frontier.loss_at(low), frontier.loss_at(high)
    assert not isinstance(first, Beyond)
    assert not isinstance(second, Beyond)
    assert second <= first + 1e-9


@given(ends, part)
def test_the_least_amount_for_a_loss_reaches_it_and_less_does_not(
    points: list[tuple[float, float]], share: float
) -> None:
    frontier = Frontier.of(points)
    loss = within(frontier.losses[-1], frontier.losses[0], share)
    amount = frontier.amount_for(loss)
    assert not isinstance(amount, Beyond)
    reached = frontier.loss_at(amount)
    assert not isinstance(reached, Beyond)
    assert reached <= loss + 1e-9
    if amount > frontier.amounts[0] * (1 + 1e-6):
        less = frontier.loss_at(amount * (1 - 1e-6))
        assert not isinstance(less, Beyond)
        assert less > loss - 1e-9


@given(ends)
def test_beyond_it_there_is_no_number(points: list[tuple[float, float]]) -> None:
    frontier = Frontier.of(points)
    assert frontier.loss_at(frontier.amounts[-1] * (1 + 2 * EQUAL)) is Beyond.ABOVE
    assert frontier.loss_at(frontier.amounts[0] * (1 - 2 * EQUAL)) is Beyond.BELOW
    assert frontier.amount_for(frontier.losses[-1] - 1e-6) is Beyond.BELOW
    assert frontier.amount_for(frontier.losses[0] + 1e-6) is Beyond.ABOVE


def test_on_a_straight_line_it_is_the_line() -> None:
    frontier = Frontier.of((amount, 3 - 0.5 * log(amount)) for amount in (1, 2, 4, 9))
    assert frontier.loss_at(3) == pytest.approx(3 - 0.5 * log(3))
    assert frontier.amount_for(2.2) == pytest.approx(exp(1.6))
    assert not frontier.pooled


def test_a_longer_run_that_ended_worse_counts_as_the_mean_of_both() -> None:
    frontier = Frontier.of([(4, 2.2), (1, 3.0), (2, 2.0)])
    assert frontier == Frontier((1, 2, 4), (3.0, 2.1, 2.1), pooled=True)
    assert frontier.amount_for(2.1) == pytest.approx(2)


def test_one_run_is_a_frontier_of_one_amount() -> None:
    frontier = Frontier.of([(10.0, 2.0)])
    assert frontier.loss_at(10.0 * (1 + EQUAL / 2)) == 2.0
    assert frontier.loss_at(11.0) is Beyond.ABOVE
    assert frontier.amount_for(2.0) == 10.0


@pytest.mark.parametrize(
    ("amounts", "losses"),
    [((), ()), ((1.0,), (2.0, 1.0)), ((1.0, 1.0), (2.0, 1.0)), ((1.0, 2.0), (1.0, 2.0)),
     ((0.0, 2.0), (2.0, 1.0))],
)  # fmt: skip
def test_what_is_no_frontier_is_refused(
    amounts: tuple[float, ...], losses: tuple[float, ...]
) -> None:
    with pytest.raises(UsageError):
        Frontier(amounts, losses)
