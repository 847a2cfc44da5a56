"""What is said of schedules that grow: three laws, because published results pull apart.

``carried`` is a share of what the small model has learned (``carrying``). ``two-stage`` says that
the more the small model has read, the less the large one gains (``two_stage``; Liew and Kato,
2025). ``mixing`` says that the grown model catches up with one that was never grown: every token
counts as if the large model had read it, at the price of the small one (arXiv 2511.04981, for one
growth, late). A law that says nothing of a schedule returns None, and the schedule is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from flmgrow.model.arrays import FloatArray
from flmgrow.prediction.law import Law
from flmgrow.proposing.carrying import ReadStage, loss_of
from flmgrow.proposing.two_stage import TwoStageLaw

GrowthLawName = Literal["carried", "two-stage", "mixing"]

MARGIN = 1.5
"""How far beyond the factors of the runs that grew a two-stage law is asked."""


class GrowthLaw(Protocol):
    """A law of growth; ``told`` says what it rests on."""

    name: ClassVar[GrowthLawName]

    @property
    def told(self) -> str:
        """What the law says, and how that is known."""

    def losses(self, laws: Sequence[Law], legs: Sequence[ReadStage]) -> list[float] | None:
        """Return the loss at the end of stages in each draw, of which ``laws`` are the laws of
        sizes and tokens; None for schedules of which nothing is known.
        """


@dataclass(frozen=True, eq=False)
class CarriedShare:
    """A share carried over, one for each draw."""

    shares: FloatArray
    told: str
    name: ClassVar[GrowthLawName] = "carried"

    def losses(self, laws: Sequence[Law], legs: Sequence[ReadStage]) -> list[float] | None:
        """Return the loss at the end of stages."""
        pairs = zip(laws, self.shares, strict=True)
        return [loss_of(law, legs, float(share)) for law, share in pairs]


@dataclass(frozen=True, eq=False)
class TwoStages:
    """A two-stage law for each draw, and between which ``factors`` of growth they were found."""

    draws: Sequence[TwoStageLaw]
    factors: tuple[float, float]
    told: str
    name: ClassVar[GrowthLawName] = "two-stage"

    def losses(self, laws: Sequence[Law], legs: Sequence[ReadStage]) -> list[float] | None:
        """Return the loss at the end of two stages; None for more, and for other factors."""
        if len(legs) != 2:
            return None
        first, second = legs
        factor = second.parameters / first.parameters
        if not self.factors[0] / MARGIN <= factor <= self.factors[1] * MARGIN:
            return None
        pairs = zip(laws, self.draws, strict=True)
        return [two.loss(law, first, second) for law, two in pairs]


@dataclass(frozen=True)
class Mixing:
    """A grown model that catches up with one that was never grown."""

    name: ClassVar[GrowthLawName] = "mixing"
    told: str = (
        "a grown model catches up with one of its size that has read the same "
        "(arXiv 2511.04981, for one growth, late)"
    )

    def losses(self, laws: Sequence[Law], legs: Sequence[ReadStage]) -> list[float] | None:
        """Return the loss at the end of two stages; None for more."""
        if len(legs) != 2:
            return None
        read = sum(leg.tokens for leg in legs)
        return [law.loss(legs[-1].parameters, read) for law in laws]
