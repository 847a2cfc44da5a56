"""The picture of ``flmgrow predict``: losses against sizes, the law through them, and its band."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flmgrow.prediction.forecast import LEVEL, Forecast, Forecaster
from flmgrow.prediction.law import SIZES
from flmgrow.stages.drawing import COLOURS, FAINT, drawn
from flmgrow.stages.plots import tokens_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (5.4, 3.4)
_PLACES = 60


def picture(found: Forecaster, forecasts: Sequence[Forecast], kind: str) -> bytes:
    """Return the picture as a file of a kind in ``stages.drawing.KINDS``.

    Raises:
        UsageError: If matplotlib is missing or broken.
    """
    return drawn(kind, SIZE, lambda figure: _draw(figure, found, forecasts))


def _draw(figure: "Figure", found: Forecaster, forecasts: Sequence[Forecast]) -> None:
    panel = figure.subplots()
    known = [point.parameters for point in found.points]
    farthest = max([*known, *(each.parameters for each in forecasts)])
    sizes = np.geomspace(min(known), farthest, _PLACES)
    lengths = sorted({point.tokens for point in found.points})
    for number, length in enumerate(lengths):
        colour = COLOURS[number % len(COLOURS)]
        line = [found.at(size, length) for size in sizes]
        panel.fill_between(
            sizes, [each.low for each in line], [each.high for each in line],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
        panel.plot(sizes, [each.loss for each in line], color=colour, linewidth=1)
        own = [point for point in found.points if point.tokens == length]
        label = None if found.law.form is SIZES else f"{tokens_text(length)} tokens"
        panel.plot(
            [point.parameters for point in own], [point.loss for point in own],
            "o", color=colour, markersize=3.5, label=label,
        )  # fmt: skip
    for each in forecasts:
        panel.errorbar(
            each.parameters, each.loss, [[each.loss - each.low], [each.high - each.loss]],
            fmt="D", color=FAINT, markersize=4, capsize=3, linewidth=1,
        )  # fmt: skip
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda count, _: tokens_text(count))
    panel.set(xlabel="parameters", ylabel="loss (nats per token)")
    panel.set_title(f"{found.law.form.formula}, shaded {100 * LEVEL:.0f} %", fontsize=8)
    if found.law.form is not SIZES:
        panel.legend()
