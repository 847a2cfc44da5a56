"""Gradients: which fresh parameters are alive, and whether old ones get what they got."""

from dataclasses import asdict

from torch import Tensor

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.gradients import compare_gradients


def report_gradients(
    source: Checkpoint, result: Checkpoint, growth: Growth | None, tokens: Tensor
) -> Check:
    """Compare gradients on ``tokens`` (b, s).

    Masks at 0 are opened by one step of their ramp, so that fresh entries show.
    """
    if growth is None:
        return Check("gradients", None, "not compared: the result did not grow from this source")
    masks = masks_of(result)
    found = compare_gradients(source, result, growth, masks, tokens)
    detail = str(found)
    if any(mask.value == 0.0 for mask in masks.values()):
        opened = {d: mask.at(mask.value or 1 / mask.ramp_steps) for d, mask in masks.items()}
        later = compare_gradients(source, result, growth, opened, tokens)
        detail += f" (one ramp step on: {later.alive / max(1, later.fresh):.1%})"
    return Check("gradients", None, detail, asdict(found))
