"""Drawing scores below the loss: a row of panels for each metric, a curve for each task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flmgrow.stages.curves import RunCurves
from flmgrow.stages.drawing import COLOURS
from flmgrow.stages.frames import AxisName
from flmgrow.stages.run_scores import MOST_CURVES, ScoreCurve

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

HEIGHT = 2.0
"""Inches that a row adds to a picture."""
MARKERS = ("o", "s")
"""Of a run's curves with one metric: the colours are gone through with each."""
_BAR: Mapping[str, Any] = {"linewidth": 1.0, "markersize": 3.5, "elinewidth": 0.7, "capsize": 1.8}


def metrics_of(runs: Sequence[RunCurves]) -> list[str]:
    """Return the metrics of all scores, each of which has a row of its own."""
    return list(dict.fromkeys(curve.metric for run in runs for curve in run.scores))


def draw_scores(
    panel: "Axes", axis: AxisName, metric: str, runs: Sequence[RunCurves]
) -> dict["Artist", str]:
    """Draw the scores with a metric and their standard errors; return what each curve is called."""
    drawn: dict[Artist, str] = {}
    for (run, curve), style in zip(_curves(runs, metric), _styles(), strict=False):
        errors = [0.0 if point.error is None else point.error for point in curve.points]
        x = [getattr(point, axis) for point in curve.points]
        bars = panel.errorbar(x, [point.value for point in curve.points], errors, **style, **_BAR)
        drawn[bars.lines[0]] = f"{run.name}: {curve.task}" if len(runs) > 1 else curve.task
    low, high = panel.get_ylim()
    values = [point.value for _, curve in _curves(runs, metric) for point in curve.points]
    if low < 0 <= min(values):  # a share is never less
        panel.set_ylim(-0.03 * high, high)
    return drawn


def left_out(runs: Sequence[RunCurves]) -> int:
    """Return how many curves a picture of ``runs`` has no style for."""
    counts = (sum(1 for _ in _curves(runs, metric)) for metric in metrics_of(runs))
    return sum(max(0, count - MOST_CURVES) for count in counts)


def _curves(runs: Sequence[RunCurves], metric: str) -> Iterator[tuple[RunCurves, ScoreCurve]]:
    return ((run, curve) for run in runs for curve in run.scores if curve.metric == metric)


def _styles() -> Iterator[dict[str, Any]]:
    """Yield ``MOST_CURVES`` styles that can be told apart."""
    for marker in MARKERS:
        for colour in COLOURS:
            yield {"color": colour, "marker": marker}
