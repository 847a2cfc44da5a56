"""Drawing the picture of ``flmgrow plot``.

One picture tells how a run went: the loss against what was read, and against what was paid. Two
panels share the loss: on the left against tokens, on the right against floating-point operations,
where a growth shows what it saved. Thin lines are steps, bold lines are smoothed, circles are
validation. A dashed line is where a stage begins, its name above the frame; shaded is where masks
were below 1. Colours are told apart by the colour-blind, too. Below follow, if there are any, what
steps tell of parts (masks, and how far old and fresh parameters move) and scores of checkpoints, a
row for each metric, with their standard errors.

Names come from files and folders: they are drawn as they are, never as mathematics, and shortened
in their middle where they would take the curves' place.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flmgrow.errors import UsageError, printable
from flmgrow.stages.curves import RunCurves, StageCurve
from flmgrow.stages.drawing import COLOURS, FAINT, drawn
from flmgrow.stages.frames import AxisName, along, loss_range, thinned, x_range
from flmgrow.stages.part_panels import LABELS, draw_parts, kinds_of
from flmgrow.stages.score_panels import HEIGHT, draw_scores, metrics_of
from flmgrow.text import Found, Text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text as TextArtist

SIZE = (7.2, 3.0)
ROW = 0.065
"""From one run's names of stages to the next one's, in heights of the frame."""
STAGE_WIDTH, RUN_WIDTH = 1.2, 2.0
"""Inches that the name of a stage, and that of a run, may take."""
TITLE_LINES = 3
MOST_CHARACTERS = 90
"""Characters of a line, before its width is measured."""


@dataclass(frozen=True)
class Look:
    """How a picture is to look."""

    log_x: bool = False
    title: str = ""


def picture(runs: Sequence[RunCurves], kind: str, look: Look) -> bytes:
    """Return a picture of ``runs`` as a file of a kind in ``KINDS``, the same for the same runs.

    Raises:
        UsageError: If matplotlib is missing or broken, there are more runs than colours, or the
            title has too many lines.
    """
    if len(runs) > len(COLOURS):
        raise UsageError(
            Text(Found(len(runs)), " runs"),
            "draw fewer runs in one picture",
            wanted=f"at most {len(COLOURS)}",
        )
    if (lines := len(look.title.splitlines())) > TITLE_LINES:
        raise UsageError(
            Text("the title has ", Found(lines), " lines"), wanted=f"at most {TITLE_LINES}"
        )
    width, height = SIZE
    rows = len(kinds_of(runs)) + len(metrics_of(runs))
    size = (width, height + HEIGHT * rows)
    return drawn(kind, size, lambda figure: _draw(figure, runs, look))


def _draw(figure: "Figure", runs: Sequence[RunCurves], look: Look) -> None:
    kinds, metrics = kinds_of(runs), metrics_of(runs)
    heights = [SIZE[1], *[HEIGHT] * (len(kinds) + len(metrics))]
    (left, right), *below = figure.subplots(
        len(heights), 2, sharey="row", squeeze=False, height_ratios=heights
    )
    left.set_ylabel("Loss (nats per token)")
    left.set_ylim(*loss_range(runs, whole=look.log_x))
    names: list[list[TextArtist]] = []
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
    _draw_legend(right, dict(_legend(runs)))
    for kind, row in zip(kinds, below, strict=False):
        draw = partial(draw_parts, kind=kind, runs=runs, log=look.log_x)
        _draw_row(LABELS[kind], draw, row, runs, look)
    for metric, row in zip(metrics, below[len(kinds) :], strict=True):
        draw = partial(draw_scores, metric=metric, runs=runs)
        _draw_row(metric.replace("_", " "), draw, row, runs, look)
    if look.title:
        lines = (shortened(line, MOST_CHARACTERS) for line in look.title.splitlines())
        figure.suptitle("\n".join(lines), fontsize=9.5, parse_math=False)
    _part_names(figure, names)


def _draw_row(
    label: str,
    draw: Callable[["Axes", AxisName], dict["Artist", str]],
    row: Sequence["Axes"],
    runs: Sequence[RunCurves],
    look: Look,
) -> None:
    """Draw a row below the loss, along the same axes."""
    axes: tuple[AxisName, ...] = ("tokens", "flops")
    for panel, axis in zip(row, axes, strict=True):
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        _prepare_x(panel, axis, runs, look.log_x)
        for begin in (stage.begin for run in runs for stage in run.stages[1:]):
            x = _inside(panel, getattr(begin, axis))
            panel.axvline(x, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
        lines = draw(panel, axis)
    row[0].set_ylabel(shortened(label, MOST_CHARACTERS), parse_math=False)
    _draw_legend(row[1], lines, "best")


def _draw_stage(panel: "Axes", axis: AxisName, stage: StageCurve, colour: str, log: bool) -> None:
    for begin, end in stage.ramps:
        edges = (_inside(panel, getattr(spent, axis)) for spent in (begin, end))
        panel.axvspan(*edges, color=colour, alpha=0.10, linewidth=0)
    x, checked = along(stage.training, axis), along(stage.validation, axis)
    # A logarithmic axis has no place for 0; and a line has no length where there is one step.
    steps, checks = (x > 0, checked > 0) if log else (x >= 0, checked >= 0)
    curve = thinned(x[steps], stage.training.loss[steps], log=log)
    smoothed = thinned(x[steps], stage.smoothed[steps], log=log)
    dot = "." if len(stage.smoothed) == 1 else None
    panel.plot(*curve, color=colour, alpha=0.35, linewidth=0.4)
    panel.plot(*smoothed, color=colour, linewidth=1.3, marker=dot)
    panel.plot(checked[checks], stage.validation.loss[checks], color=colour, **_DOTS)


_DOTS: Mapping[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "zorder": 3,
}


def _draw_names(
    panel: "Axes", axis: AxisName, run: RunCurves, colour: str, height: float
) -> Iterator["TextArtist"]:
    """Draw where stages begin, and yield their names."""
    for number, stage in enumerate(run.stages):
        x = _inside(panel, getattr(stage.begin, axis))
        if number:
            panel.axvline(x, color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        place = panel.get_xaxis_transform()
        name = panel.text(
            x, height, "", transform=place, color=colour, fontsize=7.5, parse_math=False
        )
        _write(name, stage.name, STAGE_WIDTH * panel.figure.dpi)
        yield name


def _inside(panel: "Axes", x: float) -> float:
    """Return the place nearest to ``x`` that the panel shows."""
    low, high = panel.get_xlim()
    return min(max(x, low), high)


def _write(text: "TextArtist", words: str, width: float) -> None:
    """Let ``text`` be ``words``, shortened until they are no wider than so many pixels."""
    text.set_text(shortened(words, MOST_CHARACTERS))
    while (length := len(text.get_text())) > 1:
        found = text.get_window_extent().width
        if found <= width:
            break
        text.set_text(shortened(words, max(1, min(length - 1, int(length * width / found)))))


def _part_names(figure: "Figure", rows: Sequence[Sequence["TextArtist"]]) -> None:
    """Turn all names of stages upwards if two of one row would overlap."""
    figure.draw_without_rendering()
    boxes = [[name.get_window_extent() for name in row] for row in rows]
    if any(a.x1 >= b.x0 for row in boxes for a, b in pairwise(row)):
        for name in (name for row in rows for name in row):
            name.set(rotation=40, rotation_mode="anchor")


def _prepare_x(panel: "Axes", axis: AxisName, runs: Sequence[RunCurves], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    x = np.concatenate([along(stage.training, axis) for run in runs for stage in run.stages])
    label = "Tokens" if axis == "tokens" else "Training compute (FLOPs)"
    if log:
        panel.set_xscale("log")
        panel.tick_params(which="minor", axis="x", length=0)
    else:
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if axis == "flops":
            power = math.floor(math.log10(max(x.max(), 1)))
            label = f"Training compute ($10^{{{power}}}$ FLOPs)"
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 10**power:g}"))
    if axis == "tokens":
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens_text(x)))
    panel.set_xlim(*x_range(x, log=log))
    panel.set_xlabel(label)


def _draw_legend(
    panel: "Axes",
    entries: Mapping["Artist", str],
    place: Literal["upper right", "best"] = "upper right",
) -> None:
    # matplotlib would leave out a name that begins with "_": names are put in afterwards.
    places = ["-"] * len(entries)
    legend = panel.legend(list(entries), places, loc=place, handlelength=1.6)
    for text, words in zip(legend.get_texts(), entries.values(), strict=True):
        text.set_parse_math(False)
        _write(text, words, RUN_WIDTH * panel.figure.dpi)


def _legend(runs: Sequence[RunCurves]) -> Iterator[tuple["Artist", str]]:
    """Yield what is explained: each run, if there are several, and each kind of mark."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    several = len(runs) > 1
    ink = FAINT if several else COLOURS[0]
    if several:
        for run, colour in zip(runs, COLOURS, strict=False):
            yield Line2D([], [], color=colour, linewidth=1.3), run.name
    else:
        yield Line2D([], [], color=ink, linewidth=0.6, alpha=0.5), "training"
        yield Line2D([], [], color=ink, linewidth=1.3), "training, smoothed"
    stages = [stage for run in runs for stage in run.stages]
    if any(len(stage.validation.loss) for stage in stages):
        yield Line2D([], [], color=ink, **_DOTS), "validation"
    if any(stage.ramps for stage in stages):
        yield Patch(color=ink, alpha=0.2, linewidth=0), "masks below 1"


def shortened(text: str, most: int) -> str:
    """Return ``text`` on one line, of at most so many characters, an ellipsis for what is left."""
    text = printable(text)
    if len(text) <= most:
        return text
    begin = most // 2
    return f"{text[:begin]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1 - begin) :]}"


def tokens_text(count: float) -> str:
    """Return a number of tokens as a label: ``500M``, ``1.5B``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= limit:
            return f"{count / limit:g}{unit}"
    return f"{count:g}"
