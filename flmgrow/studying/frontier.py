"""What training from scratch reaches for so many FLOPs, and how many it needs for a loss.

A run whose learning rate decays is as good as it can be at its end alone: its losses on the way
there are no results. So the frontier of a seed consists of the ends of several runs of different
lengths. Between them the loss is interpolated over the logarithm of FLOPs (tokens, or seconds), by
Fritsch and Carlson's cubic (1980, SIAM Journal on Numerical Analysis 17, 238-246), which is
monotone where the points are. Beyond the shortest and the longest run nothing is said.

Where a longer run ended worse than a shorter one, by chance, both count as their mean (the
isotonic regression: Ayer et al., 1955, Annals of Mathematical Statistics 26, 641-647).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from math import exp, log
from typing import Any

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite
from flmgrow.prediction.packages import scipy

EQUAL = 0.01
"""Amounts that differ by no more than this part count as equal."""

_HALVINGS = 60


class Beyond(StrEnum):
    """The side of the frontier on which a loss or an amount lies."""

    BELOW = "below"
    ABOVE = "above"


@dataclass(frozen=True)
class Frontier:
    """The ends of runs: ``amounts`` (FLOPs, tokens or seconds) that rise, ``losses`` that do not.

    ``pooled``: some longer run ended worse than a shorter one.
    """

    amounts: tuple[float, ...]
    losses: tuple[float, ...]
    pooled: bool = False

    def __post_init__(self) -> None:
        if not self.amounts or len(self.amounts) != len(self.losses):
            raise UsageError("a frontier has one loss for each amount, and at least one")
        for amount, loss in zip(self.amounts, self.losses, strict=True):
            check_finite("amount", amount, above=0)
            check_finite("loss", loss)
        if any(one >= other for one, other in pairwise(self.amounts)):
            raise UsageError("the amounts of a frontier do not rise")
        if any(one < other for one, other in pairwise(self.losses)):
            raise UsageError("the losses of a frontier rise")

    @classmethod
    def of(cls, ends: Iterable[tuple[float, float]]) -> "Frontier":
        """Return the frontier of runs: the amount that each took, and the loss it ended at."""
        ordered = sorted(ends)
        losses = [loss for _, loss in ordered]
        falling = _not_rising(losses)
        amounts = tuple(amount for amount, _ in ordered)
        return cls(amounts, tuple(falling), pooled=falling != losses)

    def loss_at(self, amount: float) -> float | Beyond:
        """Return the loss that scratch ends at for an ``amount``, or where that lies beyond."""
        shortest, longest = self.amounts[0], self.amounts[-1]
        if amount < shortest * (1 - EQUAL):
            return Beyond.BELOW
        if amount > longest * (1 + EQUAL):
            return Beyond.ABOVE
        return self._loss(log(min(max(amount, shortest), longest)))

    def amount_for(self, loss: float) -> float | Beyond:
        """Return the least amount for which scratch ends at a ``loss``, or where that lies
        beyond.
        """
        if loss < self.losses[-1]:
            return Beyond.BELOW
        if loss > self.losses[0]:
            return Beyond.ABOVE
        low, high = log(self.amounts[0]), log(self.amounts[-1])
        if self._loss(low) <= loss:
            return self.amounts[0]
        for _ in range(_HALVINGS):  # the loss is above at the low end, and not at the high one
            middle = (low + high) / 2
            low, high = (low, middle) if self._loss(middle) <= loss else (middle, high)
        return exp(high)

    def _loss(self, logarithm: float) -> float:
        if len(self.amounts) == 1:
            return self.losses[0]
        return float(self._curve(logarithm))

    @cached_property
    def _curve(self) -> Any:
        logarithms = [log(amount) for amount in self.amounts]
        return scipy("interpolate").PchipInterpolator(logarithms, self.losses)


def _not_rising(losses: Sequence[float]) -> list[float]:
    """Return the losses that never rise and are nearest to these, in squares."""
    pools: list[tuple[float, int]] = []
    for loss in losses:
        pools.append((loss, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (one, many), (other, more) = pools[-2:]
            pools[-2:] = [((one * many + other * more) / (many + more), many + more)]
    return [mean for mean, count in pools for _ in range(count)]
