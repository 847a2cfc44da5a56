"""Schedules compared: what each would reach, which is best, and whether growing is worth it.

An interval holds what is not known: the law's constants (another draw of the runs it was fitted to)
and those of the law of growth. Both are drawn together for all schedules, so that what is compared
is their difference: if the best grown schedule beats the best other one in fewer than 95 of 100
draws, and does not lose in so many, the verdict is that nobody knows. A final size that is asked
for is given: a smaller model that would do better for the money is named beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flmgrow.model.arrays import FloatArray
from flmgrow.prediction.forecast import LEVEL
from flmgrow.prediction.law import Law
from flmgrow.proposing.candidates import Candidate, ScheduleKind
from flmgrow.proposing.growth_laws import GrowthLaw
from flmgrow.storage.strict_json import Json

SURE = 0.95
"""Of the draws, for a verdict."""

SAME = 1e-9
"""Losses no further apart are the same: where data is the limit, laws may tell sizes apart no more
than by what they cost.
"""

UNGROWN = (ScheduleKind.SCRATCH, ScheduleKind.SMALLER)


@dataclass(frozen=True, eq=False)
class Expected:
    """A schedule, its loss at the end in each draw, and the operations that it takes."""

    candidate: Candidate
    losses: FloatArray
    flops: float

    def beats(self, other: "Expected") -> FloatArray:
        """Return in which draws this is better, 1.0 or 0.0 (draws,): a lower loss, or the same for
        less.
        """
        if self.flops < other.flops:
            return (self.losses < other.losses + SAME).astype(float)
        return (self.losses < other.losses - SAME).astype(float)

    @property
    def loss(self) -> float:
        """The middle of the draws."""
        return float(np.median(self.losses))

    @property
    def band(self) -> tuple[float, float]:
        """What holds 90 % of the draws."""
        low, high = np.quantile(self.losses, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "kind": str(self.candidate.kind),
            "stages": [
                {"parameters": leg.parameters, "tokens": leg.tokens} for leg in self.candidate.legs
            ],
            "flops": self.flops,
            "loss": self.loss,
            "low": self.band[0],
            "high": self.band[1],
        }


@dataclass(frozen=True, eq=False)
class ScheduleVerdict:
    """The best schedule of each kind, the better ones first.

    ``grows`` is in which share of the draws growth beats the same end from scratch; ``smaller`` in
    which a smaller model beats both. None where there is nothing to compare.
    """

    best: Sequence[Expected]
    grows: float | None
    smaller: float | None

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.smaller is None or self.smaller < SURE:
            return self._growth_text
        cheaper = f"a smaller model for longer is better in {self.smaller:.0%} of what may be so"
        return f"{cheaper}; if it must be the final size, {self._growth_text}"

    @property
    def _growth_text(self) -> str:
        if self.grows is None:
            return "nothing to compare: no growth fits the limits and the law"
        if self.grows >= SURE:
            return f"grow: it wins in {self.grows:.0%} of what may be so"
        if self.grows <= 1 - SURE:
            return f"do not grow: it loses in {1 - self.grows:.0%} of what may be so"
        won = f"growth wins in {self.grows:.0%} of what may be so"
        return f"undecided: {won}; runs that grew (grown: in the budget file) would tell"

    @property
    def winner(self) -> Expected:
        """The schedule to take: what is likelier to be best, of those that end as is wanted."""
        kinds = (
            {ScheduleKind.SCRATCH}
            if (self.grows or 0.0) <= 0.5
            else set(ScheduleKind) - set(UNGROWN)
        )
        return next(each for each in self.best if each.candidate.kind in kinds)


def expected(
    candidate: Candidate, laws: Sequence[Law], growth: GrowthLaw, length: int
) -> Expected | None:
    """Return what a schedule would reach on sequences of a ``length``; None where nothing is known.

    ``laws`` are those of sizes and tokens that may hold, one for each draw.
    """
    legs = candidate.legs
    if len(legs) == 1:
        found = [law.loss(legs[0].parameters, legs[0].tokens) for law in laws]
    else:
        losses = growth.losses(laws, legs)
        if losses is None:
            return None
        found = losses
    return Expected(candidate, np.array(found), candidate.flops(length))


def verdict(found: Sequence[Expected]) -> ScheduleVerdict:
    """Return the best of each kind, and whether growth wins."""
    order = sorted(found, key=_order)
    best: dict[ScheduleKind, Expected] = {}
    for each in order:
        best.setdefault(each.candidate.kind, each)
    ranked = sorted(best.values(), key=_order)
    grown = next((each for each in ranked if each.candidate.kind not in UNGROWN), None)
    scratch, smaller = (best.get(kind) for kind in UNGROWN)
    if scratch is None:
        return ScheduleVerdict(ranked, None if grown is None else 1.0, None)
    both = scratch.losses if grown is None else np.minimum(scratch.losses, grown.losses)
    return ScheduleVerdict(
        ranked,
        None if grown is None else float(np.mean(grown.beats(scratch))),
        None if smaller is None else float(np.mean(smaller.losses < both)),
    )


def _order(each: Expected) -> tuple[float, float]:
    """Order schedules by their loss, and those of one loss by what they cost."""
    return round(each.loss / SAME), each.flops
