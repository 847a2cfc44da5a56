"""How far a second stage falls: L = A D1^-a1 D2^(-a2 + a3 log D1) + E.

The law of Liew and Kato (2025, arXiv 2510.06548) for a model that is grown after D1 tokens and then
reads D2: with a3 above zero each token after the growth is worth less the more the small model has
read. Theirs is of one pair of sizes. Here E is what the law of sizes and tokens leaves of the grown
model's size, so runs of several sizes can share the other four constants; and the loss is never
above the small model's, with which an exact growth begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray
from flmgrow.prediction.forecast import LEVEL
from flmgrow.prediction.law import LARGEST_POWER, TOGETHER, Law, minimised
from flmgrow.prediction.points import RunPoint
from flmgrow.proposing.carrying import ReadStage
from flmgrow.text import Found, Text

FORMULA = "L = A D1^-a1 D2^(-a2 + a3 log D1) + E"

CONSTANTS = 4
FEWEST = CONSTANTS + 2


@dataclass(frozen=True)
class TwoStageLaw:
    """Constants of the law, for tokens. ``left`` is its E; what the law of sizes and tokens leaves
    of the grown model's size if None.
    """

    log_a: float
    a1: float
    a2: float
    a3: float
    left: float | None = None

    def loss(self, law: Law, first: ReadStage, second: ReadStage) -> float:
        """Return the loss at the end of ``second``, which was grown from the model of ``first``.

        Where more tokens would harm, beyond what the constants were fitted to, they do nothing.
        """
        before, after = log(first.tokens), log(second.tokens)
        exponent = min(0.0, -self.a2 + self.a3 * before)
        power = self.log_a - self.a1 * before + exponent * after
        left = law.least(second.parameters) if self.left is None else self.left
        begin = law.loss(first.parameters, first.tokens)
        return min(begin, left + exp(min(power, LARGEST_POWER)))


@dataclass(frozen=True)
class GrownRun:
    """A run that grew once: what each stage read, and the ``loss`` at the end of the second."""

    first: ReadStage
    second: ReadStage
    loss: float

    @property
    def factor(self) -> float:
        """The factor by which the parameters grew."""
        return self.second.parameters / self.first.parameters


def grown_of(ends: Sequence[RunPoint]) -> GrownRun:
    """Return the first growth of a run from the ends of its stages, whose tokens are of all."""
    before, after = ends[:2]
    return GrownRun(
        ReadStage(before.parameters, before.tokens),
        ReadStage(after.parameters, after.tokens - before.tokens),
        after.loss,
    )


def fit(law: Law, grown: Sequence[GrownRun]) -> TwoStageLaw:
    """Return the two-stage law that fits best beside a law of sizes and tokens.

    Raises:
        UsageError: For fewer growths than it can be trusted with, and for those whose two stages
            cannot be told apart.
    """
    _check_enough(grown)
    return _fitted(law, grown, np.array([each.loss for each in grown]))


def drawn(law: Law, others: Sequence[Law], grown: Sequence[GrownRun]) -> list[TwoStageLaw]:
    """Return the two-stage laws that other draws of the same growths would have given, one beside
    each of ``others``.

    Raises:
        UsageError: As ``fit`` does.
    """
    best = fit(law, grown)
    told: FloatArray = np.array([best.loss(law, each.first, each.second) for each in grown])
    residuals = np.log([each.loss for each in grown]) - np.log(told)
    residuals *= np.sqrt(len(grown) / (len(grown) - CONSTANTS))
    random = np.random.default_rng(0)
    return [
        _fitted(other, grown, told * np.exp(random.choice(residuals, len(grown))))
        for other in others
    ]


def intervals(draws: Sequence[TwoStageLaw]) -> dict[str, tuple[float, float]]:
    """Return what holds 90 % of the draws of each exponent."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = {}
    for name in ("a1", "a2", "a3"):
        low, high = np.quantile([getattr(each, name) for each in draws], ends)
        found[name] = (float(low), float(high))
    return found


def _tokens(grown: Sequence[GrownRun]) -> FloatArray:
    """Return the logarithms of what both stages read, (2, growths)."""
    return np.log([[each.first.tokens for each in grown], [each.second.tokens for each in grown]])


def _design(tokens: FloatArray) -> FloatArray:
    """Return what each constant is multiplied by in the logarithm of what falls (growths, 4)."""
    before, after = tokens
    return np.column_stack((np.ones_like(before), -before, -after, before * after))


def _check_enough(grown: Sequence[GrownRun]) -> None:
    if len(grown) < FEWEST:
        raise UsageError(
            Text(Found(f"{len(grown)} runs that grew")),
            "train more small models that grow, after several numbers of tokens",
            wanted=f"at least {FEWEST} for {FORMULA}",
        )
    tokens = _tokens(grown)
    spread: FloatArray = tokens - tokens.mean(1, keepdims=True)
    sizes = spread.std(1)
    alike = sizes.min() == 0 or abs(float((spread[0] * spread[1]).mean())) > TOGETHER * sizes.prod()
    if alike or np.linalg.matrix_rank(_design(spread / sizes[:, None]), tol=1e-3) < CONSTANTS:
        raise UsageError(
            "what a first stage and what a second one does cannot be told apart in the runs that "
            "grew",
            "grow after several numbers of tokens, and train on for several, in any combination",
        )


def _fitted(law: Law, grown: Sequence[GrownRun], losses: FloatArray) -> TwoStageLaw:
    tokens = _tokens(grown)
    centre: FloatArray = tokens.mean(1)
    design = _design(tokens - centre[:, None])
    left: FloatArray = np.array([law.least(each.second.parameters) for each in grown])

    def falling(values: FloatArray) -> FloatArray:
        powers: FloatArray = np.clip(design @ values, -LARGEST_POWER, LARGEST_POWER)
        return np.exp(powers)

    def slopes(values: FloatArray) -> FloatArray:
        parts = falling(values)
        by_value: FloatArray = design * (parts / (left + parts))[:, None]
        return by_value

    start = np.linalg.lstsq(design, np.log(np.maximum(losses - left, 1e-3 * losses)), rcond=None)[0]
    values = minimised(
        lambda values: np.log(left + falling(values)) - np.log(losses), np.clip(start, -49, 49),
        slopes,
    ).x  # fmt: skip
    return _in_tokens(values, centre)


def _in_tokens(values: FloatArray, centre: FloatArray) -> TwoStageLaw:
    """Return the law for tokens from constants for tokens around ``centre``, in logarithms."""
    scale, by_first, by_second, both = (float(value) for value in values)
    first, second = (float(place) for place in centre)
    return TwoStageLaw(
        scale + by_first * first + by_second * second + both * first * second,
        by_first + both * second,
        by_second + both * first,
        both,
    )
