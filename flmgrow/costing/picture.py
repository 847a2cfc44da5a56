"""The picture of ``flmgrow cost``: parameters against tokens, whose area is the cost.

The schedule fills its own area; what the same tokens cost at the final size is the frame around it.
Beside it stand the four shapes of the paper's figure 1, each with what it saves.
"""

from typing import TYPE_CHECKING

import numpy as np

from flmgrow.costing.estimate import RunCost
from flmgrow.costing.shapes import SHAPES, area_saved, steps_of
from flmgrow.stages.drawing import COLOURS, FAINT, drawn
from flmgrow.stages.plots import shortened, tokens_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.2, 3.0)
_CURVE = np.linspace(0, 1, 101)


def picture(cost: RunCost, kind: str) -> bytes:
    """Return the picture as a file of a kind in ``stages.drawing.KINDS``.

    Raises:
        UsageError: If matplotlib is missing or broken.
    """
    return drawn(kind, SIZE, lambda figure: _draw(figure, cost))


def _draw(figure: "Figure", cost: RunCost) -> None:
    panels = figure.subplot_mosaic(
        [["schedule", "constant", "linear"], ["schedule", "modest", "aggressive"]],
        width_ratios=(3, 1, 1),
    )
    _draw_schedule(panels["schedule"], cost)
    for shape in SHAPES:
        panel = panels[shape.name]
        panel.fill_between(_CURVE, shape.curve(_CURVE), color=COLOURS[0], alpha=0.25, linewidth=0)
        panel.plot(_CURVE, shape.curve(_CURVE), color=COLOURS[0], linewidth=1)
        panel.set(xlim=(0, 1), ylim=(0, 1.05), xticks=[], yticks=[])
        panel.set_title(f"{shape.name}: saves {100 * shape.saved:.0f} %", fontsize=7, color=FAINT)


def _draw_schedule(panel: "Axes", cost: RunCost) -> None:
    tokens, parameters = steps_of(cost)
    panel.fill_between(tokens, parameters, step="post", color=COLOURS[0], alpha=0.25, linewidth=0)
    panel.step(tokens, parameters, where="post", color=COLOURS[0], linewidth=1.5)
    panel.plot(
        [0, tokens[-1], tokens[-1]], [parameters[-1], parameters[-1], 0],
        color=FAINT, linewidth=0.8, linestyle="--",
    )  # fmt: skip
    for each, begin, height in zip(cost.stages, tokens, parameters, strict=False):
        panel.annotate(
            shortened(each.planned.stage.name, 20), (begin, height), parse_math=False,
            xytext=(3, 3), textcoords="offset points", fontsize=7, color=FAINT,
        )  # fmt: skip
    panel.set(xlim=(0, 1.02 * tokens[-1]), ylim=(0, 1.12 * parameters[-1]))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda count, _: tokens_text(count))
    panel.set(xlabel="tokens", ylabel="parameters")
    panel.set_title(f"growth saves {100 * area_saved(cost):.0f} % of the area", fontsize=8)
