"""What a growth carries over, in tokens.

A model that grows exactly begins with the loss of the small one. A model of its size that was never
grown would have that loss after some tokens of its own: so many the small one's training is worth
at most. How much of that holds is the question on which published results pull apart (Du et al.,
2024, find nearly all of it; others none where the small model has read much). So it is one number
here, ``carried``, from 0 (the grown model has to read all of it again) to 1 (none of it): fitted to
runs that grew, or an interval that is supposed, and said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.prediction.law import Law
from flmgrow.prediction.points import RunPoint, end_of
from flmgrow.stages.metrics_files import find_metrics


@dataclass(frozen=True)
class ReadStage:
    """A stage as a law sees it: a size, and the tokens that it reads."""

    parameters: float
    tokens: float


def loss_of(law: Law, legs: Sequence[ReadStage], carried: float) -> float:
    """Return the loss at the end of a schedule: each growth carries over that share."""
    return law.loss(legs[-1].parameters, effective_tokens(law, legs, carried))


def effective_tokens(law: Law, legs: Sequence[ReadStage], carried: float) -> float:
    """Return the tokens after which a model of the last size, never grown, would be as good."""
    worth = 0.0
    before: ReadStage | None = None
    for leg in legs:
        if before is not None:
            found = law.tokens_for(leg.parameters, law.loss(before.parameters, worth))
            worth = carried * found if carried else 0.0  # nothing of infinitely many is nothing
        worth += leg.tokens
        before = leg
    return worth


def ends_of(run: Path) -> list[RunPoint]:
    """Return the ends of a run's stages.

    Raises:
        UsageError: For a run that never grew.
    """
    ends = [end_of(metrics.parent, None) for metrics in find_metrics(run)]
    if len(ends) < 2:
        raise UsageError("has one stage", "give runs that grew, or leave grown out", where=run)
    return ends


def carried_by(law: Law, ends: Sequence[RunPoint]) -> list[float]:
    """Return what each growth of a run has carried over, as the ``ends`` of its stages tell."""
    return [_carried(law, before, after) for before, after in pairwise(ends)]


def _carried(law: Law, before: RunPoint, after: RunPoint) -> float:
    """Return the share that a growth carried over, between 0 and 1.

    ``before`` and ``after`` are the ends of two stages; tokens are counted over both.
    """
    worth = law.tokens_for(after.parameters, before.loss)
    reached = law.tokens_for(after.parameters, after.loss)
    own = after.tokens - before.tokens
    if worth <= 0 or reached == inf:
        return 1.0
    return min(1.0, max(0.0, (reached - own) / worth))
