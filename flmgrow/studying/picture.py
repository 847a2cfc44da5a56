"""The picture of a study: losses against FLOPs and tokens, what scratch needs, and growths.

Shaded are intervals over seeds. What is trained from scratch is grey, with a point where each run
ends: only there is a loss a result. An open circle on a curve is a growth. In the panel of ratios,
to the right of 1 scratch needs more; an arrow says that it needs more than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import isfinite
from typing import TYPE_CHECKING, Literal

from flmgrow.stages.drawing import COLOURS, FAINT, INK, drawn
from flmgrow.stages.plots import tokens_text
from flmgrow.studying.comparison import AgainstScratch
from flmgrow.studying.report import CurvePoint, ReportedGrowth, StudyReport
from flmgrow.studying.statistics import Estimate
from flmgrow.studying.verdicts import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, ROW, ARM = 7.6, 2.9, 0.16
"""Inches: of the picture, of a row of panels, and of an arm's line in the panel of ratios."""

_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_BEGINNING = 0.1
"""Of an arm's tokens: the losses before are above the frame."""

Along = Literal["tokens", "flops"]
Style = str | tuple[int, tuple[float, float]]


@dataclass(frozen=True)
class _Look:
    """How an arm is drawn."""

    colour: str
    style: Style


def picture(report: StudyReport, kind: str) -> bytes:
    """Return the picture as a file of a kind in ``stages.drawing.KINDS``.

    Raises:
        UsageError: If matplotlib is missing or broken.
    """
    height = 2 * ROW + ARM * len(_others(report))
    return drawn(kind, (WIDTH, height), lambda figure: _draw(figure, report))


def _others(report: StudyReport) -> list[str]:
    """Return the arms that are not from scratch, and were trained."""
    return [each.arm.name for each in report.finals if not each.arm.scratch and each.seeds]


def _draw(figure: "Figure", report: StudyReport) -> None:
    (left, right), (ratios, growths) = figure.subplots(2, 2)
    every = [_Look(colour, style) for style in _STYLES for colour in COLOURS]
    looks = dict(zip(_others(report), islice(cycle(every), len(report.finals)), strict=False))
    _draw_losses(left, "flops", report, looks)
    _draw_losses(right, "tokens", report, looks)
    right.xaxis.set_major_formatter(lambda count, _: tokens_text(count))
    left.set(xlabel="FLOPs", ylabel="loss of validation (nats per token)")
    right.set(xlabel="tokens")
    _draw_ratios(ratios, report, looks)
    _draw_growths(growths, report.growths, looks)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=4)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _draw_losses(panel: "Axes", axis: Along, report: StudyReport, looks: dict[str, _Look]) -> None:
    shown: list[float] = []
    label: str | None = "from scratch"
    for final in report.finals:
        curve = report.curves[final.arm.name]
        late = [point for point in curve if point.tokens >= _BEGINNING * curve[-1].tokens]
        shown += [point.loss.value for point in late]
        if not late:
            continue
        if final.arm.scratch:
            _draw_curve(panel, axis, late, _Look(FAINT, "-"), label)
            _bar(panel, getattr(late[-1], axis), late[-1].loss)
            label = None
        else:
            _draw_curve(panel, axis, late, looks[final.arm.name], final.arm.name)
    for growth in report.growths:
        where = getattr(growth, axis)
        if growth.after is not None:
            panel.plot(
                where, growth.after.value, "o", color=looks[growth.arm].colour, markersize=4,
                markerfacecolor="white", zorder=4,
            )  # fmt: skip
    panel.set_xscale("log")
    if shown:
        margin = 0.05 * (max(shown) - min(shown)) or 0.5
        panel.set_ylim(min(shown) - margin, max(shown) + margin)


def _draw_curve(
    panel: "Axes", axis: Along, curve: Sequence[CurvePoint], look: _Look, label: str | None
) -> None:
    x = [getattr(point, axis) for point in curve]
    loss = [point.loss for point in curve]
    panel.plot(
        x, [each.value for each in loss], color=look.colour, linestyle=look.style, linewidth=1,
        label=label,
    )  # fmt: skip
    _band(panel, x, loss, look)


def _band(panel: "Axes", x: Sequence[float], found: Sequence[Estimate], look: _Look) -> None:
    if all(isfinite(each.low) for each in found):
        panel.fill_between(
            x, [each.low for each in found], [each.high for each in found], color=look.colour,
            alpha=0.12, linewidth=0,
        )  # fmt: skip


def _bar(panel: "Axes", x: float, found: Estimate) -> None:
    """Draw the end of a run from scratch, with its interval where there is one."""
    bounded = isfinite(found.low)
    error = [[found.value - found.low], [found.high - found.value]] if bounded else None
    panel.errorbar(x, found.value, error, fmt="o", color=INK, markersize=3, capsize=2, linewidth=1)


def _draw_ratios(panel: "Axes", report: StudyReport, looks: dict[str, _Look]) -> None:
    axis = report.measured.axes[0]
    rows = [row for row in report.against if row.axis is axis][::-1]
    panel.axvline(1, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    for place, row in enumerate(rows):
        _draw_ratio(panel, place, row, looks[row.arm].colour)
    ticks = panel.set_yticks(range(len(rows)), [row.arm for row in rows])
    for tick in ticks:
        tick.label1.set_parse_math(False)
    panel.set_ylim(-0.7, len(rows) - 0.3)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    panel.tick_params(axis="x", which="minor", labelsize=6.5)
    panel.set(xlabel=f"times the {AXES[axis].name} that scratch needs for the same loss")


def _draw_ratio(panel: "Axes", place: int, row: AgainstScratch, colour: str) -> None:
    found = row.ratio.estimate
    if found is not None:
        bounded = isfinite(found.high)
        error = [[found.value - found.low], [found.high - found.value]] if bounded else None
        panel.errorbar(
            found.value, place, xerr=error, fmt="o", color=colour, markersize=3.5, capsize=2.5,
            linewidth=1,
        )  # fmt: skip
    elif row.least is not None and row.below == row.seeds:
        panel.plot(row.least, place, ">", color=colour, markersize=5)
    else:
        panel.text(1, place, f" {row.ratio.verdict}", va="center", fontsize=6.5, color=colour)


def _draw_growths(
    panel: "Axes", growths: Sequence[ReportedGrowth], looks: dict[str, _Look]
) -> None:
    for growth in growths:
        steps = [step for step, _ in growth.around]
        losses = [loss for _, loss in growth.around]
        look = looks[growth.arm]
        panel.plot(
            steps, [loss.value for loss in losses], color=look.colour, linestyle=look.style,
            linewidth=0.8,
        )  # fmt: skip
        _band(panel, steps, losses, look)
    panel.axvline(-0.5, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    panel.set(xlabel="steps since the growth", ylabel="loss of training (nats per token)")
