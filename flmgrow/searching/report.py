"""What a search found: points by loss, the best one, and how flat it is around it.

A point's loss is the mean over its seeds. What diverged has none, and is counted; what was stopped
early has one of an earlier step, which is compared with nothing. The best value of an axis says
little without the values beside it that are as good: the interval of an axis are those around the
best whose own best point is within the noise. That is twice the standard error of a difference of
two means over seeds where there are several, and half a per cent of the loss where there is one.
How far seeds lie apart is found from all points of a width together: a few seeds of one point tell
it badly, and the best point is likelier than others to be one whose seeds agree by chance.

A best value at the end of its axis is not known to be the best: the grid has to be widened there.
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
    seeds: int

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
    """The best point of a width, and the interval of each axis that is as good.

    ``noise`` is how far a loss may lie above the best and still be as good. ``edges`` are the axes
    of which the best value is the ``smallest`` or ``largest`` that was tried.
    """

    result: PointResult
    intervals: Mapping[str, Sequence[Value]]
    noise: float
    edges: Mapping[str, str]

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            **self.result.to_json(),
            "flat": {k: list(v) for k, v in self.intervals.items()},
            "noise": self.noise,
            "edges": dict(self.edges),
        }


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
        key=lambda each: (
            each.state is not TrialState.DONE,
            -each.steps,
            each.loss,
            each.point.text,
        ),
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


def _rank(each: PointResult) -> tuple[bool, int, float, str]:
    """Order points: what came to its end first, of that and of the rest the better first."""
    return (each.state is not TrialState.DONE, -each.steps, each.loss, each.point.text)


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
    error = stdev(losses) / sqrt(len(losses)) if many else None
    return PointResult(point, state, loss, error, steps, told, len(losses))


def _best(search: Search, results: Sequence[PointResult]) -> Best:
    best = results[0]
    noise = _noise(results)
    intervals, edges = {}, {}
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
        if len(ordered) > 1 and at in (0, len(ordered) - 1) and not _is_word(ordered):
            edges[key] = "largest" if at else "smallest"
    return Best(best, intervals, noise, edges)


def _noise(results: Sequence[PointResult]) -> float:
    """Return how far a loss of points of one width may lie above the best and be as good."""
    many = [(each.seeds, each.error) for each in results if each.error is not None]
    if not many:
        return FLAT * results[0].loss
    squares = sum((seeds - 1) * seeds * error**2 for seeds, error in many)
    variance = squares / sum(seeds - 1 for seeds, _ in many)
    return 2 * sqrt(2 * variance / results[0].seeds)


def _is_word(values: Sequence[Value]) -> bool:
    """Whether the values of an axis have no order."""
    return any(isinstance(value, bool | str) for value in values)


def _order(value: Value) -> tuple[bool, float, str]:
    """Order numbers by size, and words behind them."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def best_at(results: Sequence[PointResult], key: str, value: Value) -> float:
    """Return the lowest loss of the points that have this value and came to their end, infinite if
    there is none.
    """
    losses = (
        each.loss
        for each in results
        if each.state is TrialState.DONE and each.point.settings[key] == value
    )
    return min(losses, default=inf)


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
