"""Outcomes of studies that nobody trained: a true law of loss, and noise by seed and by run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from flmgrow.studying.outcomes import (
    Arm,
    Expense,
    GrowthInArm,
    MeasuredStudy,
    Outcome,
    Reading,
    StepLoss,
)

LENGTHS = (1.0, 2.0, 4.0)
"""Of the runs from scratch, relative to the shortest."""

FLOPS, TOKENS, SECONDS = 1e12, 1_000_000, 10.0
STEPS = 10


def true_loss(flops: float) -> float:
    """The loss of scratch: straight over the logarithm, as the interpolation is between points."""
    return 2.3 - 0.3 * log(flops / FLOPS)


@dataclass(frozen=True)
class Planted:
    """An arm: ``shift`` of its loss from that of scratch at the same FLOPs, which are ``length``
    times those of the shortest run.
    """

    name: str
    shift: float = 0.0
    length: float = 2.0
    tokens: float = 2.0
    diverges: tuple[int, ...] = ()


def simulate(
    number: int, arms: Sequence[Planted], seeds: int = 3, noise: float = 0.01, by_seed: float = 0.03
) -> MeasuredStudy:
    """A study: each run's loss has noise of its own, and some that all of its seed share."""
    random = np.random.default_rng(number)
    shared = random.normal(0, by_seed, seeds)
    scratch = [Planted(f"scratch-{length:g}", 0.0, length, length) for length in LENGTHS]
    outcomes = [
        _outcome(arm, seed, float(shared[seed] + random.normal(0, noise)), arm in scratch)
        for arm in (*scratch, *arms)
        for seed in range(seeds)
    ]
    facts = [
        Arm(arm.name, f"the arm {arm.name}", (1000,) if arm in scratch else (500, 1000),
            int(TOKENS * arm.tokens), FLOPS * arm.length, arm in scratch)
        for arm in (*scratch, *arms)
    ]  # fmt: skip
    return MeasuredStudy(tuple(facts), tuple(outcomes), tuple(Expense))


def _outcome(arm: Planted, seed: int, noise: float, scratch: bool) -> Outcome:
    loss = true_loss(FLOPS * arm.length) + arm.shift + noise
    readings = tuple(
        Reading(step, int(TOKENS * arm.tokens * step / STEPS), FLOPS * arm.length * step / STEPS,
                loss + 0.3 * (STEPS - step) / STEPS)
        for step in range(1, STEPS + 1)
    )  # fmt: skip
    half = readings[STEPS // 2]
    around = tuple(StepLoss(step, half.loss + (0.1 if step == 0 else 0)) for step in range(-3, 4))
    growth = GrowthInArm(
        "large", "mask", half.tokens, half.flops, half.loss, half.loss + 1e-3, around
    )
    return Outcome(
        arm.name, seed, 1000, readings, () if scratch else (growth,), SECONDS * arm.length,
        decayed=True, diverged=seed in arm.diverges,
    )  # fmt: skip
