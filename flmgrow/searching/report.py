"""What a search found: points by loss, the best one, and how flat it is around it.

A point's loss is the mean over its seeds. What diverged has none, and is counted. The best value of
an axis says little without the values beside it that are as good: the interval of an axis are
those around the best whose own best point is within the noise. That is twice the standard error of
a mean over seeds where there are several, and half a per cent of the loss where there is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import fmean, stdev

from flmgrow.searching.request import GridPoint, Search, Value, with_setting
from flmgrow.searching.trials import TrialOutcome
from flmgrow.stages.trial_folder import TrialState
from flmgrow.storage.strict_json import Json

FLAT = 0.005
"""Of the loss: what counts as noise where a point has one seed."""


@dataclass(frozen=True)
class PointResult:
    """A point's trials: the mean ``loss`` over seeds (infinite if one diverged), its ``error``."""

    point: GridPoint
    state: TrialState
    loss: float
    error: float | None
    steps: int
    told: str

    def to_json(self) -> Json:
        """Return it as plain data; no loss is null."""
        return {
            "settings": dict(self.point.settings),
            "width": self.point.width,
            "state": str(self.state),
            "loss": self.loss if isfinite(self.loss) else None,
            "error": self.error,
            "steps": self.steps,
            "told": self.told,
        }


@dataclass(frozen=True)
class Best:
    """The best point of a width, and the interval of each axis that is as good."""

    result: PointResult
    intervals: Mapping[str, Sequence[Value]]

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {**self.result.to_json(), "flat": {k: list(v) for k, v in self.intervals.items()}}


@dataclass(frozen=True)
class Report:
    """All points of a search, the better ones first, and the best of each width."""

    grid: Mapping[str, Sequence[Value]]
    results: Sequence[PointResult]
    best: Sequence[Best]
    halved: bool

    @property
    def axes(self) -> list[str]:
        """The axes, the most telling first: along which the best losses differ most."""
        return sorted(self.grid, key=lambda key: -_range(self.results, key, self.grid[key]))

    def count(self, state: TrialState) -> int:
        """Return how many points are so far."""
        return sum(each.state is state for each in self.results)

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "axes": self.axes,
            "best": [each.to_json() for each in self.best],
            "moved": [each.to_json() for each in moves(self)],
            "points": [each.to_json() for each in self.results],
            "halved": self.halved,
        }


@dataclass(frozen=True)
class OptimumShift:
    """The steps of the grid by which the best value of an axis moves between two widths."""

    key: str
    narrow: int
    wide: int
    steps: int

    def to_json(self) -> Json:
        """Return it as plain data."""
        return dict(vars(self))


def report_of(search: Search, outcomes: Sequence[TrialOutcome]) -> Report:
    """Return what the trials of a search tell."""
    by_point: dict[GridPoint, list[TrialOutcome]] = {}
    for each in outcomes:
        by_point.setdefault(each.trial.point, []).append(each)
    results = sorted(
        (_result(point, own) for point, own in by_point.items()),
        key=lambda each: (each.loss, each.point.text),
    )
    widths = list(dict.fromkeys(point.width for point in search.points))
    best = [
        _best(search, own)
        for width in widths
        if (own := [each for each in results if each.point.width == width and isfinite(each.loss)
                    and each.state is TrialState.DONE])
    ]  # fmt: skip
    halved = any(each.state is TrialState.STOPPED for each in results)
    return Report(search.file.grid, results, best, halved)


def _result(point: GridPoint, outcomes: Sequence[TrialOutcome]) -> PointResult:
    states = {each.state for each in outcomes}
    state = next(
        each
        for each in (TrialState.DIVERGED, TrialState.OPEN, TrialState.STOPPED, TrialState.DONE)
        if each in states
    )
    losses = [each.loss for each in outcomes]
    loss = fmean(losses) if all(map(isfinite, losses)) else inf
    many = len(losses) > 1 and isfinite(loss)
    told = next((each.told for each in outcomes if each.told), "")
    steps = min(each.steps for each in outcomes)
    return PointResult(
        point, state, loss, stdev(losses) / sqrt(len(losses)) if many else None, steps, told
    )


def _best(search: Search, results: Sequence[PointResult]) -> Best:
    best = results[0]
    noise = FLAT * best.loss if best.error is None else 2 * best.error
    intervals = {}
    for key, values in search.file.grid.items():
        ordered = sorted(values, key=_order)
        at = ordered.index(best.point.settings[key])
        low = high = at
        while low > 0 and best_at(results, key, ordered[low - 1]) <= best.loss + noise:
            low -= 1
        while (
            high + 1 < len(ordered)
            and best_at(results, key, ordered[high + 1]) <= best.loss + noise
        ):
            high += 1
        intervals[key] = ordered[low : high + 1]
    return Best(best, intervals)


def _order(value: Value) -> tuple[bool, float, str]:
    """Order numbers by size, and words behind them."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def best_at(results: Sequence[PointResult], key: str, value: Value) -> float:
    """Return the lowest loss of the points that have this value, infinite if there is none."""
    return min((each.loss for each in results if each.point.settings[key] == value), default=inf)


def _range(results: Sequence[PointResult], key: str, values: Sequence[Value]) -> float:
    found = [loss for value in values if isfinite(loss := best_at(results, key, value))]
    return max(found) - min(found) if found else 0.0


def moves(report: Report) -> list[OptimumShift]:
    """Return by how many steps of the grid each axis' best value moves from width to width."""
    found = []
    for one, other in zip(report.best, report.best[1:], strict=False):
        for key, values in report.grid.items():
            ordered = sorted(values, key=_order)
            places = [ordered.index(each.result.point.settings[key]) for each in (one, other)]
            narrow, wide = one.result.point.width or 0, other.result.point.width or 0
            found.append(OptimumShift(key, narrow, wide, places[1] - places[0]))
    return found


def sections_of(settings: Mapping[str, Value]) -> Json:
    """Return settings as the sections of a stage file."""
    data: Json = {}
    for key, value in settings.items():
        data = with_setting(data, key, value)
    return data
