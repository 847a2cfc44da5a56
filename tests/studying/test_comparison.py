"""What was planted in simulated studies is found, and what was not is not."""

from dataclasses import replace
from math import exp, isclose
from statistics import fmean

import pytest
from simulated_studies import FLOPS, Planted, simulate

from flmgrow.studying.comparison import (
    AgainstScratch,
    SeedVerdict,
    against_scratch,
    frontiers,
    pairs,
)
from flmgrow.studying.outcomes import Expense, MeasuredStudy
from flmgrow.studying.statistics import COVERAGE, LEVEL, holm

NULL = 20
SLOPE = 0.3


def only(measured: MeasuredStudy, axis: Expense = Expense.FLOPS) -> AgainstScratch:
    (row,) = against_scratch(measured, axis)
    return row


def test_twenty_null_studies_find_no_difference() -> None:
    """Two arms that are the same but for chance, twenty times, as one table at one level."""
    arms = [Planted("one", shift=-0.1), Planted("other", shift=-0.1)]
    found = [pairs(simulate(number, arms))[0].difference for number in range(NULL)]
    estimates = [each.estimate for each in found if each.estimate]
    assert len(estimates) == NULL
    assert min(holm([each.p for each in estimates])) >= LEVEL


def test_a_null_study_finds_a_difference_in_5_of_100_at_most() -> None:
    arms = [Planted("one"), Planted("other")]
    many = 400
    found = [pairs(simulate(number, arms))[0].difference.verdict for number in range(many)]
    rate = fmean(verdict is not SeedVerdict.NO_DIFFERENCE for verdict in found)
    assert rate < LEVEL + 3 * (LEVEL * COVERAGE / many) ** 0.5


def test_a_planted_difference_is_found_in_each_of_twenty() -> None:
    arms = [Planted("one", shift=-0.2), Planted("other")]
    for number in range(NULL):
        row = pairs(simulate(number, arms))[0]
        assert (row.one, row.other, row.axes) == ("one", "other", tuple(Expense))
        assert row.difference.verdict is SeedVerdict.BETTER


def test_what_seeds_share_leaves_the_difference() -> None:
    """Noise that both arms have is ten times the difference, and hides nothing."""
    arms = [Planted("one", shift=-0.1), Planted("other")]
    row = pairs(simulate(0, arms, noise=0.001, by_seed=1.0))[0]
    assert row.difference.verdict is SeedVerdict.BETTER


def test_a_ratio_of_flops_is_what_was_planted() -> None:
    """Straight over the logarithm, a shift of -SLOPE * log 1.6 is 1.6 times the FLOPs."""
    arms = [Planted("grown", shift=-SLOPE * 0.47, length=2.0)]
    row = only(simulate(1, arms, noise=0))
    assert row.ratio.estimate
    assert row.difference.estimate
    assert isclose(row.ratio.estimate.value, exp(0.47), rel_tol=1e-6)
    assert isclose(row.difference.estimate.value, -SLOPE * 0.47, rel_tol=1e-6)
    assert (row.below, row.above, row.least) == (0, 0, None)


def test_intervals_of_the_ratio_hold_it_in_95_of_100_studies() -> None:
    many, planted = 250, -SLOPE * 0.3
    held = []
    for number in range(many):
        row = only(simulate(number, [Planted("grown", shift=planted)], noise=0.01))
        assert row.ratio.estimate
        held.append(row.ratio.estimate.low <= exp(0.3) <= row.ratio.estimate.high)
    assert abs(fmean(held) - COVERAGE) < 3 * (LEVEL * COVERAGE / many) ** 0.5


def test_better_and_worse_are_told_apart() -> None:
    arms = [Planted("good", shift=-0.15), Planted("bad", shift=0.15), Planted("same")]
    rows = {row.arm: row for row in against_scratch(simulate(3, arms, noise=0.002), Expense.FLOPS)}
    for name, verdict in (
        ("good", SeedVerdict.BETTER),
        ("bad", SeedVerdict.WORSE),
        ("same", SeedVerdict.NO_DIFFERENCE),
    ):
        assert rows[name].difference.verdict is verdict
        assert rows[name].ratio.verdict is verdict


