"""How the stages of a run ended, beside what was foretold of models of their size.

A grown model has the past of a smaller one, and no law of models that were never grown knows that.
So what the law says is where a model of that size would be that had read as much from its
beginning: an end above the band tells that the growth has not been caught up with, or that the
stage went wrong; below it, that the law does not hold there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.prediction.forecast import Forecast, Forecaster
from flmgrow.prediction.points import RunPoint, end_of
from flmgrow.stages.metrics_files import find_metrics
from flmgrow.storage.strict_json import Json


@dataclass(frozen=True)
class StageEnd:
    """A stage's end, and what was foretold of it."""

    stage: str
    point: RunPoint
    forecast: Forecast

    @property
    def inside(self) -> bool:
        """Whether it ended within the interval."""
        return self.forecast.low <= self.point.loss <= self.forecast.high

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "stage": self.stage,
            "loss": self.point.loss,
            "inside": self.inside,
            "foretold": self.forecast.to_json(),
        }


def ended(run: Path, forecaster: Forecaster) -> Iterator[StageEnd]:
    """Yield how each stage of a run has ended.

    Raises:
        UsageError: For a law that knows one length, which is not the stage's, and for what is no
            run.
    """
    for metrics in find_metrics(run):
        yield stage_ended(metrics.parent, forecaster)


def stage_ended(folder: Path, forecaster: Forecaster) -> StageEnd:
    """Return how the stage in a folder has ended.

    Raises:
        UsageError: As ``ended`` does.
    """
    point = end_of(folder, None)
    try:
        return StageEnd(folder.name, point, forecaster.at(point.parameters, point.tokens))
    except UsageError as error:
        raise error.at(folder) from None
