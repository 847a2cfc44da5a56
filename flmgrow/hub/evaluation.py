"""Reading evaluation scores from a file, for the table of a model card.

Scores come from other programs, in a file; a card shows them as a table and adds nothing. Two forms
are read: what lm-evaluation-harness writes (``results``, by task, with names such as ``acc,none``),
and plain JSON of tasks with a number or several named ones each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.storage.strict_json import parse_object

MOST_SCORES = 500
_FORM = 'wanted {"results": {TASK: {METRIC: NUMBER}}}, as lm-evaluation-harness writes it'
_ERROR = "_stderr"
LARGEST = 1e300


@dataclass(frozen=True)
class EvaluationScore:
    """One number of an evaluation; ``error`` is its standard error, None where not given."""

    task: str
    metric: str
    value: float
    error: float | None = None


def _number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None


def _of_task(task: str, numbers: Mapping[str, object]) -> Iterator[EvaluationScore]:
    """Yield the scores of a task. The harness counts samples beside them, under plain names."""
    by_harness = any("," in name for name in numbers)
    for name, value in numbers.items():
        if by_harness and "," not in name:
            continue
        metric, comma, variant = name.partition(",")
        number = _number(value)
        if number is None or metric.endswith(_ERROR):
            continue
        error = _number(numbers.get(f"{metric}{_ERROR}{comma}{variant}"))
        shown = metric if variant in ("", "none") else f"{metric} ({variant})"
        yield EvaluationScore(task, shown, number, error)


def read_scores(content: bytes, where: str) -> tuple[EvaluationScore, ...]:
    """Return the scores in the bytes of an evaluation file, in its order.

    ``where`` names it in messages.

    Raises:
        BadCheckpointError: For what is no JSON.
        UsageError: For JSON without scores.
    """
    scores = scores_in(parse_object(content, where), where)
    if len(scores) > MOST_SCORES:
        raise UsageError(f"holds {len(scores)} scores", f"1 to {MOST_SCORES}: {_FORM}", where=where)
    return scores


def scores_in(data: Mapping[str, object], where: str) -> tuple[EvaluationScore, ...]:
    """Return the scores in what an evaluation file holds.

    Raises:
        UsageError: If there are none.
    """
    results = data.get("results", data)
    if not isinstance(results, dict):
        raise UsageError("results is no object", _FORM, where=where)
    scores: list[EvaluationScore] = []
    for task, found in results.items():
        scores += _of_task(task, found if isinstance(found, dict) else {"": found})
    if not scores:
        raise UsageError("holds no scores", _FORM, where=where)
    return tuple(scores)
