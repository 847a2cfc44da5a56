"""The four shapes that growth can have, and what each saves (Li et al., 2023, figure 1).

A schedule is a curve of parameters over tokens, and the area under it is its cost. Growth along a
straight line from nothing saves half of what the constant size costs; a curve that bends down early
saves less, one that stays low for long saves more, and FLM-101B's is of that kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flmgrow.costing.estimate import RunCost
from flmgrow.model.arrays import FloatArray
from flmgrow.model.tensors import parameter_count


@dataclass(frozen=True)
class GrowthCurve:
    """Parameters over tokens, both as shares of the last."""

    name: str
    curve: Callable[[FloatArray], FloatArray]
    saved: float


SHAPES = (
    GrowthCurve("constant", np.ones_like, 0.0),
    GrowthCurve("linear", lambda share: share, 1 / 2),
    GrowthCurve("modest", np.sqrt, 1 / 3),
    GrowthCurve("aggressive", np.square, 2 / 3),
)


def steps_of(cost: RunCost) -> tuple[Sequence[float], Sequence[float]]:
    """Return the corners of a schedule: tokens read, and parameters from there on."""
    tokens, parameters = [0.0], []
    for each in cost.stages:
        tokens.append(tokens[-1] + each.tokens)
        parameters.append(float(parameter_count(each.planned.config)))
    return tokens, [*parameters, parameters[-1]]


def area_saved(cost: RunCost) -> float:
    """Return the share of the area that growth saves, of the final size for all tokens."""
    tokens, parameters = steps_of(cost)
    area = sum(np.diff(tokens) * np.array(parameters[:-1]))
    return float(1 - area / (tokens[-1] * parameters[-1]))
