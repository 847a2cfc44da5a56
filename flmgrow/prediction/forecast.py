"""A law's word on a size nobody has trained, and how far it can be trusted.

The interval is a bootstrap's: the law is fitted again and again to runs drawn from those there are,
of every size as many as it has, and the noise of a single run is added. Beside it always stands
what the law would have said of the largest run, had it not seen it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray
from flmgrow.prediction.law import SIZES, Form, Law, check_enough, fit, refit
from flmgrow.prediction.points import RunPoint
from flmgrow.storage.strict_json import Json
from flmgrow.text import Setting, Text

DRAWS = 200
LEVEL = 0.9
"""Of the interval."""


@dataclass(frozen=True)
class Forecast:
    """What is foretold of a model: its ``loss``, and the interval that holds 90 % of such runs.

    ``beyond`` is its size over that of the largest run.
    """

    parameters: float
    tokens: float
    loss: float
    low: float
    high: float
    beyond: float

    def to_json(self) -> Json:
        """Return it as plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class HeldOutRun:
    """The largest run, and what a law says of it that has not seen it."""

    parameters: float
    loss: float
    foretold: float

    @property
    def error(self) -> float:
        """The error, relative to the loss."""
        return self.foretold / self.loss - 1

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {**vars(self), "error": self.error}


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A law, and others that other draws of the same runs would have given."""

    law: Law
    points: Sequence[RunPoint]
    draws: Sequence[Law]
    left_out: HeldOutRun | None

    def at(self, parameters: float, tokens: float | None = None) -> Forecast:
        """Return what is foretold of a size.

        ``tokens`` are those of the longest run if not given.

        Raises:
            UsageError: For others, where all runs end at one length.
        """
        longest = max(point.tokens for point in self.points)
        length = tokens or longest
        if self.law.form is SIZES and length != longest:
            raise UsageError(
                Text(Setting("tokens"), f" {length:,.0f}: all runs end after {longest:,.0f}"),
                "add runs of two other lengths to foretell others",
            )
        noise = np.random.default_rng(len(self.draws)).standard_normal(len(self.draws))
        losses = np.array([law.loss(parameters, length) for law in self.draws])
        losses *= np.exp(self.law.spread * noise)
        low, high = np.quantile(losses, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        loss = self.law.loss(parameters, length)
        largest = max(point.parameters for point in self.points)
        return Forecast(
            parameters, length, loss, min(float(low), loss), max(float(high), loss),
            parameters / largest,
        )  # fmt: skip

    def to_json(self) -> Json:
        """Return law and evidence as plain data, without the draws."""
        return {
            "law": self.law.form.formula,
            "constants": self.law.constants,
            "runs": len(self.points),
            "spread": self.law.spread,
            "largest_left_out": None if self.left_out is None else self.left_out.to_json(),
        }


def forecaster(points: Sequence[RunPoint], form: Form, seed: int = 0) -> Forecaster:
    """Return a forecaster fitted to points.

    Raises:
        UsageError: As ``check_enough`` does.
    """
    check_enough(points, form)
    law = fit(points, form)
    random = np.random.default_rng(seed)
    draws = [refit(law, _drawn(points, law, random)) for _ in range(DRAWS)]
    return Forecaster(law, points, draws, _leave_largest_out(points, form))


def _drawn(points: Sequence[RunPoint], law: Law, random: np.random.Generator) -> list[RunPoint]:
    """Return as many points of every size and length as there are.

    Where there is one of a kind, its residual is drawn from all of them: one run tells nothing of
    how far another would lie.
    """
    kinds: dict[tuple[float, float], list[RunPoint]] = defaultdict(list)
    for point in points:
        kinds[point.parameters, point.tokens].append(point)
    residuals: FloatArray = np.array(
        [np.log(point.loss / law.loss(point.parameters, point.tokens)) for point in points]
    )
    residuals *= np.sqrt(len(points) / max(1, len(points) - law.form.parameters))
    result = []
    for (parameters, tokens), same in kinds.items():
        for _ in same:
            if len(same) > 1:
                loss = float(np.exp(random.choice(_spread_out(same))))
            else:
                loss = law.loss(parameters, tokens) * float(np.exp(random.choice(residuals)))
            result.append(RunPoint(parameters, tokens, loss))
    return result


def _spread_out(same: Sequence[RunPoint]) -> FloatArray:
    """Return the log losses of repetitions, as far apart as runs are of which these are a few.

    Drawn from as they are, n of them vary by (n - 1) / n of what runs do (Efron and Tibshirani,
    1993, section 5.3).
    """
    losses: FloatArray = np.log([point.loss for point in same])
    widened: FloatArray = losses.mean() + (losses - losses.mean()) * np.sqrt(
        len(same) / (len(same) - 1)
    )
    return widened


def _leave_largest_out(points: Sequence[RunPoint], form: Form) -> HeldOutRun | None:
    """Return what a law without the largest size says of it; None where too few would be left."""
    largest = max(point.parameters for point in points)
    own = [point for point in points if point.parameters == largest]
    smaller = [point for point in points if point.parameters != largest]
    if len(smaller) < form.parameters:
        return None
    law = fit(smaller, form)
    longest = max(own, key=lambda point: point.tokens)
    same = [point.loss for point in own if point.tokens == longest.tokens]
    return HeldOutRun(largest, float(np.mean(same)), law.loss(largest, longest.tokens))
