"""The report of a search in Markdown."""

from collections.abc import Iterator
from math import isfinite

from flmgrow.model.wording import table, value_text
from flmgrow.searching.report import FLAT, Best, PointResult, Report, moves
from flmgrow.stages.trial_folder import TrialState

SHOWN = 20
"""Points that the table on a terminal has."""


def markdown(report: Report) -> str:
    """Return the whole report."""
    parts = ["# Search", "", *_summary(report), "", *points_table(report, len(report.results))]
    return "\n".join(parts) + "\n"


def told(report: Report) -> str:
    """Return what a terminal shows: the best points, and what is to be said of them."""
    return "\n".join([*points_table(report, SHOWN), "", *_summary(report)])


def _summary(report: Report) -> Iterator[str]:
    for best in report.best:
        yield f"best{_width(best.result)}: {_settings(best.result)}: loss {_loss(best.result)}"
        yield f"  as good: {_flat(best)}"
        for key, edge in best.edges.items():
            yield f"  the best {key} is the {edge} that was tried: widen the grid there"
    for move in moves(report):
        yield (
            f"from width {move.narrow} to {move.wide} the best {move.key} moves by "
            f"{move.steps:+d} steps of the grid"
        )
    counts = [
        f"{report.count(state)} {name}"
        for state, name in (
            (TrialState.DIVERGED, "diverged"),
            (TrialState.STOPPED, "stopped early, in the worse half: one may have won later"),
            (TrialState.OPEN, "not done"),
        )
        if report.count(state)
    ]
    if counts:
        yield f"of {len(report.results)} points {'; '.join(counts)}"


def _flat(best: Best) -> str:
    intervals = (
        f"{key} {value_text(values[0])}"
        if len(values) == 1
        else f"{key} {value_text(values[0])} to {value_text(values[-1])}"
        for key, values in best.intervals.items()
    )
    noise = (
        f"within {100 * FLAT:g} % of the loss"
        if best.result.error is None
        else f"within {best.noise:.4f}, two standard errors of a difference, over the seeds of all"
    )
    return f"{', '.join(intervals)} ({noise})"


def points_table(report: Report, most: int) -> list[str]:
    """Return the points as a table in Markdown, at most so many."""
    keys = list(report.grid)
    widths = any(each.point.width for each in report.results)
    head = [*(["width"] if widths else []), *keys, "loss", ""]
    rows = [
        [
            *([str(each.point.width)] if widths else []),
            *(value_text(each.point.settings[key]) for key in keys),
            _loss(each),
            "" if each.state is TrialState.DONE else f"{each.state} after {each.steps:,} steps",
        ]
        for each in report.results[:most]
    ]
    rest = len(report.results) - most
    more = [f"| {rest} more |" + " |" * (len(head) - 1)] if rest > 0 else []
    return [*table(head, rows), *more]


def _loss(result: PointResult) -> str:
    if not isfinite(result.loss):
        return "-"
    error = "" if result.error is None else f" ± {result.error:.4f}"
    return f"{result.loss:.4f}{error}"


def _width(result: PointResult) -> str:
    return "" if result.point.width is None else f" at width {result.point.width}"


def _settings(result: PointResult) -> str:
    return ", ".join(f"{key} {value_text(value)}" for key, value in result.point.settings.items())
