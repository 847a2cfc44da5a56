"""The picture of a search: losses over its two most telling axes, or along one for each width."""

from math import isfinite, log10
from typing import TYPE_CHECKING

import numpy as np

from flmgrow.model.wording import value_text
from flmgrow.searching.report import Report, best_at
from flmgrow.stages.drawing import COLOURS, INK, drawn
from flmgrow.stages.trial_folder import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.4, 3.6)


def picture(report: Report, kind: str) -> bytes:
    """Return the picture as a file of a kind in ``stages.drawing.KINDS``.

    Raises:
        UsageError: If matplotlib is missing or broken.
    """
    return drawn(kind, SIZE, lambda figure: _draw(figure, report))


def _draw(figure: "Figure", report: Report) -> None:
    panel = figure.subplots()
    widths = list(dict.fromkeys(each.point.width for each in report.results))
    if len(widths) == 1 and len(report.axes) > 1:
        _heat(figure, panel, report)
    else:
        _curves(panel, report, sorted(width or 0 for width in widths))


def _heat(figure: "Figure", panel: "Axes", report: Report) -> None:
    across, up = report.axes[:2]
    columns, rows = list(report.grid[across]), list(report.grid[up])
    cells = np.full((len(rows), len(columns)), np.nan)  # what was not drawn of a grid stays blank
    told: dict[tuple[int, int], str] = {}
    for each in report.results:  # what came to its end first, and of that the best
        place = rows.index(each.point.settings[up]), columns.index(each.point.settings[across])
        if place in told:
            continue
        told[place] = f"{each.loss:.3f}" if each.state is TrialState.DONE else str(each.state)
        if each.state is TrialState.DONE:
            cells[place] = each.loss
    image = panel.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r")
    for (row, column), text in told.items():
        panel.text(column, row, text, ha="center", va="center", fontsize=6.5, color=INK)
    panel.set_xticks(range(len(columns)), [value_text(value) for value in columns])
    panel.set_yticks(range(len(rows)), [value_text(value) for value in rows])
    panel.set(xlabel=across, ylabel=up)
    figure.colorbar(image, label="loss (nats per token)")


def _curves(panel: "Axes", report: Report, widths: list[int]) -> None:
    key = report.axes[0]
    values = list(report.grid[key])
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    logarithmic = len(numbers) == len(values) and min(numbers) > 0
    places = [log10(number) for number in numbers] if logarithmic else list(range(len(values)))
    for number, width in enumerate(widths):
        own = [each for each in report.results if (each.point.width or 0) == width]
        losses = [best_at(own, key, value) for value in values]
        found = [(place, loss) for place, loss in zip(places, losses, strict=True)
                 if isfinite(loss)]  # fmt: skip
        if found:
            colour = COLOURS[number % len(COLOURS)]
            label = f"width {width}" if width else None
            panel.plot(*zip(*found, strict=True), "o-", color=colour, markersize=3.5, label=label)
            lowest = min(found, key=lambda each: each[1])
            panel.plot(*lowest, "o", color=colour, markersize=8, fillstyle="none")
    panel.set_xticks(places, [value_text(value) for value in values])
    panel.set(xlabel=key, ylabel="loss (nats per token)")
    if any(widths):
        panel.legend()
