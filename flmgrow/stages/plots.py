"""One picture tells how a run went: the loss against what was read, and against what was paid.

Two panels share the loss: on the left against tokens, on the right against floating-point
operations, where a growth shows what it saved. Thin lines are steps, bold lines are smoothed,
circles are validation. A dashed line is where a stage begins, its name above the frame; shaded is
where masks were below 1. Colours are told apart by the colour-blind, too.

On linear axes the first losses of a run, which fall from the logarithm of the vocabulary within a
blink, may leave the frame at the top. matplotlib is imported when a picture is drawn.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.stages.curves import FloatArray, Points, Run, StageCurve

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

AxisName = Literal["tokens", "flops"]

KINDS = ("png", "svg", "pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT = "#333333", "#777777"
SIZE = (7.2, 3.0)
BEGINNING = 1 / 50
"""The part of a run that linear axes need not show in full."""
MOST_POINTS = 2000
ROW = 0.065
"""From one run's names of stages to the next one's, in heights of the frame."""

_STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "flmgrow",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """How a picture is to look."""

    log_x: bool = False
    title: str = ""


def picture(runs: Sequence[Run], kind: str, look: Look) -> bytes:
    """Return a picture of ``runs`` as a file of a kind in ``KINDS``, the same for the same runs.

    Raises UsageError if matplotlib is missing, or there are more runs than colours.
    """
    if len(runs) > len(COLOURS):
        raise UsageError(
            f"{len(runs)} runs, wanted at most {len(COLOURS)}", "draw fewer runs in one picture"
        )
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "the package matplotlib is not installed", "pip install 'flmgrow[plot]'"
        ) from None
    file = io.BytesIO()
    style: Any = dict(_STYLE)
    with rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        _draw(figure, runs, look)
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(file, format=kind, metadata=dates.get(kind))
    return file.getvalue()


def _draw(figure: "Figure", runs: Sequence[Run], look: Look) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_ylabel("Loss (nats per token)")
    left.set_ylim(*loss_range(runs, whole=look.log_x))
    names: list[list[Text]] = []
    panels: tuple[tuple[Axes, AxisName], ...] = ((left, "tokens"), (right, "flops"))
    for panel, axis in panels:
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        _prepare_x(panel, axis, runs, look.log_x)
        for row, (run, colour) in enumerate(zip(runs, COLOURS, strict=False)):
            for stage in run.stages:
                _draw_stage(panel, axis, stage, colour, look.log_x)
            if len(run.stages) > 1 or len(runs) == 1:
                ink = colour if len(runs) > 1 else FAINT
                names.append(list(_draw_names(panel, axis, run, ink, 1.02 + ROW * row)))
    right.legend(handles=list(_legend(runs)), loc="upper right", handlelength=1.6)
    if look.title:
        figure.suptitle(look.title, fontsize=9.5)
    _part_names(figure, names)


def _draw_stage(panel: "Axes", axis: AxisName, stage: StageCurve, colour: str, log: bool) -> None:
    for begin, end in stage.ramps:
        edges = getattr(begin, axis), getattr(end, axis)
        panel.axvspan(*edges, color=colour, alpha=0.10, linewidth=0)
    x = along(stage.training, axis)
    panel.plot(*thinned(x, stage.training.loss, log=log), color=colour, alpha=0.35, linewidth=0.4)
    panel.plot(*thinned(x, stage.smoothed, log=log), color=colour, linewidth=1.3)
    panel.plot(along(stage.validation, axis), stage.validation.loss, color=colour, **_DOTS)


_DOTS: Mapping[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "zorder": 3,
}


def _draw_names(
    panel: "Axes", axis: AxisName, run: Run, colour: str, height: float
) -> Iterator["Text"]:
    """Draw where stages begin, and yield their names."""
    for number, stage in enumerate(run.stages):
        x = getattr(stage.begin, axis)
        if number:
            panel.axvline(x, color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        place = panel.get_xaxis_transform()
        yield panel.text(x, height, stage.name, transform=place, color=colour, fontsize=7.5)


def _part_names(figure: "Figure", rows: Sequence[Sequence["Text"]]) -> None:
    """Turn all names of stages upwards if two of one row would overlap."""
    figure.draw_without_rendering()
    boxes = [[name.get_window_extent() for name in row] for row in rows]
    if any(a.x1 >= b.x0 for row in boxes for a, b in pairwise(row)):
        for name in (name for row in rows for name in row):
            name.set(rotation=40, rotation_mode="anchor")


def _prepare_x(panel: "Axes", axis: AxisName, runs: Sequence[Run], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    stages = [stage for run in runs for stage in run.stages]
    low = min(along(stage.training, axis)[0] for stage in stages)
    high = max(along(stage.training, axis)[-1] for stage in stages)
    label = "Tokens" if axis == "tokens" else "Training compute (FLOPs)"
    if log:
        panel.set_xscale("log")
        panel.set_xlim(low, high * 1.1)
        panel.tick_params(which="minor", axis="x", length=0)
    else:
        panel.set_xlim(low - 0.01 * (high - low), high + 0.02 * (high - low))
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if axis == "flops":
            power = math.floor(math.log10(max(high, 1)))
            label = f"Training compute ($10^{{{power}}}$ FLOPs)"
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 10**power:g}"))
    if axis == "tokens":
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens_text(x)))
    panel.set_xlabel(label)


def _legend(runs: Sequence[Run]) -> Iterator["Artist"]:
    """Yield what is explained: each run, if there are several, and each kind of mark."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    several = len(runs) > 1
    ink = FAINT if several else COLOURS[0]
    if several:
        for run, colour in zip(runs, COLOURS, strict=False):
            yield Line2D([], [], color=colour, linewidth=1.3, label=run.name)
    else:
        yield Line2D([], [], color=ink, linewidth=0.6, alpha=0.5, label="training")
        yield Line2D([], [], color=ink, linewidth=1.3, label="training, smoothed")
    stages = [stage for run in runs for stage in run.stages]
    if any(len(stage.validation.loss) for stage in stages):
        yield Line2D([], [], color=ink, label="validation", **_DOTS)
    if any(stage.ramps for stage in stages):
        yield Patch(color=ink, alpha=0.2, linewidth=0, label="masks below 1")


