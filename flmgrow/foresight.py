"""Before the money is spent: what a schedule costs, and what a large model's loss will be."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from flmgrow.costing.cluster import rates_of
from flmgrow.costing.estimate import RunCost, cost_of
from flmgrow.given import ClusterGiven
from flmgrow.prediction.forecast import Forecaster, forecaster
from flmgrow.prediction.law import form_for
from flmgrow.prediction.points import points_of
from flmgrow.stages.schedule import read_schedule

PathLike = str | os.PathLike[str]


def cost(schedule: PathLike, **cluster: Unpack[ClusterGiven]) -> RunCost:
    """Return what a schedule costs on a cluster, stage by stage and in all.

    ``to_json()`` of it is what ``flmgrow cost --json`` prints. Raises UsageError for a schedule
    that cannot be carried out, and for rates that cannot be.
    """
    stages = read_schedule(Path(schedule))
    return cost_of(stages, rates_of(stages, **cluster))


def predict(runs: Sequence[PathLike], *, step: int | None = None) -> Forecaster:
    """Return a law fitted to runs of small models, or tables of points, that foretells larger ones.

    ``predict(runs).at(16e9)`` is the loss of that size, with its interval. ``step`` is where runs
    are compared; where each ends if None. Raises UsageError for runs that no law can be fitted to,
    BadDataError for what is damaged.
    """
    points = points_of([Path(run) for run in runs], step)
    return forecaster(points, form_for(points))
