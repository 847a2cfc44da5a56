"""Function: both models run through one reference forward on the same tokens.

How far their logits may be apart follows from the dtypes in which weights are stored and computed.
Ids that only the result has must leave the old ones what they had: none may be likelier than the
average old one.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.model.axes import Axis
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.surgery.comparison import Difference, Side, compare
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.weights import BLOCK, CPU, weight_bytes

EXACT = 1e-10
"""Largest difference of logits of size 1 in float64 where weights are stored exactly."""

ROUNDED = 1e-4
"""The same where float32 weights had to be rounded, or float32 computes."""

OWN_ROUNDING = 5
"""...or this many times the source's own rounding in its dtype, if that is more."""

OWN_ROUNDING_16 = 3
"""The same where weights are stored in 16 bits: reported, not promised."""

NEW_ID_NOISE = 0.05
"""By how much the logit of a new id may exceed that of the average old one for its noise.

Rows of new ids have noise of a thousandth of the spread of the old ones; in a direction in which
old rows are all alike, nothing makes up for it (``operators/vocab.py``).
"""

NEW_ID_COMPUTED = 8
"""How many times the precision of what computes them the largest logits may be off."""

DTYPES_BY_PRECISION = ("bfloat16", "float16", "float32", "float64")


def _places(growth: Growth | None) -> dict[int, int]:
    """Where each old layer is in the new model: the first that comes from it."""
    layer_map = growth.maps.get(Axis.LAYER) if growth is not None else None
    places: dict[int, int] = {}
    if layer_map is not None:
        for new, old in enumerate(layer_map.source.tolist()):
            places.setdefault(old, new)
    return places


def _rounded(source: Checkpoint, result: Checkpoint, growth: Growth | None) -> bool:
    """Whether weights were computed and rounded, rather than copied bit for bit."""
    if growth is None or source.dtype != result.dtype:
        return True
    return any(growth.rounds(tensor) for tensor in logical_tensors(growth.new).values())


def _size(difference: Difference) -> float:
    """Return what bounds are multiplied by: the size of the logits, and at least 1."""
    largest = difference.largest_logit
    return max(1.0, largest) if math.isfinite(largest) else 1.0


def _own_dtype(source: Side, result: Checkpoint, growth: Growth | None) -> torch.dtype | None:
    """Return the dtype whose rounding of the source decides; None where nothing was rounded."""
    stored = {source.checkpoint.dtype, result.dtype}
    rounded = _rounded(source.checkpoint, result, growth) and stored != {"float64"}
    if not rounded:
        return None if source.dtype == torch.float64 else source.dtype
    coarsest: torch.dtype = getattr(torch, min(stored, key=DTYPES_BY_PRECISION.index))
    return coarsest


def _tolerance(source: Side, dtype: torch.dtype | None, tokens: Tensor) -> float:
    """What logits of size 1 are allowed: exact where nothing was rounded, else a multiple of what
    the source rounds in ``dtype``.
    """
    if dtype is None:
        return EXACT
    reference, low = replace(source, dtype=torch.float64), replace(source, dtype=dtype)
    difference = compare(reference, low, tokens, {}, 1.0)
    own = difference.max_logit / _size(difference)
    if not math.isfinite(own):
        return ROUNDED  # its logits do not fit the dtype: that must not allow anything
    if dtype in (torch.float16, torch.bfloat16):
        return OWN_ROUNDING_16 * own
    return max(ROUNDED, OWN_ROUNDING * own)


@dataclass(frozen=True)
class Forward:
    """How to run models: the dtype to compute in, how many elements of a weight to hold at once,
    what shows the progress, and on which device.
    """

    dtype: torch.dtype = torch.float64
    block: int = BLOCK
    bar: Bar = no_bar
    device: torch.device = CPU


def check_function(
    source: Checkpoint,
    result: Checkpoint,
    growth: Growth | None,
    tokens: Tensor,
    how: Forward,
) -> Check:
    """Compare the logits on ``tokens`` (b, s), and judge them by what the dtypes in play allow."""
    compute = how.dtype
    first, second = (
        Side(x, masks_of(x), compute, how.block, device=how.device) for x in (source, result)
    )
    own = _own_dtype(first, result, growth)
    total = weight_bytes(source) * (1 if own is None else 3) + weight_bytes(result)
    with how.bar(total, "comparing what they compute") as progress:
        first, second = (replace(side, progress=progress) for side in (first, second))
        allowed = _tolerance(first, own, tokens)
        difference = compare(first, second, tokens, _places(growth), allowed)
    tolerance = allowed * _size(difference)
    numbers = {
        **asdict(difference),
        "tolerance": tolerance,
        "dtype": str(compute).removeprefix("torch."),
        "stored_dtypes": [source.dtype, result.dtype],
        "tokens": tokens.numel(),
    }
    equal = math.isfinite(difference.max_logit) and difference.max_logit <= tolerance
    detail = _describe(difference, tolerance, compute)
    if difference.new_ids is not None:
        slack = NEW_ID_NOISE + difference.new_ids.rounding + _computed(difference, compute)
        numbers["new_ids_allowed"] = difference.new_ids.bound(slack)
        equal = equal and difference.new_ids.excess <= slack
        detail += f"; {difference.new_ids.describe(slack)}"
    return Check("function", equal, detail, numbers)


def _computed(difference: Difference, dtype: torch.dtype) -> float:
    """How far logits may be off that are computed in ``dtype``."""
    return NEW_ID_COMPUTED * torch.finfo(dtype).eps * _size(difference)


def _describe(difference: Difference, tolerance: float, dtype: torch.dtype) -> str:
    where = ""
    if difference.max_logit > tolerance and difference.first_layer is not None:
        layer = difference.first_layer
        where = f"; first differs {'in the embedding' if layer < 0 else f'after layer {layer}'}"
    return (
        f"max |dlogit| {difference.max_logit:.2e} of {difference.largest_logit:.3g} "
        f"(allowed {tolerance:.1e}, computed in {str(dtype).removeprefix('torch.')}), "
        f"dloss {difference.loss_difference:.1e}, "
        f"argmax agrees on {difference.argmax_agreement:.2%}{where}"
    )
