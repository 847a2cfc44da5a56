"""Arms beside the frontier from scratch, and beside one another, seed by seed.

Beside the frontier two questions are asked, along each axis. How much lower is an arm's final loss
than what scratch reaches for the same amount? And how many times as much does scratch need for the
arm's loss? The second has no answer where the loss lies beyond the frontier; then that is said, and
no number. Arms are compared with one another where they took equal amounts.

A training that diverged has no final loss. Its arm is then not compared: a mean over the seeds that
went well would be that of another, luckier arm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from math import log
from statistics import fmean

from flmgrow.storage.strict_json import Json
from flmgrow.studying.frontier import EQUAL, Beyond, Frontier
from flmgrow.studying.outcomes import Expense, MeasuredStudy, Outcome
from flmgrow.studying.statistics import LEVEL, Estimate, estimate, holm


class SeedVerdict(StrEnum):
    """What a comparison found."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference found"
    DIVERGED = "diverged"
    ONE_SEED = "one seed"
    BEYOND = "beyond the frontier"
    ALONE = "nothing to compare with"


@dataclass(frozen=True)
class ComparedQuantity:
    """A quantity over seeds. ``corrected`` is its p value among all of the table, by Holm.

    There is no estimate where the ``verdict`` says why.
    """

    verdict: SeedVerdict
    estimate: Estimate | None = None
    corrected: float | None = None

    def to_json(self) -> Json:
        """Return it as plain data."""
        found = None if self.estimate is None else self.estimate.to_json()
        return {"verdict": str(self.verdict), "estimate": found, "corrected_p": self.corrected}


@dataclass(frozen=True)
class AgainstScratch:
    """An arm beside the frontier, along an ``axis``.

    ``difference`` is its final loss less that of scratch for the same amount; ``ratio`` is how many
    times as much scratch needs for the arm's loss. ``below`` and ``above`` count the seeds in which
    the arm's loss is lower than the lowest of the frontier, or higher than its highest. ``least``
    is then, of the seeds below, the smallest ratio to the longest run: scratch needs more than
    that. ``shorter`` and ``longer`` count those in which it took less than the shortest run from
    scratch, or more than the longest.
    """

    arm: str
    axis: Expense
    seeds: int
    difference: ComparedQuantity
    ratio: ComparedQuantity
    below: int = 0
    above: int = 0
    least: float | None = None
    shorter: int = 0
    longer: int = 0

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "arm": self.arm,
            "axis": str(self.axis),
            "seeds": self.seeds,
            "difference": self.difference.to_json(),
            "ratio": self.ratio.to_json(),
            "seeds_below": self.below,
            "seeds_above": self.above,
            "ratio_more_than": self.least,
            "seeds_shorter": self.shorter,
            "seeds_longer": self.longer,
        }


@dataclass(frozen=True)
class Pair:
    """Two arms that took equal amounts along ``axes``: the loss of ``one`` less that of
    ``other``.
    """

    one: str
    other: str
    axes: tuple[Expense, ...]
    difference: ComparedQuantity

    def to_json(self) -> Json:
        """Return it as plain data."""
        axes = [str(axis) for axis in self.axes]
        told = self.difference.to_json()
        return {"one": self.one, "other": self.other, "axes": axes, "difference": told}


def frontiers(measured: MeasuredStudy, axis: Expense) -> dict[int, Frontier]:
    """Return the frontier of each seed that has one: runs from scratch that came to their end."""
    ends: dict[int, list[tuple[float, float]]] = {}
    for arm in measured.arms:
        for each in measured.by_arm[arm.name] if arm.scratch else ():
            if each.decayed and not each.diverged:
                ends.setdefault(each.seed, []).append((each.spent(axis), each.final.loss))
    return {seed: Frontier.of(points) for seed, points in sorted(ends.items())}


def against_scratch(measured: MeasuredStudy, axis: Expense) -> list[AgainstScratch]:
    """Return every other arm that was trained beside the frontier, as one table."""
    by_seed = frontiers(measured, axis)
    rows = [
        _against(arm.name, axis, measured.by_arm[arm.name], by_seed)
        for arm in measured.arms
        if not arm.scratch and measured.by_arm[arm.name]
    ]
    differences = _judged([row.difference for row in rows], better_is_less=True)
    ratios = _judged([row.ratio for row in rows], better_is_less=False)
    return [
        replace(row, difference=difference, ratio=_as_ratio(ratio))
        for row, difference, ratio in zip(rows, differences, ratios, strict=True)
    ]


