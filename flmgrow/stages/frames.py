"""Which part of runs a picture shows, and through which points a curve is drawn.

On linear axes the first losses of a run, which fall from the logarithm of the vocabulary within a
blink, may leave the frame at the top. And of more steps than a picture has columns, those in one
column are drawn by their extremes.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from flmgrow.model.arrays import FloatArray
from flmgrow.stages.curves import Points, RunCurves

AxisName = Literal["tokens", "flops"]

BEGINNING = 1 / 50
"""The part of a run that linear axes need not show in full."""
MOST_POINTS = 2000
ALIKE = 1e-6
"""Values are drawn as one if they differ by no more than this part of them."""


def along(points: Points, axis: AxisName) -> FloatArray:
    """Return where ``points`` lie on an axis (points,)."""
    return points.tokens if axis == "tokens" else points.flops


def x_range(x: FloatArray, *, log: bool) -> tuple[float, float]:
    """Return where an axis for ``x`` (points,), not negative, begins and ends.

    A single value is in its middle; 0 has no place on one that is logarithmic.
    """
    shown = x[x > 0] if log else x
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (1.0, 1.0)
    if high - low <= ALIKE * high:
        low, high = (low / 10 or low, high * 10) if log else (low / 2, 1.5 * high or 1.0)
    if log:
        return low, high * 1.1
    return low - 0.01 * (high - low), high + 0.02 * (high - low)


def loss_range(runs: Sequence[RunCurves], *, whole: bool) -> tuple[float, float]:
    """Return the losses at the bottom and the top of the frame.

    Single steps may leave it. If not ``whole``, so may what lies in a run's ``BEGINNING``.
    """
    shown, noisy = [], []
    for run in runs:
        first, last = run.stages[0].training.tokens[0], run.stages[-1].training.tokens[-1]
        begin = first if whole else first + BEGINNING * (last - first)
        for stage in run.stages:
            shown.append(stage.smoothed[stage.training.tokens >= begin])
            shown.append(stage.validation.loss[stage.validation.tokens >= begin])
            noisy.append(stage.training.loss[stage.training.tokens >= begin])
    values, steps = np.concatenate(shown), np.concatenate(noisy)
    low, high = min(values.min(), np.quantile(steps, 0.002)), values.max()
    alike = high - low <= ALIKE * max(abs(high), abs(low))
    margin = 0.5 if alike else 0.05 * (high - low)
    return float(low - margin), float(high + margin)


def thinned(x: FloatArray, y: FloatArray, *, log: bool) -> tuple[FloatArray, FloatArray]:
    """Return at most ``MOST_POINTS`` points that look like ``x`` and ``y`` (points,): lowest and
    highest of each stretch.

    Stretches are equally long on the axis, which is logarithmic if ``log``. Where ``x`` does not
    rise, as it does in every run, there are no stretches, and all points are returned.
    """
    if len(x) <= MOST_POINTS or (np.diff(x) < 0).any():
        return x, y
    scaled = np.log(x) if log else x
    edges = np.linspace(scaled[0], scaled[-1], MOST_POINTS // 2 + 1)[:-1]
    starts = np.unique(np.searchsorted(scaled, edges))
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return np.repeat(x[starts], 2), np.stack([low, high], axis=1).ravel()