def along(points: Points, axis: AxisName) -> FloatArray:
    """Return where ``points`` lie on an axis."""
    return points.tokens if axis == "tokens" else points.flops


def loss_range(runs: Sequence[Run], *, whole: bool) -> tuple[float, float]:
    """Return the losses at the bottom and the top of the frame.

    Single steps may leave it. If not ``whole``, so may what lies in a run's ``BEGINNING``.
    """
    shown, noisy = [], []
    for run in runs:
        first, last = run.stages[0].training.tokens[0], run.stages[-1].training.tokens[-1]
        begin = first if whole else first + BEGINNING * (last - first)
        for stage in run.stages:
            shown.append(stage.smoothed[stage.training.tokens >= begin])
            shown.append(stage.validation.loss[stage.validation.tokens >= begin])
            noisy.append(stage.training.loss[stage.training.tokens >= begin])
    values, steps = np.concatenate(shown), np.concatenate(noisy)
    low, high = min(values.min(), np.quantile(steps, 0.002)), values.max()
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def thinned(x: FloatArray, y: FloatArray, *, log: bool) -> tuple[FloatArray, FloatArray]:
    """Return at most ``MOST_POINTS`` points that look the same: lowest and highest of each stretch.

    Stretches are equally long on the axis, which is logarithmic if ``log``. ``x`` must rise.
    """
    if len(x) <= MOST_POINTS:
        return x, y
    scaled = np.log(x) if log else x
    edges = np.linspace(scaled[0], scaled[-1], MOST_POINTS // 2 + 1)[:-1]
    starts = np.unique(np.searchsorted(scaled, edges))
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return np.repeat(x[starts], 2), np.stack([low, high], axis=1).ravel()


def tokens_text(count: float) -> str:
    """Return a number of tokens as a label: ``500M``, ``1.5B``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= limit:
            return f"{count / limit:g}{unit}"
    return f"{count:g}"