def _against(
    arm: str, axis: Expense, outcomes: Sequence[Outcome], by_seed: dict[int, Frontier]
) -> AgainstScratch:
    """Return the arm beside the frontier, with the logarithms of the ratios, and not yet judged."""
    if any(each.diverged for each in outcomes):
        nothing = ComparedQuantity(SeedVerdict.DIVERGED)
        return AgainstScratch(arm, axis, len(outcomes), nothing, nothing)
    both = [(each, by_seed[each.seed]) for each in outcomes if each.seed in by_seed]
    scratch = [frontier.loss_at(each.spent(axis)) for each, frontier in both]
    needed = [frontier.amount_for(each.final.loss) for each, frontier in both]
    differences = [each.final.loss - loss for (each, _), loss in zip(both, scratch, strict=True)
                   if not isinstance(loss, Beyond)]  # fmt: skip
    ratios = [log(amount / each.spent(axis)) for (each, _), amount in zip(both, needed, strict=True)
              if not isinstance(amount, Beyond)]  # fmt: skip
    sides = Counter(amount for amount in needed if isinstance(amount, Beyond))
    lengths = Counter(loss for loss in scratch if isinstance(loss, Beyond))
    longest = [frontier.amounts[-1] / each.spent(axis)
               for (each, frontier), amount in zip(both, needed, strict=True)
               if amount is Beyond.BELOW]  # fmt: skip
    return AgainstScratch(
        arm, axis, len(both), _measured(differences, len(both)), _measured(ratios, len(both)),
        sides[Beyond.BELOW], sides[Beyond.ABOVE], min(longest, default=None),
        lengths[Beyond.BELOW], lengths[Beyond.ABOVE],
    )  # fmt: skip


def pairs(measured: MeasuredStudy) -> list[Pair]:
    """Return the arms that took equal amounts, two by two, as one table.

    Arms from scratch are left out: the frontier consists of them.
    """
    grown = {arm.name: measured.by_arm[arm.name] for arm in measured.arms if not arm.scratch}
    rows = []
    for (one, its), (other, others) in combinations(grown.items(), 2):
        axes = tuple(axis for axis in measured.axes if _equal(its, others, axis))
        if axes:
            rows.append(Pair(one, other, axes, _paired(its, others)))
    judged = _judged([row.difference for row in rows], better_is_less=True)
    return [replace(row, difference=found) for row, found in zip(rows, judged, strict=True)]


def _equal(its: Sequence[Outcome], others: Sequence[Outcome], axis: Expense) -> bool:
    """Whether two arms took as much: where one diverged, as far as others of it did not."""
    amounts = [
        fmean(each.spent(axis) for each in outcomes if not each.diverged)
        for outcomes in (its, others)
        if any(not each.diverged for each in outcomes)
    ]
    return len(amounts) == 2 and max(amounts) <= min(amounts) * (1 + EQUAL)


def _paired(its: Sequence[Outcome], others: Sequence[Outcome]) -> ComparedQuantity:
    if any(each.diverged for each in (*its, *others)):
        return ComparedQuantity(SeedVerdict.DIVERGED)
    losses = {each.seed: each.final.loss for each in others}
    differences = [each.final.loss - losses[each.seed] for each in its if each.seed in losses]
    return _measured(differences, len(differences))


def _measured(values: Sequence[float], seeds: int) -> ComparedQuantity:
    """Return the mean of a quantity that must be known in each of so many seeds."""
    if not seeds:
        return ComparedQuantity(SeedVerdict.ALONE)
    if len(values) < seeds:
        return ComparedQuantity(SeedVerdict.BEYOND)
    return ComparedQuantity(
        SeedVerdict.ONE_SEED if seeds == 1 else SeedVerdict.NO_DIFFERENCE, estimate(values)
    )


def _judged(table: Sequence[ComparedQuantity], *, better_is_less: bool) -> list[ComparedQuantity]:
    """Return the rows with what they found, at a level that holds for all of them together."""
    tested = [row for row in table if row.estimate and row.verdict is not SeedVerdict.ONE_SEED]
    corrected = iter(holm([row.estimate.p for row in tested if row.estimate]))
    judged = []
    for row in table:
        if row.estimate and row.verdict is not SeedVerdict.ONE_SEED:
            p, verdict = next(corrected), SeedVerdict.NO_DIFFERENCE
            if p < LEVEL:
                less = row.estimate.value < 0
                verdict = SeedVerdict.BETTER if less is better_is_less else SeedVerdict.WORSE
            judged.append(ComparedQuantity(verdict, row.estimate, p))
        else:
            judged.append(row)
    return judged


def _as_ratio(logarithm: ComparedQuantity) -> ComparedQuantity:
    found = logarithm.estimate
    return logarithm if found is None else replace(logarithm, estimate=found.exponential())
