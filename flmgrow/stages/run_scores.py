"""The scores of a run's checkpoints, as curves over what was spent until each.

Evaluations lie where their user put them. Those in the folder of a run are found: in a folder of
its own there, such as ``RUN/scores``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.evaluation.results import EvaluationResult, results_below
from flmgrow.evaluation.table import shown_tasks
from flmgrow.hub.evaluation import EvaluationScore

MOST_CURVES = 12
"""Scores with one metric that a picture can tell apart."""


@dataclass(frozen=True)
class ScorePoint:
    """A score, its standard error if known, and what was spent until there."""

    tokens: float
    flops: float
    value: float
    error: float | None


@dataclass(frozen=True)
class ScoreCurve:
    """The scores of a task over a run, in the order of tokens."""

    task: str
    metric: str
    points: tuple[ScorePoint, ...]


def evaluations_in(run: Path) -> list[Path]:
    """Return the folders in that of a run that hold results of checkpoints."""
    if not run.is_dir():
        return []
    folders = (each for each in sorted(run.iterdir()) if each.is_dir())
    return [each for each in folders if any(each.glob("*/results_*.json"))]


def score_curves(places: Sequence[Path]) -> tuple[ScoreCurve, ...]:
    """Return the scores in files or folders of results, one curve for each task.

    Of a task with several metrics, the last: harnesses tell the plainest first. Results of which
    nobody knows where they stand are left out.

    Raises:
        FlmgrowError: What reading results raises.
    """
    results = [each for place in places for each in results_below(place) if _is_placed(each)]
    results.sort(key=lambda each: (each.facts.tokens or 0) if each.facts else 0)
    curves = []
    for task in shown_tasks(results):
        metrics = [score.metric for each in results for score in each.scores if score.task == task]
        points = tuple(
            _point(each, score)
            for each in results
            for score in each.scores
            if (score.task, score.metric) == (task, metrics[-1])
        )
        curves.append(ScoreCurve(task, metrics[-1], points))
    return tuple(curves)


def _is_placed(result: EvaluationResult) -> bool:
    return result.facts is not None and result.facts.tokens is not None


def _point(result: EvaluationResult, score: EvaluationScore) -> ScorePoint:
    assert result.facts is not None
    return ScorePoint(
        float(result.facts.tokens or 0), float(result.facts.flops or 0), score.value, score.error
    )
