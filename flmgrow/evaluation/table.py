"""Scores side by side: a row for each metric of a task, a column for each checkpoint.

The table is Markdown that reads as well on a terminal. Where tasks say what a guesser gets right, a
column does: a small model's score means little without it.
"""

from collections.abc import Iterator, Mapping, Sequence

from flmgrow.evaluation.results import EvaluationResult
from flmgrow.hub.evaluation import EvaluationScore
from flmgrow.model.wording import amount

MOST_SHOWN = 10
"""Tasks of a group that are shown in a table; of a larger one, only its own scores are."""
NOTHING = "-"

TableRow = tuple[str, str, str, tuple[str, ...]]
"""A task, a metric, the examples before each question, and a cell for each column."""


def table(results: Sequence[EvaluationResult], beside: Sequence[EvaluationResult] = ()) -> str:
    """Return the scores of ``results`` as lines of Markdown; of ``beside``, what they have, too."""
    columns = [*results, *beside]
    chances = {task: chance for each in columns for task, chance in each.chances.items()}
    guessed = ["chance"] if chances else []
    head = ("task", "metric", "shots", *guessed, *(each.name for each in columns))
    rows = [head]
    for task, metric, shots, cells in (*_facts(columns), *_scores(results, columns)):
        chance = f"{chances[task]:.2f}" if task in chances else ""
        rows.append((task, metric, shots, *([chance] if guessed else []), *cells))
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    ruler = [("-" * width if place < 2 else "-" * (width - 1) + ":")
             for place, width in enumerate(widths)]  # fmt: skip
    lines = [rows[0], ruler, *rows[1:]]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _facts(columns: Sequence[EvaluationResult]) -> Iterator[TableRow]:
    """Yield what is known of the checkpoints themselves, as far as anything is."""
    for name, attribute in (("parameters", "parameters"), ("tokens read", "tokens")):
        found = [getattr(each.facts, attribute, None) for each in columns]
        if any(found):
            cells = tuple(NOTHING if value is None else amount(value) for value in found)
            yield name, "", "", cells


def _scores(
    results: Sequence[EvaluationResult], columns: Sequence[EvaluationResult]
) -> Iterator[TableRow]:
    by_column = [_by_name(each.scores) for each in columns]
    for task in shown_tasks(results):
        metrics = {score.metric: None for each in results for score in each.scores
                   if score.task == task}  # fmt: skip
        shots = {str(shots) for each in results for shots in _shots(each, task)}
        for number, metric in enumerate(metrics):
            cells = tuple(
                _cell(scores.get((task, metric)) or (None if number else scores.get((task, ""))))
                for scores in by_column
            )
            yield task, metric, "/".join(sorted(shots)), cells


def _shots(result: EvaluationResult, task: str) -> set[int]:
    """Return the examples before the questions of a task, or of all tasks in a group."""
    if task in result.shots:
        return {result.shots[task]}
    return {shots for child in result.groups.get(task, ()) for shots in _shots(result, child)}


def shown_tasks(results: Sequence[EvaluationResult]) -> list[str]:
    """Return the tasks and groups that a table shows, groups before what is in them."""
    groups: dict[str, Sequence[str]] = {}
    names: dict[str, None] = {}
    for each in results:
        groups |= each.groups
        names |= dict.fromkeys(score.task for score in each.scores)
    inner = {child for children in groups.values() for child in children}
    found: dict[str, None] = {}

    def add(name: str) -> None:
        if name in names:
            found.setdefault(name)
        children = groups.get(name, ())
        if name not in names or len(children) <= MOST_SHOWN:
            for child in children:
                add(child)

    for name in (*groups, *names):
        if name not in inner:
            add(name)
    return list(found)


def _by_name(scores: Sequence[EvaluationScore]) -> Mapping[tuple[str, str], EvaluationScore]:
    return {(score.task, score.metric): score for score in scores}


def _cell(score: EvaluationScore | None) -> str:
    if score is None:
        return NOTHING
    error = "" if score.error is None else f" ± {score.error:.4f}"
    return f"{score.value:.4f}{error}"