def test_beyond_the_frontier_is_an_answer() -> None:
    low = only(simulate(4, [Planted("low", shift=-1.0)]))
    assert low.ratio.verdict is SeedVerdict.BEYOND
    assert low.ratio.estimate is None
    assert (low.below, low.above, low.least) == (3, 0, 2.0)  # the longest is 4, and this is 2
    assert low.difference.verdict is SeedVerdict.BETTER  # at the same FLOPs there is an answer
    high = only(simulate(4, [Planted("high", shift=1.0)]))
    assert (high.below, high.above, high.least) == (0, 3, None)
    long = only(simulate(4, [Planted("long", shift=0.3, length=8.0)]))
    assert long.difference.verdict is SeedVerdict.BEYOND
    assert (long.shorter, long.longer) == (0, 3)
    assert long.ratio.verdict is SeedVerdict.WORSE


def test_an_arm_of_which_one_seed_is_beyond_has_no_ratio() -> None:
    """The others alone would be those that happened to be worse."""
    shift = -SLOPE * 0.693
    rows = [only(simulate(number, [Planted("edge", shift=shift)])) for number in range(10)]
    mixed = [row for row in rows if 0 < row.below < 3]
    assert mixed
    assert all(row.ratio.verdict is SeedVerdict.BEYOND for row in mixed)


def test_equal_tokens_is_another_question() -> None:
    """An arm of few FLOPs for its tokens: better at equal FLOPs, worse at equal tokens."""
    measured = simulate(5, [Planted("grown", shift=-0.1, length=1.0, tokens=4.0)], noise=0.002)
    assert only(measured, Expense.FLOPS).ratio.verdict is SeedVerdict.BETTER
    assert only(measured, Expense.TOKENS).difference.verdict is SeedVerdict.WORSE
    assert only(measured, Expense.SECONDS).ratio.verdict is SeedVerdict.BETTER


def test_an_arm_that_diverged_in_one_seed_is_not_averaged_over_the_others() -> None:
    arms = [Planted("wild", shift=-0.2, diverges=(1,)), Planted("other")]
    measured = simulate(6, arms)
    wild = against_scratch(measured, Expense.FLOPS)[0]
    assert wild.ratio.verdict is wild.difference.verdict is SeedVerdict.DIVERGED
    assert pairs(measured)[0].difference.verdict is SeedVerdict.DIVERGED


def test_runs_that_diverged_or_did_not_decay_are_no_part_of_the_frontier() -> None:
    measured = simulate(7, [])
    full = frontiers(measured, Expense.FLOPS)[0]
    assert full.amounts == (FLOPS, 2 * FLOPS, 4 * FLOPS)
    first, *others = measured.outcomes
    for changed in (replace(first, diverged=True), replace(first, decayed=False)):
        less = replace(measured, outcomes=(changed, *others))
        assert frontiers(less, Expense.FLOPS)[0].amounts == full.amounts[1:]
        assert frontiers(less, Expense.FLOPS)[1].amounts == full.amounts


def test_one_seed_claims_nothing() -> None:
    measured = simulate(8, [Planted("grown", shift=-0.2), Planted("other")], seeds=1)
    row = against_scratch(measured, Expense.FLOPS)[0]
    assert row.difference.verdict is SeedVerdict.ONE_SEED
    assert pairs(measured)[0].difference.verdict is SeedVerdict.ONE_SEED


def test_without_a_frontier_there_is_nothing_to_compare_with() -> None:
    measured = simulate(9, [Planted("grown")])
    alone = replace(
        measured,
        arms=measured.arms[-1:],
        outcomes=tuple(each for each in measured.outcomes if each.arm == "grown"),
    )
    row = only(alone)
    assert row.ratio.verdict is row.difference.verdict is SeedVerdict.ALONE


def test_arms_of_other_amounts_are_no_pair() -> None:
    arms = [Planted("one", length=1.0), Planted("other", length=2.0)]
    (row,) = pairs(simulate(10, arms))
    assert row.axes == (Expense.TOKENS,)


@pytest.mark.parametrize("count", [1, 6])
def test_more_rows_need_more_evidence(count: int) -> None:
    arms = [Planted(f"arm-{number}", shift=-0.1) for number in range(count)]
    row = against_scratch(simulate(11, arms), Expense.FLOPS)[0]
    assert row.difference.estimate
    assert row.difference.corrected
    assert row.difference.corrected <= count * row.difference.estimate.p + 1e-12
    assert (row.difference.corrected > row.difference.estimate.p) == (count > 1)
