"""What a study found, as data: final losses, comparisons, curves, and the loss around growths.

Where seeds of an arm diverged, its losses are listed and not averaged; its curve ends where the
first of them ended.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flmgrow.storage.strict_json import Json
from flmgrow.studying.comparison import (
    AgainstScratch,
    Pair,
    against_scratch,
    frontiers,
    pairs,
)
from flmgrow.studying.outcomes import Arm, Finding, GrowthInArm, MeasuredStudy, Outcome
from flmgrow.studying.statistics import LEVEL, Estimate, estimate


@dataclass(frozen=True)
class Final:
    """How an arm ended: the ``loss`` over its seeds, None if it diverged in some or has none."""

    arm: Arm
    losses: dict[int, float]
    diverged: tuple[int, ...]
    loss: Estimate | None

    @property
    def seeds(self) -> int:
        """How many seeds were trained."""
        return len(self.losses) + len(self.diverged)

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            **asdict(self.arm),
            "loss": _told(self.loss),
            "losses": {str(seed): loss for seed, loss in self.losses.items()},
            "diverged": list(self.diverged),
        }


@dataclass(frozen=True)
class CurvePoint:
    """The loss of validation over all seeds after so much of an arm."""

    step: int
    tokens: int
    flops: float
    loss: Estimate

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {**vars(self), "loss": self.loss.to_json()}


@dataclass(frozen=True)
class ReportedGrowth:
    """A growth of an arm, over its seeds.

    ``jump`` is the loss of validation after it less that before it, None where one was not
    measured. ``around`` are the training losses by step, 0 being the first after the growth.
    """

    arm: str
    stage: str
    method: str
    tokens: int
    flops: float
    before: Estimate | None
    after: Estimate | None
    jump: Estimate | None
    around: tuple[tuple[int, Estimate], ...]

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            **vars(self),
            **{name: _told(getattr(self, name)) for name in ("before", "after", "jump")},
            "around": [{"step": step, "loss": loss.to_json()} for step, loss in self.around],
        }


@dataclass(frozen=True)
class StudyReport:
    """All that a study found."""

    measured: MeasuredStudy
    finals: tuple[Final, ...]
    against: tuple[AgainstScratch, ...]
    pairs: tuple[Pair, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
    growths: tuple[ReportedGrowth, ...]
    findings: tuple[Finding, ...]

    def final(self, arm: str) -> Final:
        """Return how an arm ended."""
        return next(each for each in self.finals if each.arm.name == arm)

    def to_json(self) -> Json:
        """Return it as plain data."""
        measured = self.measured.to_json()
        return {
            "level": LEVEL,
            "compare": measured["axes"],
            "arms": [each.to_json() for each in self.finals],
            "against_scratch": [each.to_json() for each in self.against],
            "pairs": [each.to_json() for each in self.pairs],
            "curves": {
                arm: [point.to_json() for point in curve] for arm, curve in self.curves.items()
            },
            "growths": [each.to_json() for each in self.growths],
            "held": list(self.measured.held),
            "findings": [asdict(each) for each in self.findings],
            "outcomes": measured["outcomes"],
        }


def report_of(measured: MeasuredStudy) -> StudyReport:
    """Return what a study found.

    Raises:
        UsageError: If scipy is not installed.
    """
    by_arm = measured.by_arm
    return StudyReport(
        measured,
        tuple(_final(arm, by_arm[arm.name]) for arm in measured.arms),
        tuple(row for axis in measured.axes for row in against_scratch(measured, axis)),
        tuple(pairs(measured)),
        {arm.name: curve_of(by_arm[arm.name]) for arm in measured.arms},
        tuple(each for arm in measured.arms for each in _growths(by_arm[arm.name])),
        (*measured.findings, *_seen(measured)),
    )


def _final(arm: Arm, outcomes: Sequence[Outcome]) -> Final:
    losses = {each.seed: each.final.loss for each in outcomes if not each.diverged}
    diverged = tuple(each.seed for each in outcomes if each.diverged)
    found = estimate(list(losses.values())) if losses and not diverged else None
    return Final(arm, losses, diverged, found)


def curve_of(outcomes: Sequence[Outcome]) -> tuple[CurvePoint, ...]:
    """Return the losses over seeds at the steps that all of them have."""
    by_seed = [{each.step: each for each in outcome.readings} for outcome in outcomes]
    if not by_seed:
        return ()
    steps = sorted(set.intersection(*(set(readings) for readings in by_seed)))
    return tuple(
        CurvePoint(
            step, by_seed[0][step].tokens, by_seed[0][step].flops,
            estimate([readings[step].loss for readings in by_seed]),
        )
        for step in steps
    )  # fmt: skip


def _growths(outcomes: Sequence[Outcome]) -> list[ReportedGrowth]:
    """Return the growths that all seeds came to."""
    return [_growth(outcomes[0].arm, same)
            for same in zip(*(each.growths for each in outcomes), strict=False)]  # fmt: skip


def _growth(arm: str, same: Sequence[GrowthInArm]) -> ReportedGrowth:
    before = [each.before for each in same if each.before is not None]
    after = [each.after for each in same if each.after is not None]
    both = len(before) == len(after) == len(same)
    losses = [{point.step: point.loss for point in each.around} for each in same]
    steps = sorted(set.intersection(*(set(each) for each in losses)))
    first = same[0]
    return ReportedGrowth(
        arm, first.stage, first.method, first.tokens, first.flops,
        estimate(before) if both else None,
        estimate(after) if both else None,
        estimate([b - a for a, b in zip(before, after, strict=True)]) if both else None,
        tuple((step, estimate([each[step] for each in losses])) for step in steps),
    )  # fmt: skip


def _seen(measured: MeasuredStudy) -> list[Finding]:
    """Return what the outcomes themselves show to be unequal."""
    return [*_undecayed(measured), *_other_sizes(measured), *_seeds(measured), *_pooled(measured)]


def _undecayed(measured: MeasuredStudy) -> list[Finding]:
    arms = tuple(
        arm.name for arm in measured.arms
        if arm.scratch and any(
            not each.decayed and not each.diverged for each in measured.by_arm[arm.name]
        )
    )  # fmt: skip
    what = "no part of the frontier"
    detail = "the learning rate had not decayed at the end"
    return [Finding(what, arms, detail)] if arms else []


def _other_sizes(measured: MeasuredStudy) -> list[Finding]:
    wanted = {arm.sizes[-1] for arm in measured.arms if arm.scratch}
    if not wanted:
        return []
    (size,) = wanted
    return [
        Finding("ends at another size", (arm.name,),
                f"{arm.sizes[-1]:,} parameters, those from scratch have {size:,}")
        for arm in measured.arms if arm.sizes[-1] != size
    ]  # fmt: skip


def _seeds(measured: MeasuredStudy) -> list[Finding]:
    everywhere = {each.seed for each in measured.outcomes}
    found = []
    for name, outcomes in measured.by_arm.items():
        own = {each.seed for each in outcomes}
        if missing := sorted(everywhere - own):
            detail = f"not trained with {', '.join(map(str, missing))}"
            found.append(Finding("has not all seeds", (name,), detail))
    return found


def _pooled(measured: MeasuredStudy) -> list[Finding]:
    seeds = [seed for seed, each in frontiers(measured, measured.axes[0]).items() if each.pooled]
    scratch = tuple(arm.name for arm in measured.arms if arm.scratch)
    what = "a longer run from scratch ended worse than a shorter one"
    detail = f"with seed {', '.join(map(str, seeds))}; they count as their mean"
    return [Finding(what, scratch, detail)] if seeds else []


def _told(found: Estimate | None) -> Json | None:
    return None if found is None else found.to_json()
