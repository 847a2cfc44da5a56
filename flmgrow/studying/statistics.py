"""Means over a few seeds, with intervals that hold, and differences that are none by chance.

Studies have three seeds, or five; so what needs many is no use here. A bootstrap of three values
draws from ten different sets, and its interval never leaves the range of what was measured, which
covers the mean in 75 of 100 cases at best (tests/studying/test_statistics.py). An exact test of
signs cannot find anything: with three seeds the least p value there is is 0.25. What holds is
Student's t (1908), of which the price is an assumption: that a quantity is spread over the seeds
about as a normal distribution. What it says of three values is wide, and honest.

* A mean over seeds has the interval of the t distribution with one degree of freedom less than
  seeds.
* Two arms are compared by their differences, seed by seed: seeds choose the data's order and the
  first weights, and what that does to both arms leaves the difference. The test is the t test of
  the mean difference; no equal variances are assumed, as they would be if arms were pooled.
* Ratios are compared by their logarithms, so that half as much and twice as much lie equally far.
* The p values of one table are corrected together by Holm's method (1979, Scandinavian Journal of
  Statistics 6, 65-70), which holds however they depend on one another: with no difference anywhere,
  a table finds one in at most 5 of 100 studies. The intervals are those of each row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, sqrt
from statistics import fmean, stdev

from flmgrow.errors import UsageError
from flmgrow.prediction.packages import scipy
from flmgrow.storage.strict_json import Json

LEVEL = 0.05
"""In how many studies a table may find what is not there."""

COVERAGE = 1 - LEVEL
"""In how many studies an interval holds the true value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``seeds``, and the interval that holds the true one in 95 of 100 studies.

    ``p`` is how often a mean as far from "no difference" comes by chance. Of one seed, the interval
    is without bounds, and p is 1.
    """

    value: float
    low: float
    high: float
    seeds: int
    p: float

    def exponential(self) -> "Estimate":
        """Return the estimate of the ratio of which this is that of the logarithm."""
        return Estimate(exp(self.value), _exp(self.low), _exp(self.high), self.seeds, self.p)

    def to_json(self) -> Json:
        """Return it as plain data; a bound that is not there is null."""
        bounds = {name: bound if isfinite(bound := getattr(self, name)) else None
                  for name in ("low", "high")}  # fmt: skip
        return {**vars(self), **bounds}


def _exp(value: float) -> float:
    return inf if value == inf else exp(value)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of ``values`` (one for each seed), its interval, and its distance from 0.

    Raises:
        UsageError: For no values, or if scipy is not installed.
    """
    if not values:
        raise UsageError("there are no values to take a mean of")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean, -inf, inf, 1, 1.0)
    error = stdev(values) / sqrt(count)
    student = scipy("stats").t
    half = float(student.ppf(1 - LEVEL / 2, count - 1)) * error
    if error == 0:  # as where an arm was given twice
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * student.sf(abs(mean) / error, count - 1))
    return Estimate(mean, mean - half, mean + half, count, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for how many there are.

    The smallest of m is multiplied by m, the next by m - 1; none becomes smaller than one before.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
