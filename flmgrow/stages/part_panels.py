"""Drawing parts below the loss: validation sets, masks, and how far steps move old and fresh.

Sets are there where a stage names any, the others where it was trained with ``log.parts``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flmgrow.stages.curves import PartKind, RunCurves, Trace
from flmgrow.stages.drawing import COLOURS
from flmgrow.stages.frames import AxisName, thinned

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LABELS: Mapping[PartKind, str] = {
    "sets": "Validation loss",
    "masks": "Mask",
    "updates": "Update relative to weight",
    "dimensions": "The same by dimension",
}
_LOGARITHMIC = ("updates", "dimensions")
"""Kinds whose values are drawn on a logarithmic scale: those that never move are in no picture."""

_STYLES = ("-", "--", ":", "-.")
"""Of parts, where a colour is a run's."""

_CHECKS: Mapping[str, Any] = {"marker": "o", "markersize": 2.6}
"""Of what is measured now and then, beside what every step is."""


def kinds_of(runs: Sequence[RunCurves]) -> list[PartKind]:
    """Return the kinds of parts that are drawn, each in a row of its own; masks only where a stage
    logs parts.
    """
    there = {kind for run in runs for stage in run.stages for kind in LABELS if stage.parts[kind]}
    if "updates" not in there:
        there -= {"masks"}
    return [kind for kind in LABELS if kind in there]


def draw_parts(
    panel: "Axes", axis: AxisName, kind: PartKind, runs: Sequence[RunCurves], *, log: bool
) -> dict["Artist", str]:
    """Draw the parts of a kind; return what each curve is called, one of each name."""
    names = list(dict.fromkeys(part for _, part, _ in _traces(runs, kind)))
    drawn: dict[str, Artist] = {}
    for number, part, trace in _traces(runs, kind):
        place, several = names.index(part), len(runs) > 1
        x = trace.tokens if axis == "tokens" else trace.flops
        shown = x > 0 if log else x >= 0
        (line,) = panel.plot(
            *thinned(x[shown], trace.values[shown], log=log),
            color=COLOURS[(number if several else place) % len(COLOURS)],
            linestyle=_STYLES[place % len(_STYLES)] if several else "-",
            linewidth=0.9,
            **(_CHECKS if kind == "sets" else {}),
        )
        drawn.setdefault(f"{runs[number].name}: {part}" if several else part, line)
    if kind in _LOGARITHMIC:
        panel.set_yscale("log")
    return {line: name for name, line in drawn.items()}


def _traces(runs: Sequence[RunCurves], kind: PartKind) -> Iterator[tuple[int, str, Trace]]:
    return (
        (number, part, trace)
        for number, run in enumerate(runs)
        for stage in run.stages
        for part, trace in stage.parts[kind].items()
        if kind not in _LOGARITHMIC or (trace.values > 0).any()
    )
